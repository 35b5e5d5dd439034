"""The loop around arq's worker: polls when it is woken, only while there is room, and survives whatever Redis does.

arq's ``main()`` ends when Redis does, polls on a fixed beat, and picks messages whether or not there is room
for the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from arq.connections import ArqRedis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from producers.bell import connect
from producers.contract import QUEUE_NAME, WAKE_CHANNEL, deserialize, serialize
from worker.arq_worker import CONNECTION_TROUBLE, HardenedWorker
from worker.ending import end, undisturbed
from worker.jobs import JOB_TIMEOUT_SECONDS
from worker.outage import Outage

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

    from worker.runtime import Runtime
    from worker.settings import ScoringSettings

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
# How long the listener waits for a wake-up before it makes sure that its connection lives.
LISTEN_SECONDS = 5.0


def connect_arq(settings: ScoringSettings) -> ArqRedis:
    """Make arq's Redis client with the time-outs that ``RedisSettings`` cannot express."""
    # No health_check_interval: where a server accepts and never answers, redis-py checks a new connection's
    # health while it sets it up, finds it ill, makes another one for that, and never comes back.
    client = connect(
        settings.redis_url.get_secret_value(),
        timeout_seconds=settings.redis_timeout_seconds,
        redis_class=ArqRedis,
        client_name="assessment-scoring-worker",
    )
    client.job_serializer = serialize
    client.job_deserializer = deserialize
    client.default_queue_name = QUEUE_NAME
    return client


class ArqLoop:
    """Polls arq's queue while there is room, at once when woken."""

    def __init__(self, runtime: Runtime, settings: ScoringSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._woken = asyncio.Event()
        self._outage = Outage("Redis", "Due answers are taken by the sweep alone.")
        self._picks = True
        self._pause_seconds = FIRST_PAUSE_SECONDS
        runtime.on_room = self._room_again
        self._looked = False
        runtime.redis_is_away = self._redis_is_away

    def _redis_is_away(self) -> bool | None:
        return self._outage.ongoing if self._looked else None

    async def run(self) -> None:
        """Poll until cancelled, whatever happens to Redis."""
        while True:
            redis = connect_arq(self._settings)
            worker = HardenedWorker(redis, {"runtime": self._runtime})
            listener = asyncio.create_task(self._listen(redis), name="listener")
            try:
                await self._poll(worker)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next connection must come
                self._looked = True
                self._outage.met(exc)
            finally:
                # Never let go of a message that is being run: it may be leasing.
                await undisturbed(self._finish(worker, listener))
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2)

    async def _finish(self, worker: HardenedWorker, listener: asyncio.Task[None]) -> None:
        await end([listener])
        try:
            await worker.finish(JOB_TIMEOUT_SECONDS)
        except (RedisError, *CONNECTION_TROUBLE):
            logger.debug("A broken connection could not be closed.")

    async def _poll(self, worker: HardenedWorker) -> None:
        while True:
            self._woken.clear()
            worker.allow_pick_jobs = self._picks = self._runtime.intake.wants_messages
            await worker.poll_once()
            self._looked = True
            self._outage.over()
            self._pause_seconds = FIRST_PAUSE_SECONDS
            for running in worker.tasks.values():
                running.add_done_callback(self._read_on)
            if worker.dropped:
                # Thousands of them may lie before what is meant for us.
                worker.dropped = False
                self._woken.set()
            # Not wait_for: Python 3.11's swallows a cancellation that meets the end of its wait.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._woken.wait()

    def _read_on(self, _: asyncio.Task[Any]) -> None:
        # One look starts eight messages at most. After an outage of all workers thousands lie before the new ones.
        self._woken.set()

    def _room_again(self) -> None:
        # Only where the last look was in vain: not every answer that is finished is worth a look at Redis.
        if not self._picks:
            self._woken.set()

    async def _listen(self, redis: ArqRedis) -> None:
        """Wake the loop whenever somebody rings; without a connection, the loop's own beat must do."""
        while True:
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(WAKE_CHANNEL)
                    while True:
                        if await self._hear(subscription) != "pong":
                            self._woken.set()
            except (RedisError, *CONNECTION_TROUBLE):
                await asyncio.sleep(LONGEST_PAUSE_SECONDS)

    async def _hear(self, subscription: PubSub) -> str:
        """Wait for a message, and return its type; where all is silent, ask whether anybody is there.

        Raises:
            redis.exceptions.TimeoutError: Nobody is.
        """
        message = await subscription.get_message(timeout=LISTEN_SECONDS)
        if message is None:
            await subscription.ping()
            message = await subscription.get_message(timeout=self._settings.redis_timeout_seconds)
        if message is None:
            raise RedisTimeoutError("Redis does not answer the listener.")
        return str(message["type"])
