"""End to end: 64 students at once, answers stored, handed off, scored by a scorer that takes no time, scores stored."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.contenders import BY_HAND, QUEUES, TITLES, contender
from benchmarks.figures import Figures, Goal
from benchmarks.pipeline import ANSWER, pipeline
from producers import open_producer
from storage import submit_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.peers.settings import StackName
    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step
    from producers import Producer

SUBMITTERS = 64
# Each round of a contender takes a few seconds; every contender has its turn before the first has its second.
ROUNDS = 3
ANSWERS = {"coalesced": 20_000, "own transaction": 5_000, "by_hand": 5_000, "by_hand_batched": 50_000}
PEER_ANSWERS = 2_500
# As many connections as submitters. The peers have twelve, with which they were as quick or quicker.
POOL_SIZE = SUBMITTERS
STEPS = ROUNDS * (2 + len(QUEUES) + len(BY_HAND)) + len(QUEUES) + len(BY_HAND)
OURS = {
    "coalesced": "assessment-scoring, producer.submit",
    "own transaction": "assessment-scoring, a transaction of the web app's own for each answer",
}


async def submit_all(submit: Callable[[], Awaitable[object]], answers: int) -> float:
    """Submit so many answers, 64 at a time.

    Returns:
        How many seconds it took until the last was acknowledged.
    """
    tickets = iter(range(answers))

    async def student() -> None:
        for _ in tickets:
            await submit()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(SUBMITTERS):
            group.create_task(student())
    return time.perf_counter() - began


def ways(line: Pipeline, producer: Producer) -> dict[str, Callable[[], Awaitable[object]]]:
    """How a web app submits: through the producer, or in transactions of its own."""

    async def coalesced() -> None:
        await producer.submit(**ANSWER)

    async def own_transaction() -> None:
        async with line.engine.begin() as conn:
            row = await submit_response(conn, **ANSWER)
        producer.announce([row["response_id"]])

    return {"coalesced": coalesced, "own transaction": own_transaction}


async def _ours(way: str) -> tuple[float, float]:
    """Answers a second, end to end and until the last was acknowledged."""
    answers = ANSWERS[way]
    async with pipeline(pool_size=POOL_SIZE) as line:
        with line.worker():
            async with open_producer(line.settings, engine=line.engine) as producer:
                submit = ways(line, producer)[way]
                await submit_all(submit, SUBMITTERS)  # connections are opened and statements prepared
                await line.all_scored(SUBMITTERS)
                began = time.perf_counter()
                submit_seconds = await submit_all(submit, answers)
                ended = await line.all_scored(SUBMITTERS + answers)
    return answers / (ended - began), answers / submit_seconds


async def _theirs(name: str, stack: StackName = "sqlalchemy") -> tuple[float, float]:
    async with contender(name, stack=stack) as peer:
        if name not in BY_HAND:
            await peer.run("throughput", SUBMITTERS)
        result = await peer.run("throughput", ANSWERS.get(name, PEER_ANSWERS))
    return result["answers"] / result["seconds"], result["answers"] / result["submit_seconds"]


async def measure(step: Step) -> Figures:
    """Measure us, the peers and both ways by hand, in turns; then the peers on the raw driver, once."""
    rates: dict[str, list[tuple[float, float]]] = {}
    for turn in range(ROUNDS):
        for name in (*OURS, *QUEUES, *BY_HAND):
            step(f"round {turn + 1} of {ROUNDS}, {(OURS | TITLES)[name]}")
            rates.setdefault(name, []).append(await (_ours(name) if name in OURS else _theirs(name)))
    raw: dict[str, float] = {}
    for name in (*QUEUES, *BY_HAND):
        step(f"on the raw driver, {TITLES[name]}")
        raw[name], _ = await _theirs(name, "asyncpg")
    median = {name: statistics.median(rate for rate, _ in taken) for name, taken in rates.items()}
    submits = {name: statistics.median(rate for _, rate in taken) for name, taken in rates.items()}
    best, best_raw = max(QUEUES, key=median.__getitem__), max(QUEUES, key=raw.__getitem__)
    figures = Figures(
        f"End to end, {SUBMITTERS} submitters, one worker process, a scorer that takes no time (medians of {ROUNDS} rounds)",
        ("", "answers/s", "of the best peer", "acknowledged/s", "on the raw driver"),
        [
            (
                (OURS | TITLES)[name],
                f"{rate:,.0f}",
                f"{rate / median[best]:.2f}",
                f"{submits[name]:,.0f}",
                f"{raw[name]:,.0f}" if name in raw else "",
            )
            for name, rate in sorted(median.items(), key=lambda item: -item[1])
        ],
        notes=[
            "All through SQLAlchemy on asyncpg, and messages name the answer, which the job reads. On the raw driver the peers",
            "write in autocommit and carry the answer's text in the message. Those on Redis store an answer and then hand it",
            "off: a crash in between loses it.",
        ],
        values={
            "answers_per_second": median,
            "acknowledged_per_second": submits,
            "raw_driver_answers_per_second": raw,
            "best_peer": best,
            "best_peer_on_the_raw_driver": best_raw,
            "coalesced_to_the_best_on_the_raw_driver": median["coalesced"] / raw[best_raw],
        },
    )
    for what, value, bound in (
        (
            f"end to end, coalesced, against the best peer ({TITLES[best]})",
            median["coalesced"] / median[best],
            8,
        ),
        ("end to end, coalesced, against plain arq", median["coalesced"] / median["arq"], 18),
        (
            "end to end, a transaction of its own for each answer, against the best peer",
            median["own transaction"] / median[best],
            1.5,
        ),
    ):
        figures.goals.append(Goal(what, value, bound, at_least=True))
    return figures
