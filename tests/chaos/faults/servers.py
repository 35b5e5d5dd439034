"""PostgreSQL and Redis crash, hang, forget, and break connections off."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import text

from storage.errors import StorageUnavailableError
from tests.chaos.causes import Cause
from tests.chaos.faults.base import SLACK_SECONDS, Fault
from tests.chaos.processes import children
from tests.chaos.terms import REDIS_TIMEOUT_SECONDS, SWEEP_SECONDS

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

# Workers and producers look for a lost Redis once a second at most, and hear of a silent one by its time-out.
REDIS_BOUND_SECONDS = SWEEP_SECONDS + REDIS_TIMEOUT_SECONDS + SLACK_SECONDS
BELL_WORKS = "new answers are picked up by the bell"

# Some of everybody's connections but ours; the background processes of the server are none.
_TERMINATE = text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.6
""")


class _RedisFault(Fault):
    victim = "Redis"
    recovery = BELL_WORKS
    bound_seconds = REDIS_BOUND_SECONDS

    async def recovered(self, arena: Arena, *, since: float) -> float:
        return await arena.observer.prompt(since=since)


class RedisKilled(_RedisFault):
    """Redis crashes and comes back empty."""

    name = "Redis killed, comes back empty"
    hold_seconds = 1.5
    usual_seconds = 4.0

    async def begin(self, arena: Arena) -> None:
        await asyncio.to_thread(arena.servers.redis.kill)

    async def end(self, arena: Arena) -> None:
        if arena.servers.redis.process is None:
            await asyncio.to_thread(arena.servers.redis.start)


class RedisEmptied(_RedisFault):
    """Somebody flushes what is not his."""

    name = "Redis emptied"
    usual_seconds = 1.5

    async def begin(self, arena: Arena) -> None:
        await arena.redis.flushall()


class RedisHangs(_RedisFault):
    """Redis keeps its connections and answers nothing."""

    name = "Redis hangs"
    hold_seconds = 3.0
    usual_seconds = 5.0

    async def begin(self, arena: Arena) -> None:
        assert arena.servers.redis.process is not None
        arena.servers.redis.process.send_signal(signal.SIGSTOP)

    async def end(self, arena: Arena) -> None:
        if arena.servers.redis.process is not None:
            arena.servers.redis.process.send_signal(signal.SIGCONT)


class PostgresCrashes(Fault):
    """The machine under PostgreSQL dies: all its processes at once, and with them what was not written yet."""

    name = "PostgreSQL crashes"
    victim = "PostgreSQL"
    hold_seconds = 1.0
    recovery = "new answers are picked up by the bell"
    # It reads its log first; then everything that was submitted meanwhile comes at once.
    bound_seconds = 9.0 + SLACK_SECONDS
    usual_seconds = 4.0

    _since: float | None = None

    async def begin(self, arena: Arena) -> None:
        postmaster = arena.servers.postgres.process
        assert postmaster is not None
        arena.postgres_down += 1
        self._since = arena.now()
        # Frozen first, so that it neither forks nor tidies up while its children are counted.
        postmaster.send_signal(signal.SIGSTOP)
        backends = children(postmaster.pid)
        postmaster.kill()
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(arena.servers.postgres.kill)

    async def end(self, arena: Arena) -> None:
        if self._since is None:
            return
        await asyncio.to_thread(arena.servers.postgres.start)
        arena.wound(Cause.CRASHED, self.number, since=self._since, until=arena.now())

    async def recovered(self, arena: Arena, *, since: float) -> float:
        try:
            return await arena.observer.prompt(since=since)
        finally:
            # Only now: a worker that was starting just then has given up by now, if it had to.
            arena.postgres_down -= 1


class BackendsTerminated(Fault):
    """An administrator, or a fail-over, ends connections in the middle of whatever they do."""

    name = "PostgreSQL sessions terminated"
    victim = "PostgreSQL"
    recovery = "new answers are picked up by the bell"
    bound_seconds = SWEEP_SECONDS + SLACK_SECONDS
    usual_seconds = 2.0

    async def begin(self, arena: Arena) -> None:
        with suppress(StorageUnavailableError):
            await arena.observer.rows(_TERMINATE)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        return await arena.observer.prompt(since=since)
