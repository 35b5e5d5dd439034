"""What lies in the queue, and what a worker says about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from producers.contract import MESSAGE_SCORE, QUEUE_NAME, message_key
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.faults.processes import WorkerProcess

# What a worker says of itself and of an outage, seen from all of its parts; a loop would say hundreds.
FEW_LINES = 20


async def put(redis: Redis, message: bytes, *, number: int, queue: str = QUEUE_NAME) -> None:
    """Put a message into a queue, under an id of its own."""
    member = f"{queue}:forged-{number}"
    await redis.set(message_key(member), message)
    await redis.zadd(queue, {member: MESSAGE_SCORE})


async def unread(redis: Redis) -> int:
    """How many messages wait."""
    return int(await redis.zcard(QUEUE_NAME))


async def all_read(redis: Redis) -> bool:
    """Whether none waits; none is left behind without its place in the queue, either."""
    return not await unread(redis) and not [key async for key in redis.scan_iter("arq:job:*")]


async def looked_at(redis: Redis, times: int) -> None:
    """Wait until the workers have looked at the queue so many times more."""

    async def looks() -> int:
        calls = (await redis.info("commandstats")).get("cmdstat_zrangebyscore", {"calls": 0})
        return int(calls["calls"])

    before = await looks()

    async def enough() -> bool:
        return await looks() >= before + times

    await eventually(enough)


def troubles(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What a worker logged that should worry somebody."""
    return [record for record in worker.records if record["level"] not in {"debug", "info"}]
