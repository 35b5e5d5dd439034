"""The bell: messages go into the queue once, in one round trip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from producers.bell import Bell
from producers.contract import (
    MESSAGE_EXPIRES_MS,
    MESSAGE_SCORE,
    QUEUE_NAME,
    WAKE_CHANNEL,
    ClaimResponses,
    Drain,
    ScoreResponses,
    message_key,
)
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.producers.proxy import Proxy

pytestmark = pytest.mark.commits


async def test_a_message_lies_where_arq_looks(redis: Redis) -> None:
    """The queue holds the id, due since 1970, and the message lies under arq's key and expires."""
    await Bell(redis).ring([ScoreResponses(response_ids=(7, 8))])

    [(member, score)] = await redis.zrange(QUEUE_NAME, 0, -1, withscores=True)
    key = message_key(member.decode())
    frame = json.loads(await redis.get(key))

    assert score == MESSAGE_SCORE
    assert (frame["f"], frame["a"]) == ("score_responses", [{"response_ids": [7, 8]}])
    assert 0 < await redis.pttl(key) <= MESSAGE_EXPIRES_MS


async def test_drains_of_a_lane_stay_one_message(redis: Redis) -> None:
    """However often a lane is rung for, one drain waits; every message with ids waits for itself."""
    bell = Bell(redis)

    for _ in range(5):
        await bell.ring([Drain(lane="live"), Drain(lane="bulk"), ScoreResponses(response_ids=(1,))])

    members = [member.decode() for member in await redis.zrange(QUEUE_NAME, 0, -1)]
    assert len(members) == 2 + 5
    assert sum(":drain:" in member for member in members) == 2


async def test_a_drain_whose_message_expired_is_written_again(redis: Redis) -> None:
    """A queued id without its message would be dropped by arq; ringing again mends it."""
    bell = Bell(redis)
    await bell.ring([Drain(lane="live")])
    [member] = await redis.zrange(QUEUE_NAME, 0, -1)
    await redis.delete(message_key(member.decode()))

    await bell.ring([Drain(lane="live")])

    assert await redis.exists(message_key(member.decode()))
    assert await redis.zcard(QUEUE_NAME) == 1


async def test_workers_are_woken(redis: Redis) -> None:
    """Ringing publishes on the wake-up channel, after the message is there."""
    async with redis.pubsub() as subscription:
        await subscription.subscribe(WAKE_CHANNEL)
        await eventually(lambda: subscription.get_message(timeout=1))  # the subscription's confirmation

        await Bell(redis).ring([Drain(lane="live")])

        woken = await eventually(lambda: subscription.get_message(timeout=1))
    assert woken is not None
    assert (woken["type"], woken["data"]) == ("message", b"")


async def test_one_round_trip(fragile_redis: Redis, redis_proxy: Proxy) -> None:
    """A ring is one pipeline, however many messages it carries."""
    bell = Bell(fragile_redis)
    await bell.ring([Drain(lane="live")])
    redis_proxy.requests = 0

    await bell.ring([ScoreResponses(response_ids=(number,)) for number in range(1, 20)])

    assert redis_proxy.requests == 1


async def test_a_drain_is_rung_in_a_transaction(fragile_redis: Redis, redis_proxy: Proxy) -> None:
    """One that is taken between the two commands of the next would leave its place in the queue without a message."""
    await Bell(fragile_redis).ring([Drain(lane="live")])

    assert redis_proxy.seen.count(b"EXEC") == 1


async def test_a_full_queue_takes_only_drains(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody reads, messages with ids stop at the cap; once somebody has read, they go on."""
    monkeypatch.setattr("producers.bell.MAX_QUEUED_MESSAGES", 3)
    bell = Bell(redis)
    for number in range(1, 10):
        await bell.ring([ScoreResponses(response_ids=(number,)), ClaimResponses(claim_ids=(number,))])
    full = await redis.zcard(QUEUE_NAME)

    await bell.ring([Drain(lane="live"), ScoreResponses(response_ids=(99,))])
    with_drain = await redis.zcard(QUEUE_NAME)
    await redis.delete(QUEUE_NAME)
    await bell.ring([ScoreResponses(response_ids=(100,))])  # learns that there is room
    await bell.ring([ScoreResponses(response_ids=(101,))])

    assert full == 4
    assert with_drain == 5
    assert await redis.zcard(QUEUE_NAME) == 1


async def test_trouble_is_raised(dead_redis: Redis) -> None:
    """A bell that cannot be rung says so; what to do about it is its caller's decision."""
    with pytest.raises(RedisConnectionError):
        await Bell(dead_redis).ring([Drain(lane="live")])


async def test_a_queue_of_another_type_is_trouble(redis: Redis) -> None:
    """A forged queue key is reported like any other refusal of Redis."""
    await redis.set(QUEUE_NAME, "no sorted set")

    with pytest.raises(ResponseError):
        await Bell(redis).ring([Drain(lane="live")])


async def test_a_connection_that_died_idle_is_replaced(fragile_redis: Redis, redis_proxy: Proxy) -> None:
    """A connection that broke while nobody used it costs a second try, not an error."""
    bell = Bell(fragile_redis)
    await bell.ring([Drain(lane="live")])

    redis_proxy.cut()

    await bell.ring([Drain(lane="bulk")])
    assert await fragile_redis.zcard(QUEUE_NAME) == 2


async def test_a_lost_reply_is_rung_again(fragile_redis: Redis, redis_proxy: Proxy) -> None:
    """Where the reply is lost the ring is repeated, and the queue is the same as after one."""
    bell = Bell(fragile_redis)
    await bell.ring([Drain(lane="bulk")])
    redis_proxy.lose_next_reply(that_contains=b"+OK\r\n:1\r\n")

    await bell.ring([ScoreResponses(response_ids=(1,))])

    assert redis_proxy.lost_replies == 1
    assert await fragile_redis.zcard(QUEUE_NAME) == 2
