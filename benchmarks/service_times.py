"""What the simulation's service times are: how long each statement takes, and how much of a worker's processor.

Statements are measured one after the other, with nothing beside them, for batches of several sizes. A straight line
through the medians, ``base + rows * per_row`` (ordinary least squares), is what one batch costs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy import text

from benchmarks.figures import Figures, quantile
from benchmarks.lognormal import MEDIAN_VARIABLE, NAME, SEED_VARIABLE, SIGMA_VARIABLE
from benchmarks.pickup import cpu_seconds
from benchmarks.pipeline import ANSWER, QUESTION
from demo.servers import embedded_servers
from demo.worker_process import worker_process
from producers import ProducerSettings, open_producer
from producers.bell import connect_redis
from storage import create_engine, submit_responses
from storage.engine import single_statements
from storage.leases import pull_handoffs, renew_leases
from storage.questions import publish_questions
from storage.settlements import Settlement, settle_handoffs
from storage.sweeps import overdue
from tests.databases import add_users, upgrade
from tests.fake_model import FakeModel
from worker.rate_limits import RateLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.progress import Step
    from demo.servers import Servers

ROWS = (1, 10, 100, 500)
ROUNDS = 30
WARM_UP = 5
# Answers that wait in the table meanwhile: a backlog, so that indexes have their depth.
BACKLOG = 20_000
PICKUPS = 150
PICKUP_PAUSE_SECONDS = 0.02
# At once, so that a worker's statements are full and what is left is the cost of an answer.
ANSWERS = 5_000
MODEL_CALLS = 400
SLOTS = 200
STEPS = 2
SCORE = {"overall_score": 4.0, "reasoning": "Names both pigments and says which colours they take. " * 4}

_LEFT = text("SELECT count(*) FROM scoring_handoffs")
_PICKUPS = text("""
    SELECT EXTRACT(epoch FROM s.picked_up_at - r.created_at)::double precision
    FROM assessment_scores AS s JOIN assessment_responses AS r USING (response_id)
""")


class Line(NamedTuple):
    """What a statement costs: ``base_seconds + rows * per_row_seconds``."""

    base_seconds: float
    per_row_seconds: float


def fit(seconds: Mapping[int, float]) -> Line:
    """Lay a straight line through seconds by rows, by ordinary least squares; no part of it is negative.

    Args:
        seconds: What a batch of so many rows took; at least two sizes.
    """
    slope, intercept = statistics.linear_regression(list(seconds), list(seconds.values()))
    return Line(max(0.0, intercept), max(0.0, slope))


class Statements:
    """Runs the real statements one after the other, and keeps how long each took."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.took: dict[str, dict[int, list[float]]] = {
            name: {rows: [] for rows in ROWS} for name in ("submit", "lease", "renew", "settle")
        }
        self.sweeps: list[float] = []

    async def round(self, rows: int) -> None:
        """Take so many answers through their whole life, and sweep once."""
        await self._timed("submit", rows, lambda conn: submit_responses(conn, [ANSWER] * rows))
        leases = await self._timed("lease", rows, lambda conn: self._lease(conn, rows))
        held = [(lease["handoff_id"], lease["lease_token"]) for lease in leases]
        await self._timed("renew", rows, lambda conn: renew_leases(conn, held, lease_seconds=30))
        settlements = [
            Settlement(lease["handoff_id"], lease["created_at"], "model", "1", SCORE) for lease in leases
        ]
        await self._timed("settle", rows, lambda conn: settle_handoffs(conn, settlements))
        began = time.perf_counter()
        async with single_statements(self._engine) as conn:
            await overdue(conn, lease_seconds=30, overdue_seconds=0.25)
        self.sweeps.append(time.perf_counter() - began)

    async def _lease(self, conn: Any, rows: int) -> Any:
        return await pull_handoffs(conn, lane="live", lease_token=uuid4(), lease_seconds=30, limit=rows)

    async def _timed(self, name: str, rows: int, statement: Any) -> Any:
        began = time.perf_counter()
        async with single_statements(self._engine) as conn:
            result = await statement(conn)
        self.took[name][rows].append(time.perf_counter() - began)
        return result

    def medians(self, name: str) -> dict[int, float]:
        """Seconds by rows, without the first rounds."""
        return {rows: statistics.median(took[WARM_UP:]) for rows, took in self.took[name].items()}


@asynccontextmanager
async def _fresh(servers: Servers) -> AsyncIterator[AsyncEngine]:
    await upgrade(servers.database_url)
    await add_users(servers.database_url)
    engine = create_engine(servers.database_url, pool_size=4)
    async with engine.begin() as conn:
        await publish_questions(conn, [QUESTION])
    try:
        yield engine
    finally:
        await engine.dispose()


async def _statements() -> Statements:
    with embedded_servers() as servers:
        async with _fresh(servers) as engine:
            measured = Statements(engine)
            for _ in range(BACKLOG // 500):
                async with engine.begin() as conn:
                    await submit_responses(conn, [ANSWER] * 500)
            for _ in range(ROUNDS + WARM_UP):
                for rows in ROWS:
                    await measured.round(rows)
            return measured


def environment(servers: Servers, *, slots: int, **variables: str) -> dict[str, str]:
    """What a worker process of these servers is told."""
    return {
        **os.environ,
        "SCORING_DATABASE_URL": servers.database_url,
        "SCORING_REDIS_URL": servers.redis_url,
        "SCORING_SLOTS": str(slots),
        "SCORING_LOG_LEVEL": "WARNING",
        **variables,
    }


def lognormal_scorer(*, seed: int, median_seconds: float, sigma: float) -> dict[str, str]:
    """The variables that choose the log-normal scorer."""
    return {
        "SCORING_SCORER": NAME,
        SEED_VARIABLE: str(seed),
        MEDIAN_VARIABLE: str(median_seconds),
        SIGMA_VARIABLE: str(sigma),
    }


async def until_drained(engine: AsyncEngine, *, timeout_seconds: float = 120.0) -> None:
    """Wait until no handoff is left.

    Raises:
        TimeoutError: Some are left after ``timeout_seconds``.
    """
    async with asyncio.timeout(timeout_seconds), engine.connect() as conn:
        connection = await conn.execution_options(isolation_level="AUTOCOMMIT")
        while (await connection.execute(_LEFT)).scalar_one():  # noqa: ASYNC110 - another process empties it
            await asyncio.sleep(0.05)


async def _pickups_and_processor(servers: Servers, folder: Path) -> tuple[float, float]:
    """Median seconds from submit to lease with an idle worker; its processor time for one answer, without a model."""
    variables = environment(servers, slots=SLOTS, **lognormal_scorer(seed=1, median_seconds=0.001, sigma=0.0))
    settings = ProducerSettings(database_url=servers.database_url, redis_url=servers.redis_url)
    async with _fresh(servers) as engine:
        with worker_process(variables, folder / "pickup.log") as worker:
            async with open_producer(settings, engine=engine) as producer:
                await producer.submit(**ANSWER)
                await until_drained(engine)
                for _ in range(PICKUPS):
                    await producer.submit(**ANSWER)
                    await asyncio.sleep(PICKUP_PAUSE_SECONDS)
                await until_drained(engine)
                async with engine.connect() as conn:
                    pickups = sorted((await conn.execute(_PICKUPS)).scalars())
                before = cpu_seconds(worker.pid)
                await asyncio.gather(*(producer.submit(**ANSWER) for _ in range(ANSWERS)))
                await until_drained(engine)
                used = cpu_seconds(worker.pid) - before
    return quantile(pickups, 0.5), used / ANSWERS


async def _model_processor(servers: Servers, folder: Path) -> float:
    """Processor time of a worker for one answer that goes through the model client, over real HTTP."""
    settings = ProducerSettings(database_url=servers.database_url, redis_url=servers.redis_url)
    async with FakeModel() as fake, _fresh(servers) as engine:
        variables = environment(
            servers,
            slots=20,
            SCORING_SCORER="llm",
            SCORING_LLM_MODEL="fake",
            SCORING_LLM_API_KEY="unused",
            SCORING_LLM_BASE_URL=fake.openai_url,
        )
        with worker_process(variables, folder / "model.log") as worker:
            async with open_producer(settings, engine=engine) as producer:
                await asyncio.gather(*(producer.submit(**ANSWER) for _ in range(20)))
                await until_drained(engine)
                before = cpu_seconds(worker.pid)
                for _ in range(MODEL_CALLS // 20):
                    await asyncio.gather(*(producer.submit(**ANSWER) for _ in range(20)))
                await until_drained(engine)
                return (cpu_seconds(worker.pid) - before) / MODEL_CALLS


async def _permit(servers: Servers) -> float:
    """Median seconds until Redis has granted one permit of the provider's limit."""
    redis = connect_redis(servers.redis_url, timeout_seconds=2)
    limits = RateLimits(
        redis,
        provider="bench",
        requests_per_minute=1_000_000,
        tokens_per_minute=None,
        expected_tokens=1,
        fleet=lambda: 1,
    )
    took: list[float] = []
    for _ in range(ROUNDS * 5):
        began = time.perf_counter()
        await limits.acquire(1, lane="live", certain=True)
        took.append(time.perf_counter() - began)
    await redis.aclose()
    return statistics.median(took[WARM_UP:])


def _row(name: str, seconds: Mapping[int, float], line: Line) -> tuple[str, ...]:
    shown: Sequence[float] = [seconds[rows] * 1000 for rows in ROWS]
    fitted = (line.base_seconds * 1000, line.per_row_seconds * 1000)
    return (name, *(f"{value:.2f}" for value in shown), *(f"{value:.3f}" for value in fitted))


async def measure(step: Step) -> Figures:
    """Measure statements of 1, 10, 100 and 500 rows, the pickup, and a worker's processor time."""
    figures = Figures(
        f"Statements, one at a time, {BACKLOG:,} answers waiting; median of {ROUNDS}, ms",
        (
            "statement",
            *("1 row" if rows == 1 else f"{rows} rows" for rows in ROWS),
            "fitted base",
            "fitted per row",
        ),
        [],
    )
    step("statements")
    measured = await _statements()
    for name in measured.took:
        seconds = measured.medians(name)
        line = fit(seconds)
        figures.rows.append(_row(name, seconds, line))
        figures.values.update(
            {
                f"{name}_statement_seconds_base": line.base_seconds,
                f"{name}_seconds_per_row": line.per_row_seconds,
                f"{name}_seconds_by_rows": {str(rows): took for rows, took in seconds.items()},
            }
        )
    sweep = statistics.median(measured.sweeps[WARM_UP:])
    step("workers")
    with tempfile.TemporaryDirectory() as folder:
        with embedded_servers() as servers:
            permit = await _permit(servers)
            pickup, processor = await _pickups_and_processor(servers, Path(folder))
        with embedded_servers() as servers:
            model = await _model_processor(servers, Path(folder))
    figures.values.update(
        sweep_statement_seconds=sweep,
        permit_seconds=permit,
        pickup_seconds=pickup,
        worker_processor_seconds_per_answer=processor,
        model_processor_seconds_per_answer=model,
    )
    shown = [f"{seconds * 1000:.2f} ms" for seconds in (sweep, permit, pickup, processor, model)]
    figures.notes.append(f"Sweep that finds something: {shown[0]}. A permit from Redis: {shown[1]}.")
    figures.notes.append(
        f"From the time stamp of an answer to that of its lease, worker idle, {PICKUP_PAUSE_SECONDS * 1000:g} ms between two: p50 {shown[2]}."
    )
    figures.notes.append(
        f"A worker's processor for one answer: {shown[3]} with a scorer that costs nothing, "
        f"{shown[4]} through the model client."
    )
    return figures
