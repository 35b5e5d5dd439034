"""One worker is cut off: its packets go nowhere, and nobody tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.causes import Cause
from tests.chaos.faults.base import BEYOND_LEASE_SECONDS, SLACK_SECONDS, WorkerFault
from tests.chaos.terms import (
    CALL_LONGEST_SECONDS,
    DATABASE_TIMEOUT_SECONDS,
    MODEL_TIMEOUT_SECONDS,
    REDIS_TIMEOUT_SECONDS,
    SLOTS,
)
from worker.breaker import LONGEST_PAUSE_SECONDS

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.producers.proxy import Proxy


class _CutOff(WorkerFault):
    _since: float | None = None

    def proxy(self, arena: Arena) -> Proxy:
        raise NotImplementedError

    async def prepare(self, arena: Arena) -> None:
        await self.filled(arena, SLOTS // 2)

    async def begin(self, arena: Arena) -> None:
        self.pid = self.place(arena).pid
        self.held = await arena.provider.held_by(self.pid)
        self._since = arena.now()
        self.proxy(arena).silent = True

    async def end(self, arena: Arena) -> None:
        if self._since is None:
            return
        # What was lost in between stays lost: no connection survives it.
        self.proxy(arena).cut()
        self.proxy(arena).silent = False

    async def recovered(self, arena: Arena, *, since: float) -> float:
        works = await arena.observer.until(lambda: arena.provider.serves(self.place(arena).pid, since=since))
        return max(works, await arena.observer.scored(self.held))


class CutOffFromPostgres(_CutOff):
    """The worker can neither renew nor settle, for longer than its lease."""

    name = "worker cut off from PostgreSQL"
    hold_seconds = BEYOND_LEASE_SECONDS
    recovery = "it scores again, and every answer that was with it is scored"
    bound_seconds = DATABASE_TIMEOUT_SECONDS + 2 * CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = hold_seconds + 2.5

    def proxy(self, arena: Arena) -> Proxy:
        return self.place(arena).postgres

    async def end(self, arena: Arena) -> None:
        await super().end(arena)
        if self._since is not None:
            # Whoever was killed meanwhile has a successor that was cut off, too.
            for pid in {self.pid, self.place(arena).pid}:
                arena.wound(Cause.CUT_OFF, self.number, since=self._since, until=arena.now(), pid=pid)


class CutOffFromRedis(_CutOff):
    """The worker hears no bell; the others do, and it sweeps."""

    name = "worker cut off from Redis"
    hold_seconds = 3.0
    recovery = "it scores again, and every answer that was with it is scored"
    bound_seconds = REDIS_TIMEOUT_SECONDS + 2 * CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = hold_seconds + 1.5

    def proxy(self, arena: Arena) -> Proxy:
        return self.place(arena).redis


class CutOffFromModel(_CutOff):
    """Calls are made and paid, and no reply comes back."""

    name = "worker cut off from the model"
    hold_seconds = 3.0
    recovery = "it scores again, and every answer that was with it is scored"
    bound_seconds = MODEL_TIMEOUT_SECONDS + LONGEST_PAUSE_SECONDS + 2 * CALL_LONGEST_SECONDS + SLACK_SECONDS
    usual_seconds = hold_seconds + 5.0

    def proxy(self, arena: Arena) -> Proxy:
        return self.place(arena).model

    async def end(self, arena: Arena) -> None:
        await super().end(arena)
        if self._since is not None:
            for pid in {self.pid, self.place(arena).pid}:
                arena.wound(Cause.REPLY_LOST, self.number, since=self._since, until=arena.now(), pid=pid)
