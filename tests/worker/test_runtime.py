"""The whole worker: starting, stopping, and PostgreSQL's death in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from demo.servers import free_port
from producers.bell import Bell
from producers.contract import ScoreResponses
from producers.errors import InvalidSettingsError
from storage.errors import StorageMisconfiguredError, StorageUnavailableError
from storage.workers import list_workers
from tests.producers.waiting import eventually, settled
from tests.worker.conftest import settings_of
from tests.worker.scripted import (
    ScriptedScorer,
    change,
    good_score,
    in_background,
    read_handoffs,
    score_counts,
    scored_once,
    submit_answers,
)
from worker import main
from worker.arq_loop import ArqLoop
from worker.errors import WorkerBrokenError
from worker.main import run_worker
from worker.runtime import Runtime
from worker.scorers.outcomes import ProviderTrouble

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Servers
    from tests.producers.proxy import Proxy
    from worker.scorers.protocol import Answer, Score
    from worker.settings import ScoringSettings

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

pytestmark = pytest.mark.commits

CANARY = "canary-answer-f00d"


@pytest.fixture
async def started(
    settings: Callable[..., ScoringSettings], scorer: ScriptedScorer, engine: AsyncEngine
) -> Callable[..., Any]:
    """Starts ``run_worker`` as a task, and waits until it takes answers."""

    async def start(**changes: Any) -> asyncio.Task[int]:
        task = asyncio.create_task(run_worker(settings(**changes), scorer=scorer))

        async def ready() -> bool:
            assert not task.done(), task.exception()
            async with engine.connect() as conn:
                return bool(await list_workers(conn))

        await eventually(ready)
        return task

    return start


async def test_sigterm_finishes_what_it_can(
    started: Callable[..., Any], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """Answers that are finished within the grace time are scored; nothing new is taken."""
    scorer.hold()
    worker = await started()
    ids = await submit_answers(engine, 5)
    await eventually(lambda: len(scorer.running) == 5)

    os.kill(os.getpid(), signal.SIGTERM)
    await settled()
    late = await submit_answers(engine, 5)
    scorer.let_go()
    await worker

    assert await score_counts(engine) == dict.fromkeys(ids, 1)
    rows = await read_handoffs(engine)
    assert rows.keys() == set(late)
    assert all(row["lease_token"] is None for row in rows.values())
    assert scorer.is_closed


async def test_sigterm_hands_the_rest_back_at_once(
    started: Callable[..., Any], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """What is not finished is due again immediately, without any count or reason."""
    worker = await started(grace_seconds=0)
    scorer.hold()
    ids = await submit_answers(engine, 40)
    await eventually(lambda: len(scorer.running) == 16)

    os.kill(os.getpid(), signal.SIGTERM)
    await worker

    rows = await read_handoffs(engine)
    assert rows.keys() == set(ids)
    for row in rows.values():
        assert row["lease_token"] is None
        assert row["seconds_to_due"] <= 0
        assert (row["attempts"], row["postponements"], row["suspicions"], row["lease_losses"]) == (0, 0, 0, 0)
        assert row["last_error"] is None


async def test_a_second_signal_ends_the_grace_time(
    started: Callable[..., Any], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """The first asks, the second insists; both ways everything is handed back."""
    worker = await started(grace_seconds=3600)
    scorer.hold()
    ids = await submit_answers(engine, 3)
    await eventually(lambda: len(scorer.running) == 3)

    os.kill(os.getpid(), signal.SIGINT)
    await settled()
    os.kill(os.getpid(), signal.SIGTERM)
    await worker

    rows = await read_handoffs(engine)
    assert rows.keys() == set(ids)
    assert all(row["lease_token"] is None for row in rows.values())


async def test_leases_are_renewed_during_the_grace_time(
    started: Callable[..., Any], engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """A worker that stops slowly does not lose to another what it is still finishing."""
    worker = await started(lease_seconds=1, renew_seconds=0.05, grace_seconds=60)
    scorer.hold()
    [response_id] = await submit_answers(engine, 1)
    await eventually(lambda: scorer.running)
    os.kill(os.getpid(), signal.SIGTERM)
    await settled()
    await change(engine, response_id, due_at="now")

    async def renewed() -> bool:
        return bool((await read_handoffs(engine))[response_id]["seconds_to_due"] > 0)

    await eventually(renewed)
    scorer.let_go()
    await worker
    assert await scored_once(engine, [response_id])


@pytest.mark.parametrize(
    "loop",
    [
        "settler.Settler",
        "renewer.Renewer",
        "intake.Intake",
        "sweep.Sweep",
        "heartbeat.Heartbeat",
        "arq_loop.ArqLoop",
    ],
)
@pytest.mark.parametrize("how", ["raises", "returns", "is cancelled"])
async def test_a_worker_without_one_of_its_loops_stops(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, loop: str, how: str
) -> None:
    """A loop that ends is a bug: the worker stops and fails, rather than look alive and do nothing."""
    breaks = asyncio.Event()

    async def broken(_: object) -> None:
        await breaks.wait()
        if how == "raises":
            raise ZeroDivisionError
        if how == "is cancelled":
            raise asyncio.CancelledError

    monkeypatch.setattr(f"worker.{loop}.run", broken)
    worker = await started()

    breaks.set()

    with pytest.raises(WorkerBrokenError):
        await worker


async def test_a_failing_worker_hands_its_answers_back(
    started: Callable[..., Any], engine: AsyncEngine, scorer: ScriptedScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even then nothing waits for a lease to run out, and nothing is counted against an answer."""
    breaks = asyncio.Event()

    async def broken(_: object) -> None:
        await breaks.wait()

    monkeypatch.setattr("worker.renewer.Renewer.run", broken)
    worker = await started(grace_seconds=3600)
    scorer.hold()
    ids = await submit_answers(engine, 3)
    await eventually(lambda: len(scorer.running) == 3)

    breaks.set()
    with pytest.raises(WorkerBrokenError):
        await worker

    rows = await read_handoffs(engine)
    assert rows.keys() == set(ids)
    assert all(row["lease_token"] is None and row["seconds_to_due"] <= 0 for row in rows.values())


async def test_stopping_without_postgres_ends_too(
    started: Callable[..., Any],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    proxied_database_url: str,
    postgres_proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot be written is given up after a while, with an error in the log; the leases run out."""
    monkeypatch.setattr("worker.runtime.LAST_WRITES_SECONDS", 0.2)
    worker = await started(database_url=proxied_database_url)
    scorer.hold()
    ids = await submit_answers(engine, 3)
    await eventually(lambda: len(scorer.running) == 3)
    postgres_proxy.break_down()
    scorer.let_go()

    os.kill(os.getpid(), signal.SIGTERM)
    await worker

    assert "could not be written" in caplog.text
    assert (await read_handoffs(engine)).keys() == set(ids)


async def test_signals_are_the_caller_s_again_afterwards(started: Callable[..., Any]) -> None:
    """A process that does not end by itself can be ended by a third signal."""
    worker = await started()

    os.kill(os.getpid(), signal.SIGTERM)
    await worker

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"database_url": "postgresql://postgres@127.0.0.1:1/postgres"}, StorageUnavailableError),
        ({"scorer": "tests.worker.foreign:nothing"}, InvalidSettingsError),
    ],
)
async def test_a_worker_that_cannot_work_does_not_start(
    settings: Callable[..., ScoringSettings], changes: dict[str, Any], error: type[Exception]
) -> None:
    """The error says why, and nothing stays open."""
    with pytest.raises(error):
        await run_worker(settings(**changes))


async def test_an_unknown_login_does_not_start(
    settings: Callable[..., ScoringSettings], database_url: str
) -> None:
    """PostgreSQL refuses the login: the message names the variable."""
    url = make_url(database_url).set(username="nobody_like_this").render_as_string(hide_password=False)

    with pytest.raises(StorageMisconfiguredError, match="SCORING_DATABASE_URL"):
        await run_worker(settings(database_url=url))


async def test_a_redis_that_is_away_is_no_reason_not_to_start(running: Running, engine: AsyncEngine) -> None:
    """The sweep serves alone."""
    async with running(redis_url=f"redis://127.0.0.1:{free_port()}/0"):
        ids = await submit_answers(engine, 3)
        await eventually(lambda: scored_once(engine, ids))


async def test_a_redis_that_refuses_the_login_is(
    breakable: Servers, redis: Redis, settings: Callable[..., ScoringSettings]
) -> None:
    """A wrong password is a wrong setting: the message names the variable and not the password."""
    url = breakable.redis_url.replace("redis://", f"redis://:{CANARY}@")

    with pytest.raises(InvalidSettingsError, match="SCORING_REDIS_URL") as refused:
        await run_worker(settings(redis_url=url))

    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_postgres_dies_and_comes_back(
    breakable: Servers, scorer: ScriptedScorer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Finished scores are kept and written, running answers keep their leases, and work goes on by itself."""
    caplog.set_level(logging.INFO)
    settings = settings_of(breakable)
    runtime = Runtime(settings, scorer=scorer)
    await runtime.start()
    async with in_background(ArqLoop(runtime, settings).run()):
        scorer.hold()
        ids = await submit_answers(runtime.engine, 10)
        await runtime.bell.ring([ScoreResponses(response_ids=tuple(ids))])
        await eventually(lambda: len(scorer.running) == 10)

        breakable.postgres.kill() if how == "killed" else breakable.postgres.stop()
        scorer.let_go()
        await eventually(lambda: runtime.settler.troubled)
        assert runtime.intake.allowance == 0
        assert runtime.intake.note == "PostgreSQL is away"
        breakable.postgres.start()
        await eventually(lambda: not runtime.settler.troubled)
        await eventually(lambda: scored_once(runtime.engine, ids))

        more = await submit_answers(runtime.engine, 10)
        await eventually(lambda: scored_once(runtime.engine, ids + more))
        await runtime.stop()

    assert set(scorer.started.values()) == {1}
    assert "too late" not in caplog.text


async def test_no_answer_is_in_the_log(
    running: Running,
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through failure, trouble, bug and success: the text of an answer is nowhere in logs and reasons."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "sqlalchemy")
    tries = 0

    async def behave(answer: Answer) -> Score:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ProviderTrouble("503")
        if tries == 2:
            raise ValueError(answer.text)
        if tries == 3:
            return good_score(reasoning="\x00" + answer.text)
        return good_score()

    scorer.behaviour = behave
    async with running():
        [response_id] = await submit_answers(engine, 1, answer_text=CANARY)
        reasons = set()
        for number in range(1, 4):
            await Bell(redis).ring([ScoreResponses(response_ids=(response_id,))])

            async def released(number: int = number) -> bool:
                # In this order: a row read before the try began shows no lease either, and the reason before it.
                if tries < number:
                    return False
                return (await read_handoffs(engine))[response_id]["lease_token"] is None

            await eventually(released)
            reasons.add((await read_handoffs(engine))[response_id]["last_error"])
            await change(engine, response_id, due_at="yesterday")
        await eventually(lambda: scored_once(engine, [response_id]))

    assert len(reasons) == 3
    assert CANARY not in str(reasons)
    assert all(CANARY not in str(vars(record)) for record in caplog.records)


async def test_the_settings_of_arq_are_made_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str
) -> None:
    """Importing the module reads no variable; asking for ``WorkerSettings`` does, and names what is missing."""
    with pytest.raises(InvalidSettingsError, match="SCORING_DATABASE_URL"):
        _ = main.WorkerSettings
    with pytest.raises(AttributeError):
        _ = main.SomethingElse
    monkeypatch.setenv("SCORING_DATABASE_URL", database_url)
    monkeypatch.setenv("SCORING_REDIS_URL", redis_url)

    made = main.WorkerSettings

    assert made.queue_name == "scoring:v1"
    assert made.keep_result == 0
    assert made.job_serializer is not None
    assert made.job_deserializer is not None
    assert made.max_jobs <= 10


async def test_a_scorer_that_cannot_be_stopped_ends_the_worker(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    scorer: ScriptedScorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its slot is lost for ever: the worker stops, so that whoever supervises it starts one with all slots."""
    monkeypatch.setattr("worker.pool.UNSTOPPABLE_SECONDS", 0.0)
    monkeypatch.setattr("worker.runtime.WATCH_SECONDS", 0.01)
    runtime = make_runtime(answer_seconds=1)
    let_go = asyncio.Event()
    failed = asyncio.Event()
    runtime.on_failure = failed.set

    async def stubborn(_: Answer) -> Score:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()
        return good_score()

    scorer.behaviour = stubborn
    [response_id] = await submit_answers(engine, 1)
    async with in_background(runtime.settler.run(), runtime._watch_scorers()):
        await runtime.intake.take([response_id])

        await failed.wait()

        let_go.set()
        await eventually(lambda: runtime.pool.holds_nothing)
