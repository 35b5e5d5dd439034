"""What an orchestrator asks: whether this process lives (``/healthz``) and whether it can do its work (``/readyz``).

They are different questions. Only a new process mends a hung one, so a worker that does not answer ``/healthz`` shall be
started anew, and nothing outside of it may make it fail. A server that is away is mended by no restart; on the contrary,
finished scores wait in memory until PostgreSQL is back, so that shows in ``/readyz`` alone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from storage.errors import StorageError
from storage.migration_files import newest_revision
from storage.reading import reading
from storage.schema import schema_revision
from storage.translation import translated
from worker.http.shared_look import SharedLook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

# A server that takes longer is of no use now. Kubernetes gives a probe one second unless told otherwise.
CHECK_SECONDS = 1.5
# Any number of probes cost as much as one in so long.
KEEP_SECONDS = 2.0
# The event loop is expected to come by every second. With 2,000 slots it may be late by some; so late, it hangs.
TURN_SECONDS = 1.0
HANGS_SECONDS = 30.0


class Watchdog:
    """Comes by once a second, on the same event loop as everything else, and remembers when it did.

    While the loop hangs nobody answers a probe, which is as good as a no. This also finds out when only the
    answering goes on: when what the worker consists of has ended, or time passes and nothing comes round.

    Args:
        ended: Names the worker's loops that have ended although they should not.
    """

    def __init__(self, ended: Callable[[], list[str]]) -> None:
        self._ended = ended
        self._turned_at = time.monotonic()
        self._pauses: list[float] = []

    async def run(self) -> None:
        """Come by for ever."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            now = time.monotonic()
            self._pauses = [*self._pauses[-59:], max(0.0, now - self._turned_at - TURN_SECONDS)]
            self._turned_at = now

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether the worker lives, and what tells so: seconds since the loop came by, and its longest lateness lately."""
        silent_seconds = time.monotonic() - self._turned_at
        ended = self._ended()
        alive = silent_seconds < HANGS_SECONDS and not ended
        return alive, {
            "alive": alive,
            "turned_seconds_ago": round(silent_seconds, 3),
            "latest_seconds_last_minute": round(max(self._pauses, default=0.0), 3),
            "ended": ended,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the work needs: whether it is there, and in a few words why not."""

    name: str
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, "detail": self.detail}


class Readiness:
    """Asks PostgreSQL, Redis and the schema's version, each within a second and a half, at most every two seconds.

    Args:
        engine: Its own connection: a readiness that waits behind the work would say no because there is work.
        redis: The worker's client.
        stopping: Whether the worker takes nothing new any more.
    """

    def __init__(self, engine: AsyncEngine, redis: Redis, *, stopping: Callable[[], bool]) -> None:
        self._engine = engine
        self._redis = redis
        self._stopping = stopping
        self._expected: str | None = None
        self.look = SharedLook(self._checks, keep_seconds=KEEP_SECONDS)

    async def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether the worker can do its work now, and each check by its name."""
        checks = await self.look.get()
        ready = all(check.ok for check in checks) and not self._stopping()
        return ready, {
            "ready": ready,
            "stopping": self._stopping(),
            "checks": {check.name: check.as_dict() for check in checks},
        }

    async def _checks(self) -> list[Check]:
        (postgresql, schema), redis = await asyncio.gather(self._postgresql(), self._redis_answers())
        return [postgresql, redis, schema]

    async def _postgresql(self) -> tuple[Check, Check]:
        if self._expected is None:
            self._expected = newest_revision()
        revision: str | None = None

        async def ask() -> None:
            nonlocal revision
            with translated():
                async with reading(self._engine, timeout_seconds=CHECK_SECONDS) as conn:
                    revision = await schema_revision(conn)

        answer = await _bounded("postgresql", ask())
        if not answer.ok:
            return answer, Check("schema", ok=False, detail="not known while PostgreSQL does not answer")
        return answer, judge_revision(revision, self._expected)

    async def _redis_answers(self) -> Check:
        async def ask() -> None:
            await self._redis.ping()

        return await _bounded("redis", ask())


def judge_revision(revision: str | None, expected: str) -> Check:
    """Tell whether this version of the worker can work with that revision of the tables.

    Revisions are numbers. A newer one is fine: in a rollout the tables are migrated while old workers go on.
    """
    if revision is None:
        return Check(
            "schema", ok=False, detail=f"no tables, expected revision {expected}: run scoring migrate"
        )
    if revision < expected:
        return Check(
            "schema", ok=False, detail=f"revision {revision}, expected {expected}: run scoring migrate"
        )
    return Check("schema", ok=True, detail=f"revision {revision}")


async def _bounded(name: str, question: Awaitable[None]) -> Check:
    """Ask within the time; what goes wrong is told by its kind, since a driver's message may quote a password."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await question
    except TimeoutError:
        return Check(name, ok=False, detail=f"no answer within {CHECK_SECONDS:g} s")
    except StorageError as exc:
        return Check(name, ok=False, detail=str(exc))
    except (RedisError, OSError) as exc:
        return Check(name, ok=False, detail=f"does not answer ({type(exc).__name__})")
    return Check(name, ok=True, detail=f"answered in {(time.monotonic() - started) * 1000:.0f} ms")
