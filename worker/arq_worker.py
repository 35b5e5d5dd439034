"""arq's worker, except that it takes messages in one round trip, and that no message can break it.

The queue in Redis stays arq's: its sorted set, its job format, and its mark for what is being read, which is respected. arq's
own worker takes six round trips from the look at the queue to the first line of a job, which is more time than the lease
that the job is there for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any

from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.worker import Worker
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from producers.contract import DRAIN, QUEUE_NAME, deserialize
from worker.jobs import JOB_TIMEOUT_SECONDS, functions

if TYPE_CHECKING:
    from arq.connections import ArqRedis

logger = logging.getLogger(__name__)

# Messages that are run at the same time. Each is over in milliseconds, and every look walks over all of them: few are
# enough.
MAX_JOBS = 8
# The ids that producers and sweeps of this contract give, and those that arq itself makes up.
_ID = re.compile(
    rb"[0-9a-f]{1,64}|%b:(?:[0-9a-f]{1,64}|%b:(?:live|bulk|suspect))" % (QUEUE_NAME.encode(), DRAIN.encode())
)
UNREADABLE = "<unreadable>"  # no function is called that
_NAMES = frozenset(function.name for function in functions())
HEALTH_SECONDS = 30

CONNECTION_TROUBLE = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)

# Take messages: read what each says and remove it, except those that arq's own worker is reading. What arq does in five
# round trips, and for one message at a time. A message that is lost with whoever took it costs a sweep and no more, so
# there is nothing to mark and nothing to tidy up. A key of another type, which whoever can write to Redis may have put
# there, makes a message without content.
_PICK = f"""
local picked = {{}}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])) do
    if #picked >= tonumber(ARGV[3]) then break end
    if redis.call('EXISTS', '{in_progress_key_prefix}' .. id) == 0 then
        local message = redis.pcall('GET', '{job_key_prefix}' .. id)
        redis.call('ZREM', KEYS[1], id)
        redis.call('DEL', '{job_key_prefix}' .. id, '{retry_key_prefix}' .. id)
        table.insert(picked, {{id, type(message) == 'string' and message or false}})
    end
end
return picked
"""


def _is_readable(job_id: bytes) -> bool:
    # Ids are logged: whatever somebody wrote into Redis, a forged log line or an answer, would stand in the log.
    return _ID.fullmatch(job_id) is not None


def _read(message: bytes) -> dict[str, Any] | None:
    """Read a message; None where it is none of this contract."""
    try:
        job = deserialize(message)
    except ValueError:
        return None
    return None if job["k"] or job["f"] not in _NAMES else job


def _readable_or_unknown(message: bytes) -> dict[str, Any]:
    """Read a message for arq's own worker; one that is none becomes a job that nobody knows.

    arq drops either. But a message that cannot be read, or has keywords that our jobs do not take, it logs as an
    error, with a traceback that quotes it; and the name of a job that it does not know, whatever that name is.
    """
    return _read(message) or {"t": None, "f": UNREADABLE, "a": [], "k": {}, "et": 0}


def _no_result(_: dict[str, Any]) -> bytes:
    """Write down a job's result, which nobody keeps; arq does it all the same, and logs what JSON cannot hold."""
    return b""


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


class HardenedWorker(Worker):
    """arq's worker, except that no message can break it.

    Whoever can write to Redis can put anything there. Where arq would raise out of its main loop, and again
    at the next poll, the message is dropped instead; what it may have named is due in PostgreSQL.

    Args:
        redis: arq's client, with time-outs; closed by :meth:`finish`.
        ctx: What the jobs are given.
    """

    def __init__(self, redis: ArqRedis, ctx: dict[str, Any]) -> None:
        super().__init__(redis_pool=redis, handle_signals=False, ctx=ctx, **arq_options())
        # Whether the last look found something that was dropped.
        self.dropped = False
        self._script = redis.register_script(_PICK)
        self._numbers = itertools.count()

    async def poll_once(self) -> None:
        """Look at the queue once, and start what is there.

        Raises:
            redis.exceptions.RedisError: Redis refused, was not reached or did not answer in time.
        """
        self.tasks = {name: task for name, task in self.tasks.items() if not task.done()}
        if self.allow_pick_jobs and (room := self.max_jobs - len(self.tasks)) > 0:
            for member, message in await self._pick(room):
                if (job := self._readable(member, message)) is None:
                    self.dropped = True
                else:
                    job_id = member.decode()
                    # Not by its id alone: one that is being run can be queued again, and would take its place.
                    name = f"{job_id}#{next(self._numbers)}"
                    self.tasks[name] = self.loop.create_task(self._run(job_id, job), name=name)
        await self.heart_beat()

    async def finish(self, timeout_seconds: float) -> None:
        """Wait for the messages that are being run, and close the connections."""
        if running := set(self.tasks.values()):
            await asyncio.wait(running, timeout=timeout_seconds)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await self.pool.aclose()

    async def _pick(self, room: int) -> list[tuple[bytes, bytes | None]]:
        """Take so many messages; each with its id and what it says."""
        now_ms = time.time_ns() // 1_000_000
        picked: list[tuple[bytes, bytes | None]] = await self._script(
            keys=[self.queue_name], args=[now_ms, self.queue_read_limit, room]
        )
        return picked

    def _readable(self, member: bytes, message: bytes | None) -> dict[str, Any] | None:
        """Read a message; None, and a line in the log, where it is none of ours."""
        if not _is_readable(member):
            logger.warning("A message with an id that is none of ours was dropped.")
            return None
        if (job := _read(message) if message else None) is None:
            self.jobs_failed += 1
            logger.warning("A message that cannot be run was dropped.", extra={"job_id": member.decode()})
        return job

    async def _run(self, job_id: str, job: dict[str, Any]) -> None:
        """Run one message."""
        try:
            async with asyncio.timeout(self.job_timeout_s):
                await self.functions[job["f"]].coroutine(self.ctx, *job["a"])
        except Exception as exc:  # noqa: BLE001 - jobs do not raise; one that does all the same is over as well
            self.jobs_failed += 1
            logger.error(  # noqa: TRY400 - a traceback may quote the message
                "A message ended with an error.", extra={"job_id": job_id, "error": type(exc).__name__}
            )
        else:
            self.jobs_complete += 1
