"""All that is stored about a student is found, and nothing of anybody else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.actions import record_action
from storage.claims import claim_assessment_responses, request_claim
from storage.dead import rescore_responses
from storage.errors import InvalidInputError
from storage.holdings import begin_snapshot, count_holdings, find_student, read_holdings
from storage.settlements import settle_handoffs
from storage.tables import metadata
from tests.factories import lease, publish, settlement, submit, token
from tests.races import committed
from tests.storage.test_purging import draft

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def student(conn: AsyncConnection, anonymous: str) -> None:
    """User 3: a scored answer that is asked for anew, one that a claim left under his token, a draft, a record."""
    await publish(conn)
    scored = int((await submit(conn, user_id=3))["response_id"])
    [held] = await lease(conn, scored)
    await settle_handoffs(conn, [settlement(held)])
    await rescore_responses(conn, response_ids=[scored])
    await submit(conn, anonymous_token=anonymous)
    await claim_assessment_responses(conn, anonymous_token=anonymous, user_id=3)
    await draft(conn, 1, user_id=3)
    await record_action(conn, actor="a", action="export", affected=1, details={"user_id": 3})


async def somebody_else(conn: AsyncConnection) -> None:
    await submit(conn, user_id=4)
    await submit(conn, anonymous_token=token())
    await draft(conn, 1, user_id=4)
    await record_action(conn, actor="a", action="export", affected=1, details={"user_id": 4})


async def read(conn: AsyncConnection, **owner: Any) -> list[dict[str, Any]]:
    return [row async for row in read_holdings(conn, await find_student(conn, **owner))]


async def test_everything_of_a_user_is_read(conn: AsyncConnection) -> None:
    """With what a claim left under a token that is his alone; without any token."""
    anonymous = token()
    await student(conn, anonymous)
    await somebody_else(conn)

    held = await count_holdings(conn, await find_student(conn, user_id=3))
    rows = await read(conn, user_id=3)

    assert held == {
        "assessment_responses": 2,
        "assessment_scores": 1,
        "scoring_handoffs": 2,
        "assessment_drafts": 1,
        "assessment_claims": 1,
    }
    assert [row["record"] for row in rows] == [
        *["response"] * 2,
        "score",
        *["handoff"] * 2,
        *("draft", "claim", "action"),
    ]
    assert [row["anonymous"] for row in rows[:2]] == [False, True]
    assert anonymous not in json.dumps(rows, default=str)


async def test_what_people_did_to_his_answers_is_read(conn: AsyncConnection) -> None:
    """A retry or dismissal that names them, among others' or not; nobody's name, and no number of another's answer."""
    mine, other = [(await submit(conn, user_id=user_id))["response_id"] for user_id in (3, 4)]
    for ids in ([mine, other], [other], []):
        await record_action(conn, actor="Ada", action="retry", affected=2, details={"response_ids": ids})
    await record_action(conn, actor="Ada", action="purge", affected=9, details={"run": 1})

    rows = [row for row in await read(conn, user_id=3) if row["record"] == "action"]

    assert [(row["action"], row["response_ids"]) for row in rows] == [("retry", [mine])]
    assert "Ada" not in json.dumps(rows, default=str)


async def test_everything_under_a_token_is_read(conn: AsyncConnection) -> None:
    """What lies under it, and the claims of it, without whose they are."""
    anonymous = token()
    await student(conn, anonymous)
    await somebody_else(conn)

    rows = await read(conn, anonymous_token=anonymous)

    assert [row["record"] for row in rows] == ["response", "handoff", "claim"]
    assert "user_id" not in rows[2]


async def test_a_token_that_two_have_claimed_is_nobodys(conn: AsyncConnection) -> None:
    """What lies under it may be the other's."""
    shared = token()
    await submit(conn, anonymous_token=shared)
    for user_id in (3, 4):
        await request_claim(conn, anonymous_token=shared, user_id=user_id)

    found = await find_student(conn, user_id=3)

    assert (found.tokens, found.shared_tokens) == ((), 1)
    assert (await count_holdings(conn, found))["assessment_responses"] == 0
    assert shared not in repr(await find_student(conn, anonymous_token=shared))
    with pytest.raises(InvalidInputError):
        await find_student(conn, user_id=3, anonymous_token=shared)


@pytest.mark.commits
async def test_what_is_read_is_of_one_moment(engine: AsyncEngine) -> None:
    """A score that comes between two parts is not in it; and nothing can be written."""
    anonymous = token()
    await committed(engine, lambda conn: student(conn, anonymous))

    async with engine.connect() as conn:
        await begin_snapshot(conn)
        rows = read_holdings(conn, await find_student(conn, user_id=3))
        first = await anext(rows)

        async def meanwhile(other: AsyncConnection) -> None:
            [held] = await lease(other, first["response_id"])
            await settle_handoffs(other, [settlement(held)])
            await submit(other, user_id=3)

        await committed(engine, meanwhile)
        rest = [row["record"] async for row in rows]
        assert rest.count("score") == 1
        assert rest.count("handoff") == 2
        assert rest.count("response") == 1
        with pytest.raises(Exception, match="read-only"):
            await conn.execute(text("DELETE FROM assessment_drafts"))


# What is not read out of the tables that tell of students, and why.
UNTOLD = {
    "assessment_responses": {"user_id", "anonymous_token"},  # whose it is, and a secret
    "assessment_drafts": {"draft_id", "user_id", "anonymous_token"},
    "assessment_claims": {"user_id", "anonymous_token"},
    "assessment_scores": {"handoff_id"},  # the machine's
    "scoring_handoffs": {
        *("handoff_id", "lease_token", "leased_at", "suspicions", "trace_context"),  # the machine's
    },
    "scoring_actions": {"action_id", "actor", "details"},  # others' names and numbers
}
RECORDS = {
    "assessment_responses": "response",
    "assessment_drafts": "draft",
    "assessment_claims": "claim",
    "assessment_scores": "score",
    "scoring_handoffs": "handoff",
    "scoring_actions": "action",
}
# These tell of nobody who answers.
NOBODYS = {
    "users",  # the web app's
    "assessment_questions",
    "scoring_runs",
    "scoring_workers",
    "scoring_watermarks",
}


async def test_no_column_is_forgotten(conn: AsyncConnection) -> None:
    """A new table or column about students must be read out, or stand above with a reason."""
    await student(conn, token())
    rows = await read(conn, user_id=3)
    told = {row["record"]: set(row) - {"record", "anonymous"} for row in rows}

    assert {table.name for table in metadata.sorted_tables} == RECORDS.keys() | NOBODYS
    for table, record in RECORDS.items():
        columns = {column.name for column in metadata.tables[table].columns}
        assert columns - told[record] == UNTOLD[table], table
