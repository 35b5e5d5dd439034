"""An exam that ends: 100,000 answers submitted within 30 s."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.figures import Figures, Goal, quantile
from benchmarks.pipeline import ANSWER, Pipeline, pipeline
from producers import open_producer

if TYPE_CHECKING:
    from benchmarks.progress import Step

ANSWERS = 100_000
WINDOW_SECONDS = 30.0
# Calls begin in groups, as an event loop of a web app would see them.
TICK_SECONDS = 0.01
STEPS = 1
# The last call begins so long before the window ends, so that its acknowledgement may still fall into it.
LAST_CALLS_SECONDS = 1.0


async def _submit_all(line: Pipeline) -> tuple[list[float], float]:
    """Begin the calls at an even pace, whether or not those before are over.

    Returns:
        Seconds that each took, and seconds from the first call to the last acknowledgement.
    """
    took: list[float] = []
    async with open_producer(line.settings, engine=line.engine) as producer:

        async def submit() -> None:
            called = time.perf_counter()
            await producer.submit(**ANSWER)
            took.append(time.perf_counter() - called)

        began = time.perf_counter()
        called = 0
        async with asyncio.TaskGroup() as group:
            while called < ANSWERS:
                share = (time.perf_counter() - began) / (WINDOW_SECONDS - LAST_CALLS_SECONDS)
                due = min(ANSWERS, round(ANSWERS * share))
                for _ in range(due - called):
                    group.create_task(submit())
                called = due
                await asyncio.sleep(TICK_SECONDS)
        return took, time.perf_counter() - began


async def measure(step: Step) -> Figures:
    """Measure one web process and one worker process."""
    step(f"{ANSWERS:,} answers")
    async with pipeline() as line:
        with line.worker():
            began = time.perf_counter()
            took, acknowledged_seconds = await _submit_all(line)
            scored_seconds = await line.all_scored(ANSWERS) - began
    latest = max(took)
    return Figures(
        f"{ANSWERS:,} answers within {WINDOW_SECONDS:g} s, one web process, one worker, a scorer that takes no time",
        ("", "measured"),
        [
            ("all acknowledged after, s", f"{acknowledged_seconds:.1f}"),
            ("a call, p50, ms", f"{quantile(took, 0.5) * 1000:.0f}"),
            ("a call, p99, ms", f"{quantile(took, 0.99) * 1000:.0f}"),
            ("the slowest call, ms", f"{latest * 1000:.0f}"),
            ("all scored after, s", f"{scored_seconds:.1f}"),
        ],
        notes=[f"Calls begin evenly over {WINDOW_SECONDS - LAST_CALLS_SECONDS:g} s."],
        values={
            "acknowledged_seconds": acknowledged_seconds,
            "slowest_call_seconds": latest,
            "scored_seconds": scored_seconds,
        },
        goals=[
            Goal("deadline, all acknowledged after", acknowledged_seconds, WINDOW_SECONDS, unit="s"),
            Goal("deadline, the slowest call", latest, 1, unit="s"),
            Goal("deadline, all scored after", scored_seconds, 60, unit="s"),
        ],
    )
