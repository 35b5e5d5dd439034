"""Ring the bell: put a message into arq's queue and wake the workers, in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from producers.contract import (
    MESSAGE_EXPIRES_MS,
    MESSAGE_SCORE,
    QUEUE_NAME,
    WAKE_CHANNEL,
    Drain,
    Payload,
    job_id,
    message,
    message_key,
)
from producers.sentinel import RedisT, connect_primary, is_sentinel_url

if TYPE_CHECKING:
    from collections.abc import Sequence

# With so many messages unread, no worker is there to read one more; the sweep needs none of them. Keeps an
# outage of all workers from filling Redis.
MAX_QUEUED_MESSAGES = 10_000


def connect_redis(url: str, *, timeout_seconds: float) -> Redis:
    """Make a Redis client with time-outs, which arq's own settings lack. It connects on first use.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, or ``redis+sentinel://`` as :mod:`producers.sentinel` reads it.
        timeout_seconds: Longest wait for connecting and for a reply, seconds.

    Returns:
        The client; its owner closes it.

    Raises:
        ValueError: The URL has another form.
    """
    return connect(
        url,
        timeout_seconds=timeout_seconds,
        redis_class=Redis,
        client_name="assessment-scoring",
        # A connection that died while it was idle is replaced once; an outage is not waited for.
        retry_on_error=[RedisConnectionError],
    )


def connect(url: str, *, timeout_seconds: float, redis_class: type[RedisT], **options: Any) -> RedisT:
    """Make a Redis client of any class; arguments as :func:`connect_redis`, and options of redis-py."""
    options |= {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 1),
    }
    if is_sentinel_url(url):
        return connect_primary(url, timeout_seconds=timeout_seconds, redis_class=redis_class, options=options)
    client: RedisT = redis_class.from_url(url, **options)
    return client


class Bell:
    """Writes messages into the queue.

    arq's own ``enqueue_job`` asks first whether the job exists, under a WATCH: four round trips. Here the
    commands are idempotent instead, and one pipeline does it: a message is there before its place in the queue is, and
    that before anybody is woken. A drain, which may be taken while it is rung again, needs a transaction as well.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queued = 0

    async def ring(self, payloads: Sequence[Payload]) -> None:
        """Put messages into the queue and wake the workers.

        A drain that is queued already stays one message. Ringing again after an error does no harm. When
        far too many messages are unread, those that name ids are left to the sweep.

        Args:
            payloads: One message each.

        Raises:
            redis.exceptions.RedisError: Redis refused, was not reached or did not answer in time.
        """
        drains = any(isinstance(payload, Drain) for payload in payloads)
        async with self._redis.pipeline(transaction=drains) as pipe:
            for payload in payloads:
                if self._queued > MAX_QUEUED_MESSAGES and not isinstance(payload, Drain):
                    continue
                message_id = job_id(payload)
                pipe.set(message_key(message_id), message(payload), px=MESSAGE_EXPIRES_MS, nx=True)
                pipe.zadd(QUEUE_NAME, {message_id: MESSAGE_SCORE}, nx=True)
            pipe.publish(WAKE_CHANNEL, b"")
            pipe.zcard(QUEUE_NAME)
            self._queued = (await pipe.execute())[-1]
