"""A model that takes its time: how near a worker comes to having every slot busy, and what that costs."""

from __future__ import annotations

import statistics
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.contenders import QUEUES, TITLES, contender
from benchmarks.figures import Figures, Goal
from benchmarks.pipeline import ANSWER, pipeline
from benchmarks.scorers import lease_counts
from benchmarks.throughput import SUBMITTERS, submit_all
from producers import open_producer
from storage import submit_responses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

SLOTS = 2_000
MODEL_SECONDS = 2.0
# Of the logarithm of the model's time: the slowest answer in a thousand takes five times the median.
SIGMA = 0.5
# Each slot scores so many answers; the first are full slots at the same moment, which nothing but a test does.
TURNS, SETTLING_TURNS = 10, 3
PEER_TURNS = 3
FLEET = 3
CHUNK = 500
STEPS = 4 + len(QUEUES)


class Run(NamedTuple):
    """What a run of our workers showed."""

    ideal_share: float
    largest_mib: float
    lease_statements_per_answer: float


def ideal_share(starts: Sequence[int], *, slots: int, mean_seconds: float) -> float:
    """How near the slots were to being busy all the time.

    With all of them busy each begins an answer every ``mean_seconds``, so that the answer begun ``slots`` later is begun
    ``mean_seconds`` later, on average (Little's law: slots = rate * mean time).

    Args:
        starts: When answers were begun with, nanoseconds.
        slots: Of all workers.
        mean_seconds: The scorer's mean time.
    """
    ordered = sorted(starts)
    settled = ordered[SETTLING_TURNS * slots :]
    cycles = [later - earlier for earlier, later in zip(settled, settled[slots:], strict=False)]
    return mean_seconds * 1e9 / statistics.fmean(cycles)


def _largest_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def _store(line: Pipeline, answers: int) -> None:
    for _ in range(answers // CHUNK):
        async with line.engine.begin() as conn:
            await submit_responses(conn, [ANSWER] * CHUNK)


async def _ours(*, workers: int, slots: int, sigma: float) -> Run:
    """Run workers with so many slots in all on a backlog."""
    answers = TURNS * slots
    async with pipeline() as line:
        await _store(line, answers)
        with ExitStack() as stack:
            running = [
                stack.enter_context(
                    line.worker(slots=slots // workers, scorer_seconds=MODEL_SECONDS, sigma=sigma)
                )
                for _ in range(workers)
            ]
            await line.all_scored(answers)
            largest = max(_largest_mib(process.pid) for process in running)
        # Later ones come from a backlog that no longer fills all slots.
        starts = sorted(line.starts().values())
        leases = sum(int(count) for count in lease_counts(line.starts_log).read_text().split())
    return Run(ideal_share(starts, slots=slots, mean_seconds=MODEL_SECONDS), largest, leases / answers)


async def _ours_from_submit() -> float:
    """The same as the peers do: submitted now, and counted from the first answer to the last score."""
    answers = PEER_TURNS * SLOTS
    async with pipeline(pool_size=SUBMITTERS) as line:
        with line.worker(slots=SLOTS, scorer_seconds=MODEL_SECONDS):
            async with open_producer(line.settings, engine=line.engine) as producer:
                await submit_all(partial(producer.submit, **ANSWER), SUBMITTERS)
                await line.all_scored(SUBMITTERS)
                began = time.perf_counter()
                await submit_all(partial(producer.submit, **ANSWER), answers)
                ended = await line.all_scored(SUBMITTERS + answers)
    return answers / (ended - began) / (SLOTS / MODEL_SECONDS)


async def _theirs(name: str) -> float:
    """Scores a second, as a share of the ideal rate, from the first answer to the last score."""
    answers = PEER_TURNS * SLOTS
    async with contender(name, scorer_seconds=MODEL_SECONDS, slots=SLOTS) as peer:
        result = await peer.run("throughput", answers)
    return float(answers / result["seconds"] / (SLOTS / MODEL_SECONDS))


async def measure(step: Step) -> Figures:
    """Measure one worker with a fixed and a log-normal model, a fleet, and the peers."""
    shapes = {
        "fixed": ("one worker, fixed time", 1, SLOTS, 0.0),
        "lognormal": ("one worker, log-normal time", 1, SLOTS, SIGMA),
        "fleet": (f"{FLEET} workers, fixed time", FLEET, FLEET * 1000, 0.0),
    }
    figures = Figures(
        f"A model of {MODEL_SECONDS:g} s and {SLOTS:,} slots: share of the ideal rate",
        (
            "",
            "slots",
            "first answer to last score",
            "while all slots have work",
            "largest worker, MiB",
            "lease statements an answer",
        ),
        [],
        notes=[
            f"First answer to last score: {PEER_TURNS} answers a slot are submitted, {SUBMITTERS} at a time, and start and end count;",
            "a queue that loses nothing reaches less than 100 %. While all slots have work: on a backlog, after the third answer",
            "of each slot.",
        ],
    )
    runs: dict[str, Run] = {}
    step("assessment-scoring, as the peers are measured")
    from_submit = await _ours_from_submit()
    for key, (title, workers, slots, sigma) in shapes.items():
        step(f"assessment-scoring, {title}")
        runs[key] = run = await _ours(workers=workers, slots=slots, sigma=sigma)
        figures.rows.append(
            (
                f"assessment-scoring, {title}",
                f"{slots:,}",
                f"{from_submit:.1%}" if key == "fixed" else "",
                f"{run.ideal_share:.1%}",
                f"{run.largest_mib:.0f}",
                f"{run.lease_statements_per_answer:.3f}",
            )
        )
        figures.values[key] = run._asdict() | ({"from_submit": from_submit} if key == "fixed" else {})
    for name in QUEUES:
        step(TITLES[name])
        try:
            share = await _theirs(name)
        except TimeoutError:
            figures.rows.append((TITLES[name], f"{SLOTS:,}", "not done within 180 s", "", "", ""))
            continue
        except subprocess.CalledProcessError:
            # Thousands of threads beside it leave a process that submits so little time that its pool gives up.
            figures.rows.append((TITLES[name], f"{SLOTS:,}", "stopped with an error", "", "", ""))
            continue
        figures.values[name] = {"from_submit": share}
        figures.rows.append((TITLES[name], f"{SLOTS:,}", f"{share:.1%}", "", "", ""))
    figures.goals.extend(
        [
            Goal(
                f"model-bound, {shapes[key][0]}, share of the ideal rate",
                100 * runs[key].ideal_share,
                97,
                at_least=True,
                unit="%",
            )
            for key in shapes
        ]
    )
    figures.goals.extend(
        [
            Goal(
                "model-bound, memory of a worker with 2,000 answers in flight",
                runs["lognormal"].largest_mib,
                200,
                unit="MiB",
            ),
            Goal(
                "model-bound, lease statements an answer",
                max(run.lease_statements_per_answer for run in runs.values()),
                1.05,
                unit="statements",
            ),
        ]
    )
    return figures
