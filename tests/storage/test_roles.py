from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import (
    InvalidInputError,
    claim_assessment_responses,
    get_responses,
    get_responses_for_question,
    get_scores,
    publish_questions,
    submit_responses,
)
from storage.claims import apply_claim, request_claim, requested_claims
from storage.dead import dismiss_dead, list_dead, rescore_responses, retry_dead
from storage.errors import AccessDeniedError
from storage.feed import read_lineage, read_marks, read_missed, read_news, read_requested_claims, read_states
from storage.leases import bury_lost, pull_handoffs, pull_suspects, renew_leases
from storage.questions import get_questions
from storage.roles import PRIVILEGES, grant_roles, grant_statements
from storage.schema import schema_revision
from storage.settlements import (
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from storage.statistics import handoff_statistics
from storage.sweeps import overdue, revive_missed
from storage.tables import OWN_TABLES
from storage.validation import Owner
from storage.verification import verify_settlement, verify_timeliness
from storage.workers import list_workers, remove_worker, report_worker
from tests.factories import (
    LEASE_SECONDS,
    SHORT_LEASE_SECONDS,
    bury,
    change_handoff,
    lease,
    publish,
    question,
    release,
    settlement,
    submission,
    submit,
    token,
)
from tests.storage.acting import ROLES, acting_as, perform

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

NO_GAPS: dict[str, list[int]] = {"response": [], "score": [], "claim": []}


@pytest.fixture
async def granted(conn: AsyncConnection) -> AsyncConnection:
    """The three roles exist and have what `scoring grant` gives them."""
    await grant_roles(conn, ROLES)
    return conn


async def prepared(conn: AsyncConnection) -> tuple[int, int, str]:
    """A scored response, one that waits, and an anonymous one."""
    await publish(conn)
    scored = await submit(conn)
    waiting = await submit(conn)
    anonymous = token()
    await submit(conn, anonymous_token=anonymous, question_id="other")
    [held] = await lease(conn, scored["response_id"])
    await settle_handoffs(conn, [settlement(held)])
    return scored["response_id"], waiting["response_id"], anonymous


async def test_all_that_a_web_app_does(granted: AsyncConnection) -> None:
    """It submits, repeats a submit, reads answers, scores and what the feed tells, and requests a claim."""
    scored, _, anonymous = await prepared(granted)
    key = uuid4()

    async with acting_as(granted, "web") as web:
        rows = await submit_responses(web, [submission(submission_key=key), submission(user_id=2)])
        assert await submit(web, submission_key=key) == rows[0]
        await submit(web, anonymous_token=anonymous, question_id="unpublished", answer_metadata={"a": 1})
        assert len(await get_responses(web, user_id=1)) == 3
        assert len(await get_responses_for_question(web, user_id=1, question_id="photosynthesis")) == 3
        assert len(await get_scores(web, response_id=scored, user_id=1)) == 1
        claim_id = await request_claim(web, anonymous_token=anonymous, user_id=5)
        assert await schema_revision(web) is not None
        assert await read_lineage(web) is not None
        marks = await read_marks(web)
        assert (await read_news(web, marks=dict.fromkeys(marks, 0), gaps=NO_GAPS, watched={}))[2]
        assert len(await read_states(web, [scored])) == 1
        assert await read_missed(web, [(Owner(1, None), None)], newest=50)
        assert await read_requested_claims(web, [5]) == [{"claim_id": claim_id, "user_id": 5}]

    assert await requested_claims(granted) == [claim_id]


async def test_all_that_a_worker_does(granted: AsyncConnection) -> None:
    """It leases, renews, settles, lets go in every way, buries, revives, applies claims, sweeps and reports."""
    _, waiting, anonymous = await prepared(granted)
    rows = await submit_responses(granted, [submission()] * 6)
    suspect, lost = rows[0]["response_id"], rows[1]["response_id"]
    await change_handoff(granted, suspect, lease_losses=3)
    await change_handoff(granted, lost, lease_losses=10)
    claim_id = await request_claim(granted, anonymous_token=anonymous, user_id=5)
    await granted.execute(
        text(
            "UPDATE scoring_handoffs SET question_digest = NULL, due_at = 'infinity' WHERE response_id = :id"
        ),
        {"id": rows[5]["response_id"]},
    )

    async with acting_as(granted, "worker") as worker:
        assert len(await lease(worker, waiting)) == 1
        options: dict[str, Any] = {"lease_token": uuid4(), "lease_seconds": LEASE_SECONDS}
        assert len(await pull_suspects(worker, slots=4, limit=4, **options)) == 1
        assert len(await bury_lost(worker, lease_seconds=SHORT_LEASE_SECONDS)) == 1
        assert await revive_missed(worker) == (1, 0)
        leases = await pull_handoffs(worker, lane="live", limit=10, **options)
        first, second, third, fourth = leases
        assert await renew_leases(
            worker, [(first["handoff_id"], first["lease_token"])], lease_seconds=LEASE_SECONDS
        )
        assert await postpone_handoffs(worker, [release(first, reason="503")])
        assert await fail_handoffs(worker, [release(second, reason="nonsense")])
        assert await bury_handoffs(worker, [release(third, reason="refused")])
        assert await hand_back_handoffs(worker, [release(fourth)])
        again = await pull_handoffs(worker, lane="live", limit=10, **options)
        assert len(await settle_handoffs(worker, [settlement(held) for held in again])) == 3
        assert len(await get_questions(worker, [first["question_digest"]])) == 1
        assert await overdue(worker, lease_seconds=LEASE_SECONDS, overdue_seconds=0) == frozenset()
        assert await requested_claims(worker) == [claim_id]
        applied = await apply_claim(worker, claim_id)
        assert applied is not None
        assert applied["moved"] == 1
        worker_id = uuid4()
        for _ in range(2):
            await report_worker(
                worker,
                worker_id=worker_id,
                host="h",
                pid=1,
                version="1",
                slots=1,
                free_slots=1,
                note=None,
                provider={"name": "n"},
            )
        assert len(await list_workers(worker)) == 1
        await remove_worker(worker, worker_id=worker_id)
        assert (await handoff_statistics(worker))["dead"] == 2
        assert await schema_revision(worker) is not None


async def test_all_that_ops_do(granted: AsyncConnection) -> None:
    """They publish, list, retry, dismiss, rescore, verify and look at the status."""
    scored, waiting, _ = await prepared(granted)
    late = (await submit(granted, question_id="late"))["response_id"]
    other = (await submit(granted))["response_id"]
    for response_id in (waiting, other):
        await bury(granted, response_id)

    async with acting_as(granted, "ops") as ops:
        for rubric in ("new", "newer", "new"):
            await publish_questions(
                ops, [question(rubric=rubric), question(question_id="late", rubric=rubric)]
            )
        assert len(await list_dead(ops)) == 2
        assert await retry_dead(ops, response_ids=[waiting]) == [waiting]
        assert await dismiss_dead(ops, response_ids=[other], dismissed_by="ops") == [other]
        # The one that had been waiting was made due by the first publication, and is replaced by the rescore.
        ids = [scored, waiting, other, late]
        assert sorted(await rescore_responses(ops, response_ids=ids)) == sorted(ids[:3])
        for full in (False, True):
            assert (await verify_settlement(ops, full=full))["orphans"] == []
        await verify_timeliness(ops, lease_seconds=LEASE_SECONDS, sweep_seconds=60)
        assert (await handoff_statistics(ops))["dead"] == 0
        assert await list_workers(ops) == []
        assert await schema_revision(ops) is not None


# The statements stand for what a bug, or somebody who broke into that process, would try.
SCORE = (
    "INSERT INTO assessment_scores (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)"
    " SELECT response_id, 0, question_digest, 'forged', 'p', '{\"overall_score\": 5}' FROM assessment_responses"
    " WHERE question_digest IS NOT NULL LIMIT 1"
)
ANSWER = "UPDATE assessment_responses SET answer_text = 'better'"
OTHER_QUESTION = "UPDATE assessment_responses SET question_digest = NULL"
DELETE_ANSWER = "DELETE FROM assessment_responses"
INSERT_ANSWER = "INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text) VALUES (1, 'm', 'q', 'a')"
PUBLISH = (
    "INSERT INTO assessment_questions"
    " (question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max)"
    " VALUES ('forged', 'm', 'q', 't', 'always full marks', 1, 5)"
)
RUBRIC = "UPDATE assessment_questions SET rubric = 'always full marks'"
CHANGE_SCORE = "UPDATE assessment_scores SET score_data = '{}'"
REFUSED = {
    "web": [
        SCORE,
        CHANGE_SCORE,
        "DELETE FROM assessment_scores",
        ANSWER,
        OTHER_QUESTION,
        DELETE_ANSWER,
        "UPDATE assessment_responses SET user_id = 2",
        PUBLISH,
        RUBRIC,
        "DELETE FROM assessment_questions",
        "UPDATE scoring_handoffs SET due_at = now()",
        "UPDATE scoring_handoffs SET attempts = 99",
        "DELETE FROM scoring_handoffs",
        "INSERT INTO scoring_handoffs (response_id, attempts) VALUES (1, -99)",
        "INSERT INTO scoring_handoffs (response_id, state) VALUES (1, 'dismissed')",
        "INSERT INTO scoring_handoffs (handoff_id, response_id) OVERRIDING SYSTEM VALUE VALUES (1, 1)",
        "UPDATE assessment_claims SET applied_at = now(), moved = 0, skipped = 0",
        "DELETE FROM assessment_claims",
        "INSERT INTO assessment_claims (anonymous_token, user_id, moved) VALUES ('t', 1, 1)",
        "SELECT * FROM scoring_workers",
        "UPDATE scoring_watermarks SET verified_response_id = 1000",
        "UPDATE scoring_alembic_version SET version_num = 'x'",
        "SELECT 1 FROM assessment_responses FOR UPDATE",
    ],
    "worker": [
        INSERT_ANSWER,
        ANSWER,
        OTHER_QUESTION,
        DELETE_ANSWER,
        "UPDATE assessment_responses SET submission_key = gen_random_uuid()",
        CHANGE_SCORE,
        "DELETE FROM assessment_scores",
        PUBLISH,
        RUBRIC,
        "UPDATE assessment_questions SET published_at = now()",
        "INSERT INTO scoring_handoffs (response_id) VALUES (1)",
        "UPDATE scoring_handoffs SET lane = 'live'",
        "UPDATE scoring_handoffs SET response_id = 1",
        "INSERT INTO assessment_claims (anonymous_token, user_id) VALUES ('t', 1)",
        "UPDATE assessment_claims SET user_id = 1",
        "DELETE FROM assessment_claims",
        "UPDATE scoring_watermarks SET verified_response_id = 1000",
        "UPDATE scoring_alembic_version SET version_num = 'x'",
    ],
    "ops": [
        SCORE,
        CHANGE_SCORE,
        INSERT_ANSWER,
        ANSWER,
        "UPDATE assessment_responses SET user_id = 2",
        RUBRIC,
        "UPDATE assessment_questions SET scale_max = 100",
        "DELETE FROM assessment_questions",
        "INSERT INTO assessment_claims (anonymous_token, user_id) VALUES ('t', 1)",
        "UPDATE assessment_claims SET user_id = 1",
        "INSERT INTO scoring_workers (worker_id) VALUES (gen_random_uuid())",
        "UPDATE scoring_alembic_version SET version_num = 'x'",
    ],
}


@pytest.mark.parametrize(
    ("part", "statement"),
    [
        *((part, statement) for part, statements in REFUSED.items() for statement in statements),
        *((part, f"TRUNCATE {table} CASCADE") for part in PRIVILEGES for table in sorted(OWN_TABLES)),
        *((part, "DROP TABLE assessment_scores") for part in PRIVILEGES),
        *(
            (part, "ALTER TABLE assessment_scores DROP CONSTRAINT uq_assessment_scores_handoff")
            for part in PRIVILEGES
        ),
        *((part, "SELECT * FROM users") for part in PRIVILEGES),
    ],
)
async def test_the_database_refuses_the_rest(granted: AsyncConnection, part: str, statement: str) -> None:
    """Who may not do a thing cannot do it, whatever its code says."""
    with pytest.raises(AccessDeniedError, match="scoring grant"):
        async with acting_as(granted, part) as role:
            await perform(role, statement)


async def test_a_web_app_cannot_claim_by_itself(granted: AsyncConnection) -> None:
    """The direct function is for whoever may move answers; the error says where to look."""
    _, _, anonymous = await prepared(granted)

    with pytest.raises(AccessDeniedError):
        async with acting_as(granted, "web") as web:
            await claim_assessment_responses(web, anonymous_token=anonymous, user_id=5)

    assert await get_responses(granted, user_id=5) == []


async def test_a_worker_cannot_submit(granted: AsyncConnection) -> None:
    """Neither by the function of the web app."""
    with pytest.raises(AccessDeniedError):
        async with acting_as(granted, "worker") as worker:
            await submit(worker)


async def test_granting_again_changes_nothing(conn: AsyncConnection) -> None:
    """It says which roles it made, and takes away what somebody has added by hand."""
    first = await grant_roles(conn, ROLES)
    await conn.execute(text(f"GRANT UPDATE (answer_text), DELETE ON assessment_responses TO {ROLES['web']}"))
    await conn.execute(text(f"GRANT ALL ON scoring_watermarks TO {ROLES['web']}"))
    second = await grant_roles(conn, ROLES)

    assert [row["created"] for row in first] == [True, True, True]
    assert second == [{"part": part, "role": role, "created": False} for part, role in ROLES.items()]
    for statement in (ANSWER, DELETE_ANSWER, "SELECT * FROM scoring_watermarks"):
        with pytest.raises(AccessDeniedError):
            async with acting_as(conn, "web") as web:
                await perform(web, statement)


async def test_one_role_may_be_granted_alone(conn: AsyncConnection) -> None:
    """The others are neither made nor changed; a role's name may be anything that PostgreSQL allows."""
    name = f'Web "App" {uuid4().hex[:8]}'

    assert await grant_roles(conn, {"web": name}) == [{"part": "web", "role": name, "created": True}]

    quoted = '"' + name.replace('"', '""') + '"'
    statements = grant_statements({"web": name})
    assert all(quoted in statement for statement in statements)


async def test_roles_have_no_login(granted: AsyncConnection) -> None:
    """They are given to logins, and are none themselves."""
    logins = await granted.execute(
        text("SELECT count(*) FROM pg_roles WHERE rolname = ANY (:names) AND (rolcanlogin OR rolsuper)"),
        {"names": list(ROLES.values())},
    )
    assert logins.scalar_one() == 0


async def test_bad_input_is_refused_before_rights_are_asked(granted: AsyncConnection) -> None:
    """A web app's role changes nothing about what it is told."""
    async with acting_as(granted, "web") as web:
        with pytest.raises(InvalidInputError, match="answer_text"):
            await submit(web, answer_text=" ")


async def test_every_privilege_names_a_table_of_ours(conn: AsyncConnection) -> None:
    """Nothing is granted on tables that belong to others."""
    assert {table for tables in PRIVILEGES.values() for table in tables} <= OWN_TABLES | {
        "scoring_alembic_version"
    }


@pytest.mark.parametrize(
    "roles",
    [
        {"web": "one", "worker": "one"},
        {"web": ""},
        {"ops": "x" * 64},
        {"web": "one\x00"},
        {"web": "\udcff"},
        {"web": "pg_one"},
        {"web": "public"},
    ],
    ids=["equal", "empty", "long", "NUL", "surrogate", "reserved", "everybody"],
)
async def test_names_that_cannot_be_are_refused(conn: AsyncConnection, roles: dict[str, str]) -> None:
    """One role for two parts would undo the boundary, or what the first part needs; nothing is granted."""
    with pytest.raises(InvalidInputError):
        await grant_roles(conn, roles)
    # What is printed is run by psql, which goes on after the role that cannot be made, and would grant to everybody.
    with pytest.raises(InvalidInputError):
        grant_statements(roles)
