"""What a worker measures on the way of each answer: through a real worker, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from producers.bell import Bell
from producers.contract import ScoreResponses
from storage.claims import request_claim
from storage.settlements import Release
from tests.producers.waiting import eventually
from tests.worker.scripted import (
    a_lease,
    good_score,
    in_background,
    read_handoffs,
    scored_once,
    submit_answers,
)
from worker.decisions import Postpone
from worker.observer import Observer
from worker.scorers.outcomes import AttemptFailed, Hopeless, ProviderTrouble
from worker.scorers.protocol import Usage
from worker.telemetry.measures import MAX_MODELS
from worker.telemetry.metrics import WorkerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.worker.scripted import ScriptedScorer
    from worker.runtime import Runtime
    from worker.scorers.protocol import Answer, Score

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

pytestmark = pytest.mark.commits


async def sample(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    """One number of the exposition; None where it is not there."""
    for family in text_string_to_metric_families((await metrics.exposition()).decode()):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return float(found.value)
    return None


async def test_each_answer_is_measured_from_its_due_time_to_its_commit(
    running: Running, engine: AsyncEngine, scorer: ScriptedScorer, redis: Redis
) -> None:
    """Pickup by message, time with the scorer, the commit, tokens and money: once for each answer."""

    async def behave(_: Answer) -> Score:
        return good_score(usage=Usage(requests=1, input_tokens=10, output_tokens=3, cost_usd=0.25))

    scorer.behaviour = behave
    async with running(sweep_seconds=60) as runtime:
        metrics = WorkerMetrics(runtime)
        response_ids = await submit_answers(engine, 3)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(response_ids))])
        await eventually(lambda: scored_once(engine, response_ids))
        await eventually(lambda: runtime.pool.holds_nothing)

        assert await sample(metrics, "scoring_pickup_seconds_count", lane="live", source="message") == 3
        waited = await sample(metrics, "scoring_pickup_seconds_sum", lane="live", source="message")
        assert waited is not None
        assert waited > 0
        assert await sample(metrics, "scoring_scorer_seconds_count", lane="live", outcome="scored") == 3
        settled = {"outcome": "scored", "result": "committed"}
        assert await sample(metrics, "scoring_settle_seconds_count", **settled) == 3
        assert await sample(metrics, "scoring_tokens_total", model="scripted", direction="input") == 30
        assert await sample(metrics, "scoring_tokens_total", model="scripted", direction="output") == 9
        assert await sample(metrics, "scoring_cost_dollars_total", model="scripted") == 0.75


async def test_what_the_sweep_rescues_is_told_apart(running: Running, engine: AsyncEngine) -> None:
    """Without a message, an answer is pulled; claims that the sweep finds are counted with what they moved."""
    token = "a token that nobody guesses"
    [response_id] = await submit_answers(engine, 1, user_id=None, anonymous_token=token)
    async with engine.begin() as conn:
        await request_claim(conn, anonymous_token=token, user_id=1)
        await conn.execute(
            text("UPDATE assessment_claims SET requested_at = requested_at - interval '1 hour'")
        )
    async with running() as runtime:
        metrics = WorkerMetrics(runtime)
        await eventually(lambda: scored_once(engine, [response_id]))

        async def claimed() -> bool:
            return await sample(metrics, "scoring_claimed_responses_total") == 1

        await eventually(claimed)
        await eventually(lambda: runtime.pool.holds_nothing)
        assert await sample(metrics, "scoring_pickup_seconds_count", lane="live", source="pull") == 1
        assert await sample(metrics, "scoring_claims_applied_total") == 1
        assert (await sample(metrics, "scoring_sweeps_total") or 0) >= 1
        assert (await sample(metrics, "scoring_sweep_found_total", found="claims") or 0) >= 1
        assert token not in (await metrics.exposition()).decode()


@pytest.mark.parametrize(
    ("error", "outcome", "ending"),
    [
        (AttemptFailed("no"), "failed", "failed"),
        (ProviderTrouble("503"), "provider_trouble", "postponed"),
        (Hopeless("never"), "hopeless", "dead"),
    ],
)
async def test_an_answer_without_a_score_is_measured_too(
    running: Running,
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    error: Exception,
    outcome: str,
    ending: str,
) -> None:
    """By what the scorer said, and by what became of it."""

    async def behave(_: Answer) -> Score:
        raise error

    scorer.behaviour = behave
    async with running() as runtime:
        metrics = WorkerMetrics(runtime)
        await submit_answers(engine, 1)

        async def measured() -> bool:
            return await sample(metrics, "scoring_settle_seconds_count", outcome=ending) == 1

        await eventually(measured)
        assert await sample(metrics, "scoring_scorer_seconds_count", lane="live", outcome=outcome) == 1


async def test_a_lease_that_is_lost_is_counted_once(
    running: Running, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Another worker took it: however often we try to renew, it was lost once."""
    scorer.hold()
    async with running(sweep_seconds=60) as runtime:
        metrics = WorkerMetrics(runtime)
        [response_id] = await submit_answers(engine, 1)
        runtime.intake.more("live")
        await eventually(runtime.pool.renewable)
        assert await runtime.renewer.run_once() == 1
        assert await sample(metrics, "scoring_leases_lost_total") == 0

        async with engine.begin() as conn:
            await conn.execute(text("UPDATE scoring_handoffs SET lease_token = gen_random_uuid()"))
        assert [await runtime.renewer.run_once() for _ in range(2)] == [0, 0]

        assert await sample(metrics, "scoring_leases_lost_total") == 1
        scorer.let_go()
        await eventually(lambda: scored_once(engine, [response_id]))


async def test_a_release_that_is_refused_is_counted(runtime: Runtime) -> None:
    """PostgreSQL cannot store it, so the lease runs out: neither committed nor too late."""
    metrics = WorkerMetrics(runtime)
    release = Release(1, uuid4(), reason="a\x00b")

    runtime.settler.put(a_lease(), Postpone(release))
    await runtime.settler.wait_idle()

    labels = {"outcome": "postponed", "result": "refused"}
    assert await sample(metrics, "scoring_outcomes_total", **labels) == 1
    assert await sample(metrics, "scoring_settle_seconds_count", **labels) == 1


async def test_whether_redis_is_there_is_told_once_it_is_known(
    running: Running, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has looked there is no gauge, as under arq's own command; then it says what was found."""
    assert await sample(WorkerMetrics(runtime), "scoring_redis_up") is None

    async with running() as whole:
        metrics = WorkerMetrics(whole)

        async def up() -> bool:
            return await sample(metrics, "scoring_redis_up") == 1

        await eventually(up)
        monkeypatch.setattr(whole, "redis_is_away", lambda: True)
        assert await sample(metrics, "scoring_redis_up") == 0


async def test_rate_limits_are_told_with_what_is_left(make_runtime: Callable[..., Runtime]) -> None:
    """Those that are set, and what this worker saw when it last asked; nothing where none is set."""
    runtime = make_runtime(requests_per_minute=600)
    metrics = WorkerMetrics(runtime)
    assert await sample(metrics, "scoring_rate_limit_left", limit="requests") is None

    await runtime.rate_limits.acquire(3, lane="live", certain=True)

    assert await sample(metrics, "scoring_rate_limit_per_minute", limit="requests") == 600
    assert await sample(metrics, "scoring_rate_limit_left", limit="requests") == 100
    assert await sample(metrics, "scoring_rate_limit_shared") == 1
    assert await sample(metrics, "scoring_rate_limit_per_minute", limit="tokens") is None
    unlimited = (await WorkerMetrics(make_runtime()).exposition()).decode()
    assert "scoring_rate_limit_per_minute" not in unlimited


async def test_models_that_are_made_up_do_not_fill_monitoring(runtime: Runtime) -> None:
    """A scorer may name its models as it likes: beyond some, they are counted together."""
    metrics = WorkerMetrics(runtime)
    for number in range(MAX_MODELS + 5):
        score = good_score(model_id=f"model {number}", usage=Usage(input_tokens=1))
        metrics.measures.scored(a_lease(), score, 0.1)

    assert await sample(metrics, "scoring_tokens_total", model="model 0", direction="input") == 1
    assert await sample(metrics, "scoring_tokens_total", model="others", direction="input") == 5
    assert await sample(metrics, "scoring_tokens_total", model=f"model {MAX_MODELS}") is None


@pytest.mark.parametrize("model_id", ["m\ud800", "m\n", "m" * 201])
async def test_a_model_that_cannot_be_a_label_spoils_nothing(runtime: Runtime, model_id: str) -> None:
    """What a scorer of somebody's own returns unchecked is counted under another name."""
    metrics = WorkerMetrics(runtime)
    score = good_score(usage=Usage(input_tokens=1)).model_copy(update={"model_id": model_id})
    metrics.measures.scored(a_lease(), score, 0.1)

    assert await sample(metrics, "scoring_tokens_total", model="others", direction="input") == 1


async def test_a_price_without_end_does_not_stay(runtime: Runtime) -> None:
    """The sum goes on with what makes sense."""
    metrics = WorkerMetrics(runtime)
    for cost_usd in (0.5, float("inf"), 0.25):
        metrics.measures.scored(a_lease(), good_score(usage=Usage(cost_usd=cost_usd)), 0.1)

    assert await sample(metrics, "scoring_cost_dollars_total", model="scripted") == 0.75


async def test_the_event_loop_is_watched(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds up the loop is seen as lag."""
    monkeypatch.setattr("worker.telemetry.measures.LAG_EVERY_SECONDS", 0.01)
    metrics = WorkerMetrics(runtime)
    async with in_background(metrics.measures.watch_loop()):

        async def looked() -> bool:
            return (await sample(metrics, "scoring_event_loop_lag_seconds_count") or 0) >= 2

        await eventually(looked)


class Broken(Observer):
    """Fails at whatever it is told."""

    def _fail(self, *_: object) -> None:
        raise ValueError("an answer's text")

    leased = scoring = scored = ended = lost = swept = claimed = _fail  # type: ignore[assignment]


async def test_an_observer_that_fails_costs_no_answer(
    running: Running, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Every answer is scored, the other observers are told, and what the error says is not logged."""
    async with running() as runtime:
        runtime.observers.insert(0, Broken())
        metrics = WorkerMetrics(runtime)
        response_ids = await submit_answers(engine, 5)
        await eventually(lambda: scored_once(engine, response_ids))
        await eventually(lambda: runtime.pool.holds_nothing)

        assert await sample(metrics, "scoring_settle_seconds_count", outcome="scored") == 5
        assert await read_handoffs(engine) == {}
    assert "An observer failed." in caplog.text
    assert "an answer's text" not in caplog.text
