"""How much a rescore of many answers delays a live one: time from the commit to the scorer's first line."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from benchmarks.figures import Figures, quantile
from benchmarks.scorers import LOG_VARIABLE, NAME, SECONDS_VARIABLE
from demo.servers import embedded_servers
from demo.worker_process import worker_process
from producers import ProducerSettings, open_producer
from storage import submit_responses
from storage.dead import rescore_responses
from storage.questions import publish_questions
from tests.databases import add_users, upgrade

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.progress import Step
    from demo.servers import Servers
    from producers import Producer

RESCORED = 100_000
CHUNK = 1_000
LIVE_PAUSE_SECONDS = 0.05
PHASE_SECONDS = 25.0
SLOTS = 200
# A model that takes its time, and none at all: then the machine itself is the limit.
SCORER_SECONDS = (1.0, 0.0)
STEPS = len(SCORER_SECONDS)
QUESTION = {"module_slug": "bench", "question_id": "q", "question_text": "Why?", "rubric": "Because."}
ANSWER: dict[str, Any] = {"module_slug": "bench", "question_id": "q", "answer_text": "word " * 120}

# As if all of them had been scored.
_SCORED = text("""
    WITH gone AS (DELETE FROM scoring_handoffs RETURNING response_id, handoff_id, question_digest)
    INSERT INTO assessment_scores (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)
    SELECT response_id, handoff_id, question_digest, 'old', '1', '{"overall_score": 1}' FROM gone
""")


async def _store_scored(engine: AsyncEngine, number: int) -> list[int]:
    ids: list[int] = []
    for _ in range(number // CHUNK):
        async with engine.begin() as conn:
            rows = await submit_responses(conn, [{"user_id": 1, **ANSWER} for _ in range(CHUNK)])
            await conn.execute(_SCORED)
        ids += [row["response_id"] for row in rows]
    return ids


async def _live_answers(producer: Producer, stop: asyncio.Event) -> dict[int, int]:
    """Submit one answer after the other; when each was acknowledged, by response."""
    acknowledged: dict[int, int] = {}
    while not stop.is_set():
        row = await producer.submit(user_id=2, **ANSWER)
        acknowledged[row["response_id"]] = time.monotonic_ns()
        await asyncio.sleep(LIVE_PAUSE_SECONDS)
    return acknowledged


async def _rescore(engine: AsyncEngine, ids: Sequence[int]) -> None:
    for start in range(0, len(ids), CHUNK):
        async with engine.begin() as conn:
            await rescore_responses(conn, response_ids=ids[start : start + CHUNK])


async def _phase(producer: Producer) -> dict[int, int]:
    stop = asyncio.Event()
    live = asyncio.create_task(_live_answers(producer, stop))
    await asyncio.sleep(PHASE_SECONDS)
    stop.set()
    return await live


def _pickups(log: Path, acknowledged: dict[int, int]) -> list[float]:
    """Milliseconds from the acknowledgement to the scorer's first line, first start of each response."""
    started: dict[int, int] = {}
    for line in log.read_text().splitlines():
        response_id, at = map(int, line.split())
        started.setdefault(response_id, at)
    return [
        max(0, started[response_id] - at) / 1e6
        for response_id, at in acknowledged.items()
        if response_id in started
    ]


async def _measure(servers: Servers, scorer_seconds: float, log: Path) -> list[tuple[str, list[float], int]]:
    settings = ProducerSettings(database_url=servers.database_url, redis_url=servers.redis_url)
    engine = settings.engine()
    environment = {
        **os.environ,
        "SCORING_DATABASE_URL": servers.database_url,
        "SCORING_REDIS_URL": servers.redis_url,
        "SCORING_SCORER": NAME,
        "SCORING_SLOTS": str(SLOTS),
        "SCORING_LOG_LEVEL": "WARNING",
        LOG_VARIABLE: str(log),
        SECONDS_VARIABLE: str(scorer_seconds),
    }
    async with engine.begin() as conn:
        await publish_questions(conn, [QUESTION])
    ids = await _store_scored(engine, RESCORED)
    with worker_process(environment, log.with_suffix(".worker.log")):
        async with open_producer(settings, engine=engine) as producer:
            await producer.submit(user_id=2, **ANSWER)
            await asyncio.sleep(3)  # the worker starts
            phases = [("alone", await _phase(producer))]
            asking = asyncio.create_task(_rescore(engine, ids))
            phases.append(("rescore", await _phase(producer)))
            await asking
            async with engine.connect() as conn:
                left = (
                    await conn.execute(text("SELECT count(*) FROM scoring_handoffs WHERE lane = 'bulk'"))
                ).scalar_one()
            await asyncio.sleep(scorer_seconds + 1)
    await engine.dispose()
    return [(name, _pickups(log, acknowledged), int(left)) for name, acknowledged in phases]


async def measure(step: Step) -> Figures:
    """Measure both kinds of scorer, each alone and under a rescore of 100,000 answers."""
    figures = Figures(
        f"Pickup of a live answer while {RESCORED:,} answers are rescored (one worker, {SLOTS} slots)",
        ("scorer takes", "live answers", "alone p50, ms", "p99", "under rescore p50, ms", "p99", "p50 ratio"),
        [],
    )
    for seconds in SCORER_SECONDS:
        step(f"a scorer of {seconds:g} s")
        with embedded_servers() as servers, tempfile.TemporaryDirectory() as folder:
            await upgrade(servers.database_url)
            await add_users(servers.database_url)
            (_, alone, _), (_, busy, left) = await _measure(servers, seconds, Path(folder) / "starts")
        ratio = quantile(busy, 0.5) / quantile(alone, 0.5)
        shown = [quantile(values, share) for values in (alone, busy) for share in (0.5, 0.99)]
        figures.rows.append(
            (
                f"{seconds:g} s",
                f"{len(alone) + len(busy):,}",
                *(f"{value:.1f}" for value in shown),
                f"{ratio:.2f}",
            )
        )
        figures.notes.append(
            f"With {seconds:g} s: {left:,} of {RESCORED:,} were still to be rescored when the measurement ended."
        )
        figures.values[f"{seconds:g}"] = {
            "alone_ms": shown[:2],
            "rescore_ms": shown[2:],
            "ratio": ratio,
            "left": left,
        }
    return figures
