"""What the web role may hand off, whatever it tries; and that no answer is scored against another question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage import InvalidInputError, submit_responses
from storage.dead import rescore_responses
from storage.errors import AccessDeniedError
from storage.leases import pull_handoffs, renew_leases
from storage.roles import grant_roles
from storage.settlements import hand_back_handoffs
from tests.factories import (
    LEASE_SECONDS,
    count,
    handoff_of,
    publish,
    release,
    submission,
    submit,
)
from tests.storage.acting import ROLES, acting_as, perform
from tests.storage.forging import RESCORE, Stored, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

OWN_QUESTION = "ck_scoring_handoffs_own_question"


@pytest.fixture
async def stored(conn: AsyncConnection) -> Stored:
    """What is there before anybody tries anything; the three roles exist."""
    await grant_roles(conn, ROLES)
    return await store(conn)


@pytest.mark.parametrize("statement", RESCORE)
async def test_a_web_app_cannot_ask_for_another_score(
    conn: AsyncConnection, stored: Stored, statement: str
) -> None:
    """A response that was stored before is not handed off by it again, in no way that SQL knows."""
    with pytest.raises(AccessDeniedError):
        async with acting_as(conn, "web") as web:
            await perform(web, stored.written(statement))

    assert await handoff_of(conn, stored.scored) is None
    waiting = await handoff_of(conn, stored.waiting)
    assert waiting is not None
    assert waiting["question_digest"] == stored.current


async def test_nor_hand_off_what_lies_about(conn: AsyncConnection, stored: Stored) -> None:
    """Not even a response that has neither score nor handoff: that is for ops to look into."""
    await conn.execute(text("DELETE FROM scoring_handoffs"))
    statement = stored.written(RESCORE[0].replace("scored", "waiting"))

    with pytest.raises(AccessDeniedError):
        async with acting_as(conn, "web") as web:
            await perform(web, statement)
    async with acting_as(conn, "ops") as ops:
        await perform(ops, statement)

    assert await handoff_of(conn, stored.waiting) is not None


# A response with its handoff, in one statement, as the web role may store them.
TOGETHER = (
    "WITH r AS (INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text, question_digest)"
    " VALUES (1, 'biology', 'photosynthesis', 'a', {pinned}) RETURNING response_id)"
    " INSERT INTO scoring_handoffs (response_id, question_digest, due_at) SELECT response_id, {digest}, {due} FROM r"
)


@pytest.mark.parametrize(
    ("pinned", "digest", "due"),
    [
        ("'{current}'", "'{current}'", "now()"),
        ("'{current}'", "'{current}'", "statement_timestamp()"),
        ("'{old}'", "'{old}'", "now()"),
        ("NULL", "NULL", "'infinity'"),
    ],
)
async def test_a_web_app_hands_off_what_it_stores(
    conn: AsyncConnection, stored: Stored, pinned: str, digest: str, due: str
) -> None:
    """As it is pinned, due now; or never, while it is pinned to nothing."""
    before = await count(conn, "scoring_handoffs")

    async with acting_as(conn, "web") as web:
        await perform(web, stored.written(TOGETHER.format(pinned=pinned, digest=digest, due=due)))

    assert await count(conn, "scoring_handoffs") == before + 1


@pytest.mark.parametrize(
    ("pinned", "digest", "due"),
    [
        ("'{current}'", "'{old}'", "now()"),
        ("'{current}'", "'{foreign}'", "now()"),
        ("'{current}'", "NULL", "'infinity'"),
        ("NULL", "'{current}'", "now()"),
        ("NULL", "'{foreign}'", "now()"),
        ("'{current}'", "'{current}'", "now() + interval '1 hour'"),
        ("'{current}'", "'{current}'", "clock_timestamp() + interval '1 second'"),
        ("'{current}'", "'{current}'", "now() - interval '1 microsecond'"),
        ("'{current}'", "'{current}'", "'2000-01-01'"),
        ("'{current}'", "'{current}'", "'-infinity'"),
    ],
)
async def test_nothing_else_about_it_is_the_web_apps_choice(
    conn: AsyncConnection, stored: Stored, pinned: str, digest: str, due: str
) -> None:
    """Not the content it is scored against, and not its place in the queue."""
    before = await count(conn, "assessment_responses")

    with pytest.raises(AccessDeniedError):
        async with acting_as(conn, "web") as web:
            await perform(web, stored.written(TOGETHER.format(pinned=pinned, digest=digest, due=due)))

    assert await count(conn, "assessment_responses") == before


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_a_submit_is_as_free_as_before(engine: AsyncEngine, isolation: str) -> None:
    """In every isolation, alone, many at once, repeated, unpublished, and in a savepoint."""
    async with engine.connect() as conn, conn.begin() as undone:
        await conn.execute(text(f"SET TRANSACTION ISOLATION LEVEL {isolation}"))
        await grant_roles(conn, ROLES)
        await publish(conn)
        key = uuid4()
        async with acting_as(conn, "web") as web:
            first = await submit(web, submission_key=key)
            await submit_responses(
                web, [submission(), submission(submission_key=key), submission(question_id="q")]
            )
            async with web.begin_nested():
                await submit(web)
            assert await submit(web, submission_key=key) == first
        assert await count(conn, "scoring_handoffs") == 4
        await undone.rollback()


@pytest.mark.parametrize("part", [None, "web"])
async def test_a_response_is_pinned_to_its_own_question(
    conn: AsyncConnection, stored: Stored, part: str | None
) -> None:
    """Nobody may store that a student was asked something else."""
    statement = stored.written(TOGETHER.format(pinned="'{foreign}'", digest="'{foreign}'", due="now()"))

    if part is not None:
        await conn.execute(text(f"SET LOCAL ROLE {ROLES[part]}"))

    with pytest.raises(IntegrityError, match="fk_assessment_responses_pinned"):
        await perform(conn, statement)


FOREIGN = (
    ("ops", "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({scored}, '{foreign}')"),
    (
        "ops",
        (
            "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES ({waiting}, '{foreign}')"
            " ON CONFLICT (response_id) DO UPDATE SET question_digest = excluded.question_digest"
        ),
    ),
    ("ops", "UPDATE scoring_handoffs SET response_id = {elsewhere}"),
    ("ops", "UPDATE scoring_handoffs SET question_digest = '{foreign}'"),
    ("worker", "UPDATE scoring_handoffs SET question_digest = '{foreign}', due_at = now()"),
)


@pytest.mark.parametrize(("part", "statement"), FOREIGN)
async def test_nobody_has_an_answer_scored_against_another_question(
    conn: AsyncConnection, stored: Stored, part: str, statement: str
) -> None:
    """Neither those who may rescore, nor a worker that revives what waited; the error names the rule."""
    elsewhere = await submit(conn, question_id="easy")
    await conn.execute(
        text("DELETE FROM scoring_handoffs WHERE response_id = :id"), {"id": elsewhere["response_id"]}
    )
    stored.names["elsewhere"] = elsewhere["response_id"]

    with pytest.raises(InvalidInputError) as refused:
        async with acting_as(conn, part) as role:
            await perform(role, stored.written(statement))

    assert refused.value.field == OWN_QUESTION


async def test_one_bad_row_refuses_its_statement(conn: AsyncConnection, stored: Stored) -> None:
    """Wherever it stands among good ones; a superuser is refused as well."""
    await conn.execute(text("DELETE FROM scoring_handoffs"))
    good, bad = (stored.waiting, stored.current), (stored.scored, stored.foreign)

    for rows in ((good, bad), (bad, good)):
        values = ", ".join(f"({response_id}, '{digest}')" for response_id, digest in rows)
        with pytest.raises(InvalidInputError, match=OWN_QUESTION):
            async with conn.begin_nested():
                await perform(
                    conn, f"INSERT INTO scoring_handoffs (response_id, question_digest) VALUES {values}"
                )

    assert await count(conn, "scoring_handoffs") == 0


@pytest.mark.parametrize("digest", ["'{old}'", "'{current}'", "NULL"])
async def test_other_editions_of_its_question_are_no_other_question(
    conn: AsyncConnection, stored: Stored, digest: str
) -> None:
    """A worker revives with what is current, ops rescore against what they like, and both may take it back."""
    due = "'infinity'" if digest == "NULL" else "now()"
    values = stored.written(f"question_digest = {digest}, due_at = {due}")

    for part in ("worker", "ops"):
        async with acting_as(conn, part) as role:
            await perform(role, f"UPDATE scoring_handoffs SET {values}")
    async with acting_as(conn, "ops") as ops:
        assert await rescore_responses(ops, response_ids=[stored.scored]) == [stored.scored]


async def test_no_lease_pays_for_it(conn: AsyncConnection, stored: Stored) -> None:
    """Leasing, renewing and handing back, which are most updates of a handoff, call no trigger of ours."""

    async def explained(work: Any) -> Sequence[str]:
        """Which triggers a statement of storage calls; it is run."""
        before = await conn.execute(text("SELECT calls FROM pg_stat_xact_user_functions"))
        known = sum(before.scalars())
        await work
        after = await conn.execute(
            text("SELECT funcname FROM pg_stat_xact_user_functions WHERE calls > :n"), {"n": known}
        )
        return sorted(after.scalars())

    await conn.execute(text("SET LOCAL track_functions = 'all'"))
    held: list[Any] = []

    async def take() -> None:
        held.extend(
            await pull_handoffs(conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=9)
        )

    assert await explained(take()) == []
    [one] = held
    renewed = renew_leases(conn, [(one["handoff_id"], one["lease_token"])], lease_seconds=LEASE_SECONDS)
    assert await explained(renewed) == []
    assert await explained(hand_back_handoffs(conn, [release(one)])) == []
    changed = conn.execute(text("UPDATE scoring_handoffs SET question_digest = :old"), {"old": stored.old})
    assert await explained(changed) == ["scoring_handoffs_redirected"]
