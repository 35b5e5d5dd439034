"""arq's worker, except that it takes messages in one round trip, and that no message can break it.

The protocol in Redis stays arq's: its sorted set, its job format, its keys for what is in progress and how often it was
tried. arq's own worker takes six round trips from the look at the queue to the first line of a job, which is more time
than the lease that the job is there for.
"""

from __future__ import annotations

import asyncio
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
from worker.jobs import JOB_TIMEOUT_SECONDS, MAX_TRIES, functions

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
# How long arq remembers that a message was tried.
_RETRY_EXPIRES_SECONDS = 88_400

CONNECTION_TROUBLE = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)

# Take messages: mark each as being read, count the try, and fetch what it says. What arq does in five round trips,
# and for one message at a time. A key of another type, which whoever can write to Redis may have put there, makes a
# message without content, which is dropped.
_PICK = f"""
local picked = {{}}
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(members) do
    if #picked >= tonumber(ARGV[3]) then break end
    if redis.call('SET', '{in_progress_key_prefix}' .. id, '1', 'NX', 'PX', ARGV[4]) then
        local message = redis.pcall('GET', '{job_key_prefix}' .. id)
        local tries = redis.pcall('INCR', '{retry_key_prefix}' .. id)
        redis.pcall('EXPIRE', '{retry_key_prefix}' .. id, {_RETRY_EXPIRES_SECONDS})
        if type(message) ~= 'string' or type(tries) ~= 'number' then
            message, tries = false, 0
        end
        table.insert(picked, {{id, message, tries}})
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

    async def poll_once(self) -> None:
        """Reap what has ended, look at the queue once, and start what is there.

        Raises:
            redis.exceptions.RedisError: Redis refused, was not reached or did not answer in time, now or when the end
                of a message was to be noted.
        """
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                task.result()
        if self.allow_pick_jobs and (room := self.max_jobs - len(self.tasks)) > 0:
            for member, message, tries in await self._pick(room):
                if _is_readable(member):
                    job_id = member.decode()
                    self.tasks[job_id] = self.loop.create_task(self._run(job_id, message, tries))
                else:
                    self.dropped = True
                    logger.warning("A message with an id that is none of ours was dropped.")
                    await self._forget(member)
        await self.heart_beat()

    async def finish(self, timeout_seconds: float) -> None:
        """Wait for the messages that are being run, and close the connections."""
        if running := set(self.tasks.values()):
            await asyncio.wait(running, timeout=timeout_seconds)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await self.pool.aclose()

    async def _pick(self, room: int) -> list[tuple[bytes, bytes | None, int]]:
        """Take so many messages; each with its id, what it says, and how often it was taken."""
        now_ms = time.time_ns() // 1_000_000
        in_progress_ms = int(self.in_progress_timeout_s * 1000)
        picked: list[tuple[bytes, bytes | None, int]] = await self._script(
            keys=[self.queue_name], args=[now_ms, self.queue_read_limit, room, in_progress_ms]
        )
        return picked

    async def _forget(self, member: bytes) -> None:
        prefixes = (in_progress_key_prefix, job_key_prefix, retry_key_prefix)
        async with self.pool.pipeline(transaction=True) as pipe:
            pipe.zrem(self.queue_name, member)
            pipe.delete(*(prefix.encode() + member for prefix in prefixes))
            await pipe.execute()

    async def _run(self, job_id: str, message: bytes | None, tries: int) -> None:
        """Run one message; whatever becomes of it, it is read only once, unless this process ends before."""
        job = _read(message) if message else None
        if job is None or tries > MAX_TRIES:
            logger.warning("A message that cannot be run was dropped.", extra={"job_id": job_id})
            self.dropped = True
            self.jobs_failed += 1
            await self._forget(job_id.encode())
            return
        done = True
        try:
            async with asyncio.timeout(self.job_timeout_s):
                await self.functions[job["f"]].coroutine(self.ctx, *job["a"])
            self.jobs_complete += 1
        except asyncio.CancelledError:
            done = False  # left to another worker
            raise
        except Exception as exc:  # noqa: BLE001 - jobs do not raise; one that does all the same is over as well
            logger.error(  # noqa: TRY400 - a traceback may quote the message
                "A message ended with an error.", extra={"job_id": job_id, "error": type(exc).__name__}
            )
            self.jobs_failed += 1
        finally:
            await asyncio.shield(self.finish_job(job_id, done, None, None, False, None, None))
