"""What docs/scaling.md says about partitions works, as it stands there, on a real PostgreSQL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from storage import (
    claim_assessment_responses,
    create_engine,
    get_responses,
    publish_questions,
    submit_responses,
)
from storage.dead import rescore_responses
from storage.leases import lease_handoffs, pull_handoffs, renew_leases
from storage.settlements import Settlement, settle_handoffs
from storage.sweeps import overdue, revive_missed
from storage.verification import verify_settlement
from tests.databases import ROOT, add_users, raw_connection, upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

PAGE = (ROOT / "docs" / "scaling.md").read_text()
CONVERSION, SUBMIT, RETIREMENT = re.findall(r"<!-- tested: [^>]*-->\n```sql\n(.*?)```", PAGE, re.DOTALL)
QUESTION = {"module_slug": "m", "question_id": "q", "question_text": "Why?", "rubric": "Because."}
OLD = 3
LEASE_SECONDS = 30.0


async def submit(url: str, *keys: UUID) -> list[int]:
    """Store answers of user 1 with the page's statement."""
    number = len(keys)
    async with raw_connection(url) as connection:
        rows = await connection.fetch(
            SUBMIT, list(keys), [1] * number, ["m"] * number, ["q"] * number, ["Light."] * number
        )
    return [row["response_id"] for row in rows]


async def settle_all(engine: AsyncEngine) -> list[Settlement]:
    """Score everything that is due, with the real statements."""
    async with engine.begin() as conn:
        leases = await pull_handoffs(
            conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=100
        )
        held = [(lease["handoff_id"], lease["lease_token"]) for lease in leases]
        assert await renew_leases(conn, held, lease_seconds=LEASE_SECONDS) == {lease for lease, _ in held}
        scores = [
            Settlement(lease["handoff_id"], lease["created_at"], "model", "1", {"overall_score": 1})
            for lease in leases
        ]
        assert len(await settle_handoffs(conn, scores)) == len(scores)
    return scores


@pytest.fixture
async def url(make_database: Callable[[], Awaitable[str]]) -> str:
    """A database with a few old answers, one of them scored, partitioned as the page says."""
    url = await make_database()
    await upgrade(url)
    await add_users(url)
    engine = create_engine(url)
    async with engine.begin() as conn:
        await publish_questions(conn, [QUESTION])
        given: dict[str, Any] = {"module_slug": "m", "question_id": "q", "answer_text": "Water."}
        await submit_responses(conn, [{"user_id": 1, **given}] * OLD)
    await settle_all(engine)
    async with engine.begin() as conn:
        await submit_responses(conn, [{"anonymous_token": "secret", **given, "question_id": "other"}])
    await engine.dispose()
    async with raw_connection(url) as connection, connection.transaction():
        await connection.execute(CONVERSION)
    return url


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on it."""
    engine = create_engine(url)
    yield engine
    await engine.dispose()


async def test_an_answer_lives_as_before(url: str, engine: AsyncEngine) -> None:
    """Submit, lease, renew, settle, rescore, claim, sweep, page and verify all run on partitioned tables."""
    stored = await submit(url, uuid4(), uuid4())
    assert stored == [1000, 1001]

    scores = await settle_all(engine)

    assert len(scores) == 2
    async with engine.begin() as conn:
        assert await settle_handoffs(conn, scores) == []
        assert await claim_assessment_responses(conn, anonymous_token="secret", user_id=1) == 1
        await rescore_responses(conn, response_ids=[1, 1000])
        token = uuid4()
        leased = await lease_handoffs(
            conn, response_ids=[1, 1000], lease_token=token, lease_seconds=LEASE_SECONDS, limit=9
        )
        assert [lease["response_id"] for lease in leased] == [1, 1000]
        assert not await overdue(conn, lease_seconds=LEASE_SECONDS, overdue_seconds=0.0)
        assert await revive_missed(conn, after_handoff_id=0) == (0, 0)
        states = [row["scoring_state"] for row in await get_responses(conn, user_id=1)]
        assert states == ["scored", "scoring", "unpublished", "scored", "scored", "scoring"]
        verified = await verify_settlement(conn, full=True)
    assert verified["orphans"] == verified["settled_twice"] == []


async def test_the_database_refuses_what_it_refused(url: str, engine: AsyncEngine) -> None:
    """A key gives one response, also in another partition; a handoff one score; a response has a key."""
    key = uuid4()
    assert await submit(url, key) == [1000]
    assert await submit(url, key) == []
    await settle_all(engine)

    insert = "INSERT INTO assessment_responses (response_id, user_id, module_slug, question_id, answer_text"
    async with raw_connection(url) as connection:
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="fk_assessment_responses_submission_key"):
            await connection.execute(f"{insert}, submission_key) VALUES (900, 1, 'm', 'q', 'x', $1)", key)
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="fk_assessment_responses_submission_key"):
            await connection.execute(f"{insert}) VALUES (1500, 1, 'm', 'q', 'x')")
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("""
                INSERT INTO assessment_scores
                    (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)
                SELECT response_id, handoff_id, question_digest, 'model', '1', '{}' FROM assessment_scores LIMIT 1
            """)
        await connection.execute("ALTER TABLE assessment_submission_keys ALTER response_id RESTART 2000")
        with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
            await connection.fetch(SUBMIT, [uuid4()], [1], ["m"], ["q"], ["Light."])


async def test_a_partition_can_be_retired(url: str, engine: AsyncEngine) -> None:
    """What is old goes as a whole, and what is new stays."""
    await submit(url, uuid4())
    await settle_all(engine)

    async with raw_connection(url) as connection:
        await connection.execute(RETIREMENT)

    async with engine.connect() as conn:
        assert [row["response_id"] for row in await get_responses(conn, user_id=1)] == [1000]
    assert len(await submit(url, uuid4())) == 1
