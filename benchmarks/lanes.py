"""How much a rescore of many answers delays a live one: time from the commit to the scorer's first line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from benchmarks.figures import Figures, quantile
from benchmarks.pipeline import ANSWER, pipeline
from producers import open_producer
from storage import submit_responses
from storage.dead import rescore_responses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step
    from producers import Producer

RESCORED = 100_000
CHUNK = 1_000
LIVE_PAUSE_SECONDS = 0.05
PHASE_SECONDS = 25.0
SLOTS = 200
# A model that takes its time, and none at all: then the machine itself is the limit.
SCORER_SECONDS = (1.0, 0.0)
STEPS = len(SCORER_SECONDS)
LIVE = ANSWER | {"user_id": 2}

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
            rows = await submit_responses(conn, [ANSWER] * CHUNK)
            await conn.execute(_SCORED)
        ids += [row["response_id"] for row in rows]
    return ids


async def _live_answers(producer: Producer, stop: asyncio.Event) -> dict[int, int]:
    """Submit one answer after the other; when each was acknowledged, by response."""
    acknowledged: dict[int, int] = {}
    while not stop.is_set():
        row = await producer.submit(**LIVE)
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


def _pickups(started: dict[int, int], acknowledged: dict[int, int]) -> list[float]:
    """Milliseconds from the acknowledgement to the scorer's first line, first start of each response."""
    return [
        max(0, started[response_id] - at) / 1e6
        for response_id, at in acknowledged.items()
        if response_id in started
    ]


async def _measure(line: Pipeline, scorer_seconds: float) -> list[tuple[str, list[float], int]]:
    ids = await _store_scored(line.engine, RESCORED)
    with line.worker(slots=SLOTS, scorer_seconds=scorer_seconds):
        async with open_producer(line.settings, engine=line.engine) as producer:
            await producer.submit(**LIVE)
            await asyncio.sleep(3)
            phases = [("alone", await _phase(producer))]
            asking = asyncio.create_task(_rescore(line.engine, ids))
            phases.append(("rescore", await _phase(producer)))
            await asking
            async with line.engine.connect() as conn:
                left = (
                    await conn.execute(text("SELECT count(*) FROM scoring_handoffs WHERE lane = 'bulk'"))
                ).scalar_one()
            await asyncio.sleep(scorer_seconds + 1)
    started = line.starts()
    return [(name, _pickups(started, acknowledged), int(left)) for name, acknowledged in phases]


async def measure(step: Step) -> Figures:
    """Measure both kinds of scorer, each alone and under a rescore of 100,000 answers."""
    figures = Figures(
        f"Pickup of a live answer while {RESCORED:,} answers are rescored (one worker, {SLOTS} slots)",
        ("scorer takes", "live answers", "alone p50, ms", "p99", "under rescore p50, ms", "p99", "p50 ratio"),
        [],
    )
    for seconds in SCORER_SECONDS:
        step(f"a scorer of {seconds:g} s")
        async with pipeline() as line:
            (_, alone, _), (_, busy, left) = await _measure(line, seconds)
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
