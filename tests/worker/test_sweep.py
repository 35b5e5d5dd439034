"""The sweep: what nobody takes comes back through it, whatever was lost."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from producers.bell import Bell
from producers.contract import QUEUE_NAME, ScoreResponses
from storage.claims import request_claim
from storage.errors import StorageUnavailableError
from tests.factories import publish, submit, token
from tests.producers.waiting import eventually
from tests.worker.scripted import (
    ScriptedScorer,
    change,
    in_background,
    read_handoffs,
    scored_once,
    submit_answers,
)
from worker.sweep import INSIST_EVERY, OVERDUE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy
    from worker.runtime import Runtime

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

pytestmark = pytest.mark.commits

AGO = "now"  # with the pause of OVERDUE_SECONDS below: due for longer than that


async def make_overdue(engine: AsyncEngine, *response_ids: int) -> None:
    """Let these have been due for a day."""
    await change(engine, *response_ids, due_at="yesterday")


async def queued(redis: Redis) -> list[str]:
    """The ids of the messages in the queue."""
    return [member.decode() for member in await redis.zrange(QUEUE_NAME, 0, -1)]


async def test_what_is_overdue_is_rung_for_once_a_lane(
    runtime: Runtime, engine: AsyncEngine, redis: Redis
) -> None:
    """One drain a lane, however much is overdue and however often it is swept; nothing is written."""
    live = await submit_answers(engine, 20)
    bulk = await submit_answers(engine, 20, lane="bulk")
    await make_overdue(engine, *live, *bulk)
    before = await read_handoffs(engine)

    counts = [await runtime.sweep.run_once() for _ in range(3)]

    assert counts == [{"live": 1, "bulk": 1, "buried": 0, "revived": 0, "claims": 0}] * 3 or all(
        (each["live"], each["bulk"], each["suspect"]) == (1, 1, 0) for each in counts
    )
    assert sorted(await queued(redis)) == [f"{QUEUE_NAME}:drain:bulk", f"{QUEUE_NAME}:drain:live"]
    after = await read_handoffs(engine)
    assert [row["lease_token"] for row in after.values()] == [None] * 40
    assert before.keys() == after.keys()


async def test_what_is_on_its_way_is_left_alone(
    runtime: Runtime, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was submitted a moment ago has its message on the way; the sweep does not double it."""
    monkeypatch.setattr("worker.sweep.OVERDUE_SECONDS", 60)
    await submit_answers(engine, 5)

    counts = await runtime.sweep.run_once()

    assert not any(counts.values())
    assert await queued(redis) == []
    assert OVERDUE_SECONDS < 1


async def test_what_is_not_due_is_left_alone(runtime: Runtime, engine: AsyncEngine, redis: Redis) -> None:
    """Leased, postponed, dead and unpublished answers are nobody's business now."""
    leased, postponed, dead = await submit_answers(engine, 3)
    await change(engine, leased, lease_token=uuid4(), due_at="tomorrow")
    await change(engine, postponed, due_at="tomorrow")
    await change(engine, dead, state="dead", due_at="infinity", last_error="No.")
    async with engine.begin() as conn:
        await submit(conn, question_id="unpublished")

    counts = await runtime.sweep.run_once()

    assert not any(counts.values())
    assert await queued(redis) == []


async def test_a_lost_message_costs_one_sweep(running: Running, engine: AsyncEngine) -> None:
    """Answers that nobody announced are scored."""
    async with running():
        ids = await submit_answers(engine, 50)
        await eventually(lambda: scored_once(engine, ids))


async def test_both_lanes_come_back(running: Running, engine: AsyncEngine) -> None:
    """Bulk has no bells but the sweep's, and is served all the same."""
    async with running():
        ids = [*await submit_answers(engine, 20, lane="bulk"), *await submit_answers(engine, 20)]
        await eventually(lambda: scored_once(engine, ids))


async def test_an_expired_lease_is_taken_over(
    running: Running, engine: AsyncEngine, scorer: ScriptedScorer
) -> None:
    """A worker fell silent: another one scores its answers, and the loss is counted."""
    ids = await submit_answers(engine, 5)
    await change(engine, *ids, lease_token=uuid4(), due_at="yesterday")
    scorer.hold()

    async with running(lease_seconds=1, renew_seconds=0.3):
        await eventually(lambda: len(scorer.running) == 5)
        losses = {row["lease_losses"] for row in (await read_handoffs(engine)).values()}
        scorer.let_go()
        await eventually(lambda: scored_once(engine, ids))

    assert losses == {1}


async def test_a_lease_that_ran_out_with_postgres_itself_is_kept(
    runtime: Runtime, engine: AsyncEngine, redis: Redis
) -> None:
    """Within one lease time of PostgreSQL's start no lease counts as run out: its worker may well live."""
    ids = await submit_answers(engine, 2)
    await change(engine, *ids, lease_token=uuid4(), due_at="yesterday")

    assert runtime.settings.lease_seconds == 600  # PostgreSQL was started by these tests, minutes ago at most
    assert not any((await runtime.sweep.run_once()).values())


async def test_what_was_postponed_comes_back(running: Running, engine: AsyncEngine) -> None:
    """Its pause is over: it is due again like any other."""
    ids = await submit_answers(engine, 5)
    await change(engine, *ids, due_at="yesterday", postponements=3, last_error="429")

    async with running():
        await eventually(lambda: scored_once(engine, ids))


async def test_a_missed_publication_is_found(running: Running, engine: AsyncEngine) -> None:
    """Published and submitted at the same moment, and neither saw the other: the sweep revives it."""
    [response_id] = await submit_answers(engine, 1)
    await change(engine, response_id, question_digest=None, due_at="infinity")

    async with running():
        await eventually(lambda: scored_once(engine, [response_id]))


async def test_an_unpublished_question_waits_and_then_is_scored(
    running: Running, engine: AsyncEngine
) -> None:
    """Publishing is all that is needed."""
    async with running():
        async with engine.begin() as conn:
            row = await submit(conn, question_id="later")
        async with engine.begin() as conn:
            await publish(conn, question_id="later")
        await eventually(lambda: scored_once(engine, [row["response_id"]]))


async def test_a_suspect_is_rung_for(runtime: Runtime, engine: AsyncEngine, redis: Redis) -> None:
    """What lost its lease three times is announced for itself, and not to the lane."""
    [response_id] = await submit_answers(engine, 1)
    await change(engine, response_id, lease_losses=3, due_at="yesterday")

    counts = await runtime.sweep.run_once()

    assert (counts["suspect"], counts["live"]) == (1, 0)
    assert await queued(redis) == [f"{QUEUE_NAME}:drain:suspect"]


async def test_a_suspect_is_scored(running: Running, engine: AsyncEngine) -> None:
    """From the sweep to the score, beside ordinary answers."""
    ids = await submit_answers(engine, 20)
    await change(engine, ids[0], lease_losses=3)

    async with running():
        await eventually(lambda: scored_once(engine, ids))


async def test_ten_losses_are_buried_by_the_sweep(runtime: Runtime, engine: AsyncEngine) -> None:
    """Without anybody taking it any more."""
    [response_id] = await submit_answers(engine, 1)
    await change(engine, response_id, lease_losses=10, due_at="yesterday")

    assert (await runtime.sweep.run_once())["buried"] == 1

    assert (await read_handoffs(engine))[response_id]["state"] == "dead"


async def test_lost_claims_are_applied(
    runtime: Runtime, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sweep that finds them: while a breaker is open or every slot is full, nobody would read a message."""
    monkeypatch.setattr("worker.sweep.OVERDUE_SECONDS", 0)
    async with engine.begin() as conn:
        for _ in range(3):
            await request_claim(conn, anonymous_token=token(), user_id=1)

    first = await runtime.sweep.run_once()
    second = await runtime.sweep.run_once()

    assert (first["claims"], second["claims"]) == (3, 0)
    assert await queued(redis) == []


async def test_two_sweeps_at_once_ask_once(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, redis: Redis
) -> None:
    """While one worker asks, the others are told that nothing is overdue."""
    ids = await submit_answers(engine, 2)
    await make_overdue(engine, *ids)
    runtime = make_runtime()
    async with engine.connect() as conn:
        await conn.execute(
            text("SELECT pg_advisory_xact_lock(:key)"), {"key": int.from_bytes(b"sweep", "big")}
        )
        counts = await runtime.sweep.run_once()
        await conn.rollback()

    assert not any(counts.values())
    assert (await runtime.sweep.run_once())["live"] == 1


async def test_an_idle_sweep_is_three_statements(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine
) -> None:
    """The cost of looking does not depend on what is stored."""
    runtime = make_runtime()
    sent: list[str] = []

    @event.listens_for(runtime.engine.sync_engine, "before_cursor_execute")
    def record(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    await runtime.sweep.run_once()

    assert len(sent) == 3


async def test_with_postgres_away_the_sweep_goes_on(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    redis: Redis,
    proxied_database_url: str,
    postgres_proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning, then one info, and what became overdue meanwhile is rung for."""
    caplog.set_level(logging.INFO)
    runtime = make_runtime(database_url=proxied_database_url, sweep_seconds=0.02)
    postgres_proxy.break_down()
    with pytest.raises(StorageUnavailableError):
        await runtime.sweep.run_once()

    async with in_background(runtime.sweep.run()):
        await eventually(lambda: "away" in caplog.text)
        ids = await submit_answers(engine, 1)
        await make_overdue(engine, *ids)
        postgres_proxy.refuses = False
        await eventually(lambda: queued(redis))

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_an_old_message_leases_nothing(running: Running, engine: AsyncEngine, redis: Redis) -> None:
    """A message that comes after the sweep did its work is read and forgotten."""
    async with running() as runtime:
        ids = await submit_answers(engine, 5)
        await eventually(lambda: scored_once(engine, ids))
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])

        async def empty() -> bool:
            return await queued(redis) == []

        await eventually(empty)
        await asyncio.wait_for(runtime.settler.wait_idle(), 10)
        assert await scored_once(engine, ids)


async def test_a_lock_that_somebody_keeps_stops_no_sweep_for_long(
    make_runtime: Callable[..., Runtime], engine: AsyncEngine, redis: Redis
) -> None:
    """Any login of the database can take the sweep's lock: every tenth sweep looks all the same."""
    await make_overdue(engine, *await submit_answers(engine, 2))
    runtime = make_runtime()
    async with engine.connect() as conn:
        await conn.execute(text("SELECT pg_advisory_lock(:key)"), {"key": int.from_bytes(b"sweep", "big")})
        found = [(await runtime.sweep.run_once())["live"] for _ in range(INSIST_EVERY)]
        await conn.execute(text("SELECT pg_advisory_unlock_all()"))

    assert found == [0] * (INSIST_EVERY - 1) + [1]
