"""arq's worker, driven by a loop of our own.

arq's ``main()`` ends when Redis does, polls on a fixed beat, and picks messages whether or not there is room
for the work. This loop polls when it is woken, only while there is room, and survives whatever Redis does.
What arq does with a message, ``_poll_iteration`` and ``run_job``, stays arq's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from typing import TYPE_CHECKING, Any

from arq.connections import ArqRedis
from arq.constants import job_key_prefix, retry_key_prefix
from arq.worker import Worker
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from producers.bell import connect
from producers.contract import DRAIN, QUEUE_NAME, WAKE_CHANNEL, deserialize, serialize
from worker.ending import end, undisturbed
from worker.jobs import JOB_TIMEOUT_SECONDS, functions
from worker.outage import Outage

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

    from worker.runtime import Runtime
    from worker.settings import ScoringSettings

logger = logging.getLogger(__name__)

# Messages that are run at the same time. Each is over in milliseconds, and arq walks over all of them at
# every poll: few are enough.
MAX_JOBS = 8
# The ids that producers and sweeps of this contract give, and those that arq itself makes up.
_ID = re.compile(
    rb"[0-9a-f]{1,64}|%b:(?:[0-9a-f]{1,64}|%b:(?:live|bulk|suspect))" % (QUEUE_NAME.encode(), DRAIN.encode())
)
UNREADABLE = "<unreadable>"  # no function is called that
_NAMES = frozenset(function.name for function in functions())
HEALTH_SECONDS = 30
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
# How long the listener waits for a wake-up before it makes sure that its connection lives.
LISTEN_SECONDS = 5.0

_CONNECTION_TROUBLE = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)


def _is_readable(job_id: bytes) -> bool:
    # arq logs ids: whatever somebody wrote into Redis, a forged log line or an answer, would stand in the log.
    return _ID.fullmatch(job_id) is not None


def _readable_or_unknown(message: bytes) -> dict[str, Any]:
    """Read a message; one that is none becomes a job that nobody knows.

    arq drops either. But a message that cannot be read, or has keywords that our jobs do not take, it logs as an
    error, with a traceback that quotes it; and the name of a job that it does not know, whatever that name is.
    """
    unknown: dict[str, Any] = {"t": None, "f": UNREADABLE, "a": [], "k": {}, "et": 0}
    try:
        job = deserialize(message)
    except ValueError:
        return unknown
    return unknown if job["k"] or job["f"] not in _NAMES else job


def _no_result(_: dict[str, Any]) -> bytes:
    """Write down a job's result, which nobody keeps; arq does it all the same, and logs what JSON cannot hold."""
    return b""


class HardenedWorker(Worker):
    """arq's worker, except that no message can break it.

    Whoever can write to Redis can put anything there. Where arq would raise out of its main loop, and again
    at the next poll, the message is dropped instead; what it may have named is due in PostgreSQL.
    """

    # Whether the last look found something that was dropped.
    dropped = False

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start messages, dropping those whose id is none of ours."""
        readable = []
        for job_id in job_ids:
            if _is_readable(job_id):
                readable.append(job_id)
            else:
                logger.warning("A message with an id that is none of ours was dropped.")
                await self.pool.zrem(self.queue_name, job_id)
                await self.pool.delete(
                    *(prefix.encode() + job_id for prefix in (job_key_prefix, retry_key_prefix))
                )
        self.dropped = self.dropped or len(readable) < len(job_ids)
        before = set(self.tasks)
        await super().start_jobs(readable)
        if readable and self.tasks.keys() == before:
            # arq takes a score of zero for "not queued" and leaves it; a hundred of them would hide the queue.
            await self.pool.zremrangebyscore(self.queue_name, 0, 0)

    async def run_job(self, job_id: str, score: int) -> None:
        """Run one message, dropping it where arq itself fails on it."""
        try:
            await super().run_job(job_id, score)
        except _CONNECTION_TROUBLE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a forged message can provoke
            logger.warning("A message that arq cannot run was dropped.", extra={"error": type(exc).__name__})
            await self.finish_failed_job(job_id, None)

    async def poll_once(self) -> None:
        """Look at the queue once, start what is there, and reap what has ended."""
        await self._poll_iteration()

    async def finish(self, timeout_seconds: float) -> None:
        """Wait for the messages that are being run, and close the connections."""
        if running := set(self.tasks.values()):
            await asyncio.wait(running, timeout=timeout_seconds)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await self.pool.aclose()


def arq_options() -> dict[str, Any]:
    """What ``scoring worker`` and ``arq worker.main.WorkerSettings`` have in common."""
    return {
        "functions": functions(),
        "queue_name": QUEUE_NAME,
        "max_jobs": MAX_JOBS,
        "job_timeout": JOB_TIMEOUT_SECONDS,
        "keep_result": 0,
        "health_check_interval": HEALTH_SECONDS,
        "health_check_key": f"{QUEUE_NAME}:health:{socket.gethostname()}:{os.getpid()}",
        "job_serializer": _no_result,
        "job_deserializer": _readable_or_unknown,
        "log_results": False,
    }


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
        runtime.redis_is_away = lambda: self._outage.ongoing

    async def run(self) -> None:
        """Poll until cancelled, whatever happens to Redis."""
        while True:
            redis = connect_arq(self._settings)
            worker = HardenedWorker(redis_pool=redis, handle_signals=False, **arq_options())
            worker.ctx["runtime"] = self._runtime
            listener = asyncio.create_task(self._listen(redis), name="listener")
            try:
                await self._poll(worker)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next connection must come
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
        except (RedisError, *_CONNECTION_TROUBLE):
            logger.debug("A broken connection could not be closed.")

    async def _poll(self, worker: HardenedWorker) -> None:
        while True:
            self._woken.clear()
            worker.allow_pick_jobs = self._picks = self._runtime.intake.wants_messages
            await worker.poll_once()
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
            except (RedisError, *_CONNECTION_TROUBLE):
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
