"""Pickup when idle: from the moment the answer's commit returned to the scorer's first line. And what idling costs."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.contenders import QUEUES, TITLES, contender
from benchmarks.figures import Figures, Goal, quantile
from benchmarks.pipeline import ANSWER, pipeline
from producers import open_producer

if TYPE_CHECKING:
    from benchmarks.peers.settings import StackName
    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

# Every contender has its turn before the first has its second.
ROUNDS = 2
PICKUPS = 150
RAW_PICKUPS = 100
# Pauses of a fixed length could fall in step with a worker that polls.
PAUSE_SECONDS = (0.03, 0.08)
IDLE_SECONDS = 20.0
STEPS = ROUNDS * (1 + len(QUEUES)) + len(QUEUES)
OURS = "assessment-scoring"


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, user and system, seconds (``proc_pid_stat(5)``)."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - not a file of ours
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _pickups(line: Pipeline) -> list[float]:
    committed: dict[int, int] = {}
    async with open_producer(line.settings, engine=line.engine) as producer:
        await producer.submit(**ANSWER)
        await line.all_scored(1)
        for _ in range(PICKUPS):
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - no secret
            row = await producer.submit(**ANSWER)
            committed[row["response_id"]] = time.monotonic_ns()
        await line.all_scored(1 + PICKUPS)
    starts = line.starts()
    return [(starts[response_id] - at) / 1e6 for response_id, at in committed.items()]


async def _ours() -> tuple[list[float], float]:
    """Milliseconds of each pickup, and the share of a core that the idle worker used before."""
    async with pipeline() as line:
        with line.worker() as process:
            await asyncio.sleep(2)  # what a start leaves behind
            before, began = cpu_seconds(process.pid), time.perf_counter()
            await asyncio.sleep(IDLE_SECONDS / ROUNDS)
            idle = (cpu_seconds(process.pid) - before) / (time.perf_counter() - began)
            return await _pickups(line), idle


async def _theirs(name: str, pickups: int, stack: StackName = "sqlalchemy") -> list[float]:
    async with contender(name, stack=stack) as peer:
        await peer.run("pickup", 5)
        taken: list[float] = (await peer.run("pickup", pickups))["pickup_ms"]
    return taken


async def measure(step: Step) -> Figures:
    """Measure us and the peers, in turns; then the peers on the raw driver, once."""
    took: dict[str, list[float]] = {}
    idle: list[float] = []
    for turn in range(ROUNDS):
        for name in (OURS, *QUEUES):
            step(f"round {turn + 1} of {ROUNDS}, {TITLES.get(name, OURS)}")
            if name == OURS:
                pickups, share = await _ours()
                idle.append(share)
            else:
                pickups = await _theirs(name, PICKUPS // 2 if name == "arq" else PICKUPS)
            took.setdefault(name, []).extend(pickups)
    raw: dict[str, float] = {}
    for name in QUEUES:
        step(f"on the raw driver, {TITLES[name]}")
        raw[name] = statistics.median(await _theirs(name, RAW_PICKUPS, "asyncpg"))
    shown = {name: (statistics.median(taken), quantile(taken, 0.99)) for name, taken in took.items()}
    best = min(QUEUES, key=lambda name: shown[name][0])
    figures = Figures(
        "Pickup when idle, one answer at a time: commit to the scorer's first line",
        ("", "p50, ms", "p99, ms", "p50 of the best peer's", "p50 on the raw driver, ms"),
        [
            (
                TITLES.get(name, OURS),
                f"{p50:.1f}",
                f"{p99:.1f}",
                f"{p50 / shown[best][0]:.2f}",
                f"{raw[name]:.1f}" if name in raw else "",
            )
            for name, (p50, p99) in sorted(shown.items(), key=lambda item: item[1])
        ],
        notes=[
            f"Our idle worker uses {100 * statistics.mean(idle):.2f} % of a core.",
            f"{ROUNDS * PICKUPS} answers each, half as many for arq as it comes; on the raw driver {RAW_PICKUPS}.",
            "On the raw driver the peers' messages carry the answer's text, so that the job reads nothing.",
        ],
        values={name: {"p50_ms": p50, "p99_ms": p99} for name, (p50, p99) in shown.items()},
    )
    figures.values.update({"idle_share": statistics.mean(idle), "raw_driver_p50_ms": raw, "best_peer": best})
    figures.goals.extend(
        [
            Goal("pickup when idle, p50", shown[OURS][0], 4, unit="ms"),
            Goal("pickup when idle, p99", shown[OURS][1], 15, unit="ms"),
            Goal(
                f"pickup when idle, p50 against the best peer ({TITLES[best]})",
                shown[OURS][0] / shown[best][0],
                1.2,
            ),
            Goal("idle worker, share of a core", 100 * statistics.mean(idle), 1, unit="%"),
        ]
    )
    return figures
