"""Many answers at once, and commands that stand still in the middle of their work until a test has acted."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import text

from demo.servers import die_with_parent
from demo.worker_process import SCORING
from storage.claims import claim_assessment_responses
from storage.leases import pull_handoffs
from storage.settlements import settle_handoffs
from tests.databases import ROOT
from tests.factories import LEASE_SECONDS, MODULE, QUESTION, publish, settlement, submit
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.commands.conftest import Commands

_ANSWERS = text("""
    INSERT INTO assessment_responses (user_id, anonymous_token, module_slug, question_id, answer_text, created_at)
    SELECT CASE WHEN :anonymous THEN NULL ELSE 1 + n % 20 END, CASE WHEN :anonymous THEN 'token ' || n END,
        :module, :question, 'An answer.', now() - make_interval(days => :days)
    FROM generate_series(1, :number) AS n ORDER BY n
    RETURNING response_id
""")
_SCORES = text("""
    INSERT INTO assessment_scores (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)
    SELECT response_id, -response_id, :digest, 'old-model', 'old',
        '{"overall_score": 2, "usage": {"cost_usd": 0.25, "input_tokens": 90, "output_tokens": 10}}'
    FROM unnest(CAST(:ids AS bigint[])) AS response_id ORDER BY response_id
""")
# Whoever waits for a lock in this database, and is a client.
_WAITING = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND backend_start > :since
        AND cardinality(pg_blocking_pids(pid)) > 0
""")


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


async def bare_answers(
    conn: AsyncConnection, number: int, *, anonymous: bool = False, days_old: int = 0
) -> list[int]:
    """Answers with neither score nor handoff, as from before there were handoffs."""
    given = {
        "anonymous": anonymous,
        "module": MODULE,
        "question": QUESTION,
        "number": number,
        "days": days_old,
    }
    return sorted((await conn.execute(_ANSWERS, given)).scalars())


async def scored_answers(
    engine: AsyncEngine, number: int, *, anonymous: bool = False, days_old: int = 0
) -> list[int]:
    """Answers with a score each."""
    async with engine.begin() as conn:
        digest = await publish(conn)
        ids = await bare_answers(conn, number, anonymous=anonymous, days_old=days_old)
        await conn.execute(_SCORES, {"ids": ids, "digest": digest})
    return ids


async def score_all(engine: AsyncEngine) -> int:
    """Score what waits in the bulk lane, as workers do."""
    scored = 0
    while True:
        async with engine.begin() as conn:
            leases = await pull_handoffs(
                conn, lane="bulk", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=1000
            )
            if not leases:
                return scored
            scored += len(await settle_handoffs(conn, [settlement(held) for held in leases]))


async def counts(engine: AsyncEngine, query: str) -> dict[Any, int]:
    """Two columns, as a mapping."""
    async with engine.connect() as conn:
        return {key: number for key, number in (await conn.execute(text(query))).all()}  # noqa: C416 - rows are no pairs


async def scores_each(engine: AsyncEngine) -> dict[int, int]:
    """How many answers have how many scores."""
    return await counts(
        engine,
        "SELECT n, count(*) FROM (SELECT count(s.score_id) AS n FROM assessment_responses"
        " LEFT JOIN assessment_scores AS s USING (response_id) GROUP BY response_id) AS each GROUP BY n",
    )


async def latest_run(engine: AsyncEngine) -> dict[str, Any]:
    """The newest run's row."""
    async with engine.connect() as conn:
        found = await conn.execute(text("SELECT * FROM scoring_runs ORDER BY run_id DESC LIMIT 1"))
        return dict(row) if (row := found.mappings().first()) else {}


async def waiting(engine: AsyncEngine, number: int = 1, *, since: datetime = LONG_AGO) -> None:
    """Wait until so many sessions wait for a lock.

    Args:
        engine: Where.
        number: How many.
        since: Those that began before do not count: that of a killed process waits on until it has its lock.
    """

    async def look() -> bool:
        async with engine.connect() as conn:
            return int((await conn.execute(_WAITING, {"since": since})).scalar_one()) >= number

    await eventually(look)


@asynccontextmanager
async def held(engine: AsyncEngine, response_id: int) -> AsyncIterator[AsyncConnection]:
    """Whoever would refer to this response, or delete it, waits until the block ends."""
    async with engine.connect() as conn:
        await conn.execute(
            text("SELECT 1 FROM assessment_responses WHERE response_id = :id FOR UPDATE"),
            {"id": response_id},
        )
        yield conn
        await conn.rollback()


async def start_command(
    environment: Mapping[str, str], *words: str, stdout: int = asyncio.subprocess.PIPE
) -> Process:
    """Start a ``scoring`` command that goes on by itself; whoever starts it ends it."""
    return await asyncio.create_subprocess_exec(
        *SCORING,
        *words,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )


async def ended(process: Process) -> tuple[int | None, str, str]:
    """Wait for its end: exit status, standard output, standard error."""
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, (out or b"").decode(), err.decode()


async def history(commands: Commands) -> list[tuple[str, str, int]]:
    """Who did what, and to how many answers."""
    return [(row["actor"], row["action"], row["affected"]) for row in await commands.json("history")]


async def a_student(engine: AsyncEngine, anonymous: str) -> None:
    """User 3 has an answer; one more lies under a token that he has claimed; somebody else has answers too."""
    async with engine.begin() as conn:
        await publish(conn)
        await submit(conn, user_id=3)
        await submit(conn, anonymous_token=anonymous)
        await claim_assessment_responses(conn, anonymous_token=anonymous, user_id=3)
        await submit(conn, user_id=4)
