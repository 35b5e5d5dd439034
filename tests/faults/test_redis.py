"""Redis dies, forgets, hangs, or delivers everything again, while everything works."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from producers import Producer
from producers.contract import QUEUE_NAME, message_key
from tests.factories import submission
from tests.faults.conftest import restart
from tests.faults.messages import FEW_LINES, all_read, put, troubles, unread
from tests.faults.students import Students, submitting
from tests.producers.waiting import eventually
from worker.arq_loop import connect_arq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from demo.servers import Server
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

ENOUGH = 100
FLUSHES = 20
# Longer than the test waits for anything: whoever waited for Redis would fail it.
FOR_EVER_SECONDS = 60.0
THREE_DAYS_MS = 3 * 24 * 60 * 60 * 1000


@pytest.fixture
async def redis(site: Site) -> AsyncIterator[Redis]:
    """A client of the test itself."""
    redis = Redis.from_url(site.redis_url)
    yield redis
    await redis.aclose()


@contextmanager
def hanging(server: Server) -> Iterator[None]:
    """The server accepts connections and never answers, as long as the block lasts."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


async def more(students: Students, number: int = ENOUGH) -> None:
    """Wait until so many more submits were acknowledged."""
    goal = len(students.stored) + number
    await eventually(lambda: len(students.stored) >= goal)


async def without_redis(site: Site, students: Students) -> None:
    """Wait until what is submitted from now on is scored, too."""
    await more(students)
    ids = students.response_ids
    await eventually(lambda: site.scored(ids))


async def back(worker: WorkerProcess, outages: int) -> None:
    """Wait until a worker said of so many outages that they are over."""
    await eventually(lambda: sum("Redis is back" in each["event"] for each in worker.records) >= outages)


async def test_a_killed_redis_costs_no_answer(site: Site, start: Start, producer: Producer) -> None:
    """Killed under load and restarted empty, twice: no submit fails, every answer is scored once."""
    worker = await start()
    async with submitting(producer) as students:
        for outages in (1, 2):
            await more(students)
            await asyncio.to_thread(site.servers.redis.kill)
            await without_redis(site, students)
            await restart(site.servers.redis)
            await back(worker, outages)

    assert students.refusals == 0
    await eventually(lambda: site.scored(students.response_ids))
    await site.assert_nothing_lost(students.response_ids)
    assert set((await site.counters()).values()) == {0}
    assert len(troubles(worker)) <= FEW_LINES
    await worker.stopped()


async def test_a_redis_that_forgets_costs_no_answer(
    site: Site, start: Start, producer: Producer, redis: Redis, calls: CallLog
) -> None:
    """FLUSHALL again and again under load: what it forgot comes back through the sweep, and once only."""
    workers = [await start(), await start()]
    async with submitting(producer) as students:
        for _ in range(FLUSHES):
            await more(students, 10)
            await redis.flushall()

    assert students.refusals == 0
    await eventually(lambda: site.scored(students.response_ids))
    await site.assert_nothing_lost(students.response_ids)
    assert set((await site.counters()).values()) == {0}
    assert set(calls.began.values()) == {1}
    for worker in workers:
        # A message whose place in the queue was read just before it was forgotten.
        assert {trouble["event"].split()[-1] for trouble in troubles(worker)} <= {"expired"}
        await worker.stopped()


async def test_a_hanging_redis_keeps_nobody(
    site: Site, start: Start, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It accepts and never answers: submits and sweeps go on without it; when it answers, the bell works again."""
    caplog.set_level(logging.INFO)
    worker = await start(REDIS_TIMEOUT_SECONDS=0.5)
    settings = site.settings(redis_timeout_seconds=FOR_EVER_SECONDS)
    engine, client = settings.engine(), settings.redis()
    producer = Producer(engine, client)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(client.aclose)
        stack.push_async_callback(producer.close)
        async with submitting(producer) as students:
            await more(students)
            with hanging(site.servers.redis):
                await more(students, 5 * ENOUGH)
                await eventually(lambda: worker.logged("Redis is away"))
                await without_redis(site, students)
            await eventually(lambda: worker.logged("Redis is back"))

            async def heard() -> bool:
                return bool((await redis.pubsub_numsub(f"{QUEUE_NAME}:wake"))[0][1])

            await eventually(heard)

        assert students.refusals == 0
        ids = students.response_ids
        await eventually(lambda: site.scored(ids))
        await eventually(lambda: all_read(redis))
        await site.assert_nothing_lost(ids)
        assert set((await site.counters()).values()) == {0}
        assert len(troubles(worker)) <= FEW_LINES
        await worker.stopped()


async def test_a_worker_outlives_a_long_hang(
    site: Site, start: Start, producer: Producer, redis: Redis
) -> None:
    """However many time-outs pass meanwhile: afterwards messages are read again, with no sweep to help."""
    worker = await start(REDIS_TIMEOUT_SECONDS=0.1, SWEEP_SECONDS=FOR_EVER_SECONDS)
    with hanging(site.servers.redis):
        await eventually(lambda: worker.logged("Redis is away"))
        rows = [await producer.submit(**submission()) for _ in range(ENOUGH)]
    await eventually(lambda: worker.logged("Redis is back"))
    rows += [await producer.submit(**submission())]

    await eventually(lambda: site.scored([rows[-1]["response_id"]]))
    await eventually(lambda: all_read(redis))
    assert len(troubles(worker)) <= FEW_LINES
    await worker.stopped()


async def test_a_new_connection_to_a_hanging_redis_gives_up(site: Site) -> None:
    """A worker's client is done after its time-out; redis-py must not try to heal what it is setting up."""
    redis = connect_arq(site.settings(redis_timeout_seconds=0.1))
    with hanging(site.servers.redis), pytest.raises(RedisTimeoutError):
        await redis.ping()
    await redis.aclose()


async def recorded(redis: Redis) -> list[bytes]:
    """The messages that wait in the queue."""
    members = [member.decode() for member in await redis.zrange(QUEUE_NAME, 0, -1)]
    return [stored for stored in await redis.mget([message_key(member) for member in members]) if stored]


def aged(message: bytes) -> bytes:
    """The same message as of three days ago."""
    frame = json.loads(message)
    return json.dumps(frame | {"et": frame["et"] - THREE_DAYS_MS}).encode()


async def test_messages_twice_in_any_order_and_days_late(
    site: Site, start: Start, producer: Producer, redis: Redis, calls: CallLog
) -> None:
    """Whatever is delivered again: no score changes, and no model is asked a second time."""
    ids = []
    for _ in range(30):  # one after the other, so that there are as many messages
        ids.append((await producer.submit(**submission()))["response_id"])

        async def announced(number: int = len(ids)) -> bool:
            return await unread(redis) == number

        await eventually(announced)
    messages = await recorded(redis)
    assert len(messages) == len(ids)
    order = random.Random(7)
    for number, message in enumerate(order.sample(messages, len(messages))):
        await put(redis, message, number=number)

    worker = await start(SWEEP_SECONDS=FOR_EVER_SECONDS)
    await eventually(lambda: site.scored(ids))
    await eventually(lambda: all_read(redis))
    scores = await site.sql("SELECT * FROM assessment_scores ORDER BY score_id")

    again = order.sample([*messages, *map(aged, messages)] * 2, 4 * len(messages))
    for number, message in enumerate(again):
        await put(redis, message, number=1000 + number)
    await eventually(lambda: all_read(redis))
    assert "settle_too_late" not in await worker.stopped()

    assert await site.sql("SELECT * FROM assessment_scores ORDER BY score_id") == scores
    assert calls.began == dict.fromkeys(ids, 1)
    await site.assert_nothing_lost(ids)
