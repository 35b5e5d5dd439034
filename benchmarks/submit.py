"""What a submit costs beside a bare INSERT through the same stack: alone, and with 64 at once."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
)
from sqlalchemy.dialects.postgresql import JSONB

from benchmarks.figures import Figures, Goal, quantile
from benchmarks.pipeline import ANSWER, pipeline
from benchmarks.throughput import SUBMITTERS, submit_all
from producers import open_producer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

# One of each in turn, so that whatever else the machine does meets all of them.
ALONE = 2_000
WARM_UP = 100
AT_ONCE = {"bare": 5_000, "submit": 20_000}
ROUNDS = 3
# Our own default, which web apps have too unless they say otherwise; and one that is large enough for all.
POOL_SIZES = (5, SUBMITTERS)
STEPS = len(POOL_SIZES)

# A table as a web app would make it without us: what a response holds, and nothing to hand it off.
bare = Table(
    "bench_bare",
    MetaData(),
    Column("response_id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Integer, nullable=False),
    Column("module_slug", Text, nullable=False),
    Column("question_id", Text, nullable=False),
    Column("answer_text", Text, nullable=False),
    Column("answer_metadata", JSONB),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
# As a web app would write it: SQLAlchemy Core, one row, returning what the database made up.
_INSERT = insert(bare).returning(bare.c.response_id, bare.c.created_at)


async def _inserted(line: Pipeline) -> None:
    async with line.engine.begin() as conn:
        (await conn.execute(_INSERT, ANSWER)).one()


async def _alone(ways: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, list[float]]:
    """Milliseconds of each call."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM_UP + ALONE):
        for name, way in ways.items():
            began = time.perf_counter()
            await way()
            took[name].append((time.perf_counter() - began) * 1000)
    return {name: values[WARM_UP:] for name, values in took.items()}


async def measure(step: Step) -> Figures:
    """Measure both ways, alone and at once."""
    figures = Figures(
        "A submit beside a bare INSERT of one row through the same stack, PostgreSQL alone (no worker)",
        ("", "bare INSERT", "producer.submit", "ratio"),
        [],
        notes=["Each is acknowledged after its own commit, or the one that it shares. fsync is on."],
    )
    alone: dict[str, list[float]] = {}
    for pool_size in POOL_SIZES:
        step(f"{pool_size} connections")
        async with pipeline(pool_size=pool_size) as line:
            async with line.engine.begin() as conn:
                await conn.run_sync(bare.metadata.create_all)
            async with open_producer(line.settings, engine=line.engine) as producer:
                ways: dict[str, Callable[[], Awaitable[object]]] = {
                    "bare": partial(_inserted, line),
                    "submit": partial(producer.submit, **ANSWER),
                }
                if pool_size == POOL_SIZES[0]:
                    alone = await _alone(ways)
                rates: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(ROUNDS):
                    for name, way in ways.items():
                        rates[name].append(AT_ONCE[name] / await submit_all(way, AT_ONCE[name]))
        median = {name: statistics.median(taken) for name, taken in rates.items()}
        figures.rows.append(
            (
                f"{SUBMITTERS} at once, {pool_size} connections, answers/s",
                f"{median['bare']:,.0f}",
                f"{median['submit']:,.0f}",
                f"{median['submit'] / median['bare']:.2f}",
            )
        )
        figures.values[f"at_once_{pool_size}"] = median
    for name, share in (("p99", 0.99), ("p50", 0.5)):
        both = [quantile(alone[way], share) for way in ("bare", "submit")]
        figures.rows.insert(
            0, (f"one at a time, {name}, ms", *(f"{value:.2f}" for value in both), f"{both[1] / both[0]:.2f}")
        )
        figures.values[f"alone_{name}_ms"] = dict(zip(("bare", "submit"), both, strict=True))
    figures.goals.extend(
        [
            Goal(
                "submit, one at a time, p50 against a bare INSERT",
                figures.values["alone_p50_ms"]["submit"] / figures.values["alone_p50_ms"]["bare"],
                1.3,
            ),
            *(
                Goal(
                    f"submit, {SUBMITTERS} at once on {size} connections, against bare INSERTs",
                    figures.values[f"at_once_{size}"]["submit"] / figures.values[f"at_once_{size}"]["bare"],
                    4,
                    at_least=True,
                )
                for size in POOL_SIZES
            ),
        ]
    )
    return figures
