"""Redis holds what nobody of ours wrote, or another release did: nothing is lost, and the logs stay short."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from producers.contract import MESSAGE_SCORE, QUEUE_NAME, message_key
from tests.factories import submission
from tests.faults.messages import FEW_LINES, all_read, looked_at, put, troubles, unread
from tests.faults.students import submitting
from tests.producers.waiting import eventually
from tests.worker.scripted import submit_answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

ENOUGH = 100
NEVER = 60.0  # a sweep that comes after the test


@pytest.fixture
async def redis(site: Site) -> AsyncIterator[Redis]:
    """A client of the test itself."""
    redis = Redis.from_url(site.redis_url)
    yield redis
    await redis.aclose()


def of_other_versions(ids: Sequence[int]) -> list[bytes]:
    """What a producer of another release might write into our queue."""
    payload = {"response_ids": list(ids)}
    frame: dict[str, Any] = {"t": None, "f": "score_responses", "a": [payload], "k": {}, "et": 1}
    frames = [
        frame | {"trace": "00-1"},
        frame | {"a": [payload | {"priority": 1}]},
        frame | {"a": [payload, {"priority": 1}]},
        frame | {"a": [list(ids)]},
        frame | {"k": {"priority": 1}},
        frame | {"f": "score_responses_v2"},
        frame | {"f": "cron:sweep"},
        {"function": "score_responses", "args": [list(ids)]},
    ]
    return [json.dumps(each).encode() for each in frames]


async def test_other_versions_of_the_contract(site: Site, start: Start, redis: Redis, calls: CallLog) -> None:
    """What older and newer producers announce is scored through the sweep; their queues are left alone."""
    worker = await start()
    ids = await submit_answers(site.engine, 30)
    for number, message in enumerate(of_other_versions(ids)):
        await put(redis, message, number=number)
        for queue in ("scoring:v0", "scoring:v2"):
            await put(redis, message, number=number, queue=queue)

    await eventually(lambda: site.scored(ids))

    async def ours_is_read() -> bool:
        return not await unread(redis)

    await eventually(ours_is_read)
    await looked_at(redis, 3)
    assert await redis.zcard("scoring:v0") == await redis.zcard("scoring:v2") == len(of_other_versions(ids))
    assert calls.began == dict.fromkeys(ids, 1)
    assert len(troubles(worker)) <= FEW_LINES
    for queue in ("scoring:v0", "scoring:v2"):
        for number in range(len(of_other_versions(ids))):
            await redis.delete(queue, message_key(f"{queue}:forged-{number}"))
    await site.assert_nothing_lost(ids)
    await worker.stopped()


GARBAGE = (b"", b"\xff\x00\xfe", b"[" * 900, b'{"t": null}', b"\x80\x04K\x01.", b"null")
HUGE = 3000


async def test_a_huge_queue_of_garbage(site: Site, start: Start, producer: Producer, redis: Redis) -> None:
    """Thousands of messages that are none lie in front of the real ones: each is dropped, with one line."""
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(HUGE):
            # Read before any of ours; every other one under an id that may be one.
            member = b"0garbage-%d" % number if number % 2 else b"%032x" % number
            if stored := GARBAGE[number % len(GARBAGE)]:
                pipe.set(b"arq:job:" + member, stored)
            pipe.zadd(QUEUE_NAME, {member: MESSAGE_SCORE})
        await pipe.execute()
    worker = await start(SWEEP_SECONDS=NEVER, POLL_SECONDS=10)
    rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(ENOUGH)))
    ids = [row["response_id"] for row in rows]

    await eventually(lambda: all_read(redis), patience_seconds=100)
    await eventually(lambda: site.scored(ids))
    lines = len(troubles(worker))
    assert lines <= HUGE + FEW_LINES
    for _ in range(3):  # whatever was left behind would be met again on the way to these
        ids.append((await producer.submit(**submission()))["response_id"])
        await eventually(lambda: site.scored(ids))
    assert len(troubles(worker)) == lines
    assert not worker.logged("Redis is away")
    await site.assert_nothing_lost(ids)
    await worker.stopped()


async def test_a_queue_that_is_no_queue(
    site: Site, start: Start, producer: Producer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A text lies under the queue's name: the sweep serves alone, the logs stay short; once it is gone, all is well."""
    caplog.set_level(logging.INFO)
    await redis.set(QUEUE_NAME, "no sorted set")
    worker = await start()
    async with submitting(producer) as students:
        await eventually(lambda: worker.logged("Redis refuses us"))
        await looked_at(redis, 5)
        goal = len(students.stored) + ENOUGH
        await eventually(lambda: len(students.stored) >= goal)
        meanwhile = students.response_ids
        await eventually(lambda: site.scored(meanwhile))
        assert len(troubles(worker)) <= FEW_LINES
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1

        await redis.delete(QUEUE_NAME)
        await eventually(lambda: worker.logged("Redis is back"))
        await eventually(lambda: "Redis takes announcements again." in caplog.messages)

    assert students.refusals == 0
    await eventually(lambda: site.scored(students.response_ids))

    async def drained() -> bool:
        return not await unread(redis)

    await eventually(drained)
    assert len(troubles(worker)) <= FEW_LINES
    await worker.stopped()
