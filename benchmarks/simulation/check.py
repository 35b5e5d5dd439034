"""Whether the simulation can be believed: a small case on the real system, and the same case simulated."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from benchmarks.figures import Figures, quantile
from benchmarks.lognormal import model_seconds
from benchmarks.pipeline import ANSWER, QUESTION
from benchmarks.service_times import environment, lognormal_scorer, until_drained
from benchmarks.simulation.results import service_times
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.system import simulate
from demo.servers import embedded_servers
from demo.worker_process import worker_process
from producers import ProducerSettings, open_producer
from storage.questions import publish_questions
from tests.databases import add_users, upgrade

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.progress import Step
    from demo.servers import Servers

SLOTS = 200
SIGMA = 0.5
SEED = 7
# The worker has connected and looked once.
START_SECONDS = 3.0

_COMPARED = ("time to drain", "wait p50", "wait p95")

# When each answer was stored, leased and scored, seconds since the first was stored, by PostgreSQL's clock.
_TIMES = text("""
    SELECT
        EXTRACT(epoch FROM s.picked_up_at - r.created_at)::double precision AS waited,
        EXTRACT(epoch FROM s.created_at - min(r.created_at) OVER ())::double precision AS scored_at
    FROM assessment_scores AS s JOIN assessment_responses AS r USING (response_id)
""")


@dataclass(frozen=True, slots=True)
class Case:
    """What is run: so many answers at once, the model's median time, and the provider's limit."""

    full: str
    answers: int
    median_seconds: float
    requests_per_minute: int | None = None


# In each something else is full.
CASES = (
    Case("slots", 2_000, 1.0),
    Case("provider's limit, 6,000 a minute", 2_000, 1.0, 6_000),
    Case("statements: the model takes 1 ms", 20_000, 0.001),
)


STEPS = len(CASES)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is compared: seconds until the last score, and seconds that each answer waited for a slot."""

    drained_seconds: float
    waited_seconds: Sequence[float]

    def figures(self) -> tuple[float, float, float]:
        """Time to drain, median wait, 95th percentile of the waits."""
        return self.drained_seconds, quantile(self.waited_seconds, 0.5), quantile(self.waited_seconds, 0.95)


async def _real(servers: Servers, log: Path, case: Case) -> Outcome:
    settings = ProducerSettings(database_url=servers.database_url, redis_url=servers.redis_url)
    variables = environment(
        servers, slots=SLOTS, **lognormal_scorer(seed=SEED, median_seconds=case.median_seconds, sigma=SIGMA)
    )
    if case.requests_per_minute is not None:
        variables["SCORING_REQUESTS_PER_MINUTE"] = str(case.requests_per_minute)
    await upgrade(servers.database_url)
    await add_users(servers.database_url)
    engine = settings.engine()
    async with engine.begin() as conn:
        await publish_questions(conn, [QUESTION])
    with worker_process(variables, log):
        await asyncio.sleep(START_SECONDS)
        async with open_producer(settings, engine=engine) as producer:
            await asyncio.gather(*(producer.submit(**ANSWER) for _ in range(case.answers)))
            await until_drained(engine)
    async with engine.connect() as conn:
        rows = (await conn.execute(_TIMES)).all()
    await engine.dispose()
    return Outcome(max(row.scored_at for row in rows), [row.waited for row in rows])


def _simulated(case: Case) -> Outcome:
    scenario = Scenario(
        answers=case.answers,
        window_seconds=0.0,
        web_processes=1,
        workers=1,
        slots=SLOTS,
        requests_per_minute=case.requests_per_minute,
        sample_seconds=1.0,
        seed=SEED,
    )
    service = service_times()
    run = simulate(
        scenario,
        service,
        arrived_at=[0.0] * case.answers,
        # A fresh database counts its responses from 1, and the scorer draws by their number.
        model_seconds=[
            model_seconds(SEED, number, median_seconds=case.median_seconds, sigma=SIGMA)
            for number in range(1, case.answers + 1)
        ],
        processor_seconds=service.worker_processor_seconds_per_answer,
    )
    # PostgreSQL dates a response by its statement.
    return Outcome(
        run.drained_at, [leased - sent for leased, sent in zip(run.leased_at, run.sent_at, strict=True)]
    )


async def measure(step: Step) -> Figures:
    """Run small cases through the real system and through the simulation: slots, limit or statements are full."""
    figures = Figures(
        f"Answers that come at once, one worker of {SLOTS} slots, model log-normal: real and simulated",
        ("what is full", "", "real, s", "simulated, s", "simulated / real"),
        [],
    )
    for case in CASES:
        step(case.full)
        with embedded_servers() as servers, tempfile.TemporaryDirectory() as folder:
            real = await _real(servers, Path(folder) / "worker.log", case)
        simulated = _simulated(case)
        figures.values[case.full] = {}
        for name, was, came_out in zip(_COMPARED, real.figures(), simulated.figures(), strict=True):
            ratio = came_out / was
            figures.rows.append((case.full, name, f"{was:.2f}", f"{came_out:.2f}", f"{ratio:.2f}"))
            figures.values[case.full][name] = {"real_s": was, "simulated_s": came_out, "ratio": ratio}
    figures.notes.extend(
        f"{case.full}: {case.answers:,} answers, median {case.median_seconds:g} s, sigma {SIGMA:g}."
        for case in CASES
    )
    return figures
