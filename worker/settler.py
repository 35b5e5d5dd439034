"""The settler: performs decisions, many in one commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy.exc import DataError, IntegrityError

from storage.engine import single_statements
from storage.errors import InvalidInputError, StorageBusyError
from storage.settlements import (
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from storage.translation import translated
from worker.decisions import Bury, Fail, HandBack, Postpone, Settle, handoff_of, unstorable
from worker.observer import NOBODY
from worker.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from storage.settlements import Release
    from worker.decisions import Transition
    from worker.leased import Lease
    from worker.observer import Observer, Result

logger = logging.getLogger(__name__)

# Rows in one statement; more would only make the first of them wait.
MAX_BATCH = 500
# Finished scores are worth waiting for: tried again for ever, at this pace.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
# At most one line in so long tells how many results were written.
REPORT_SECONDS = 30.0
# A row that somebody holds locked is tried again after so long.
BUSY_PAUSE_SECONDS = 2.0

_RELEASING: dict[
    type[Transition], Callable[[AsyncConnection, Sequence[Release]], Awaitable[frozenset[int]]]
] = {
    Postpone: postpone_handoffs,
    Fail: fail_handoffs,
    Bury: bury_handoffs,
    HandBack: hand_back_handoffs,
}


def _log(lease: Lease, what: Transition) -> None:
    """Log what a person may want to know of at once: every answer that is dead, and why others wait."""
    if isinstance(what, (Bury, Fail, Postpone)):
        about = {"response_id": lease.response_id, "reason": what.release.reason}
        if isinstance(what, Bury):
            logger.warning("An answer is dead; see scoring dead list.", extra=about)
        else:
            logger.info("An answer is tried again later.", extra=about)


@dataclass(frozen=True, slots=True)
class _Decided:
    """A transition that waits to be performed, since some moment of the monotonic clock.

    ``in_doubt``: a try before may have been committed without our learning of it.
    """

    lease: Lease
    transition: Transition
    since: float
    in_doubt: bool = False


class Settler:
    """Writes scores and releases; while one commit is in flight, the next batch gathers.

    What PostgreSQL cannot take now is kept in memory and written when it is back: a score that was paid for
    is lost only with the process.

    Args:
        engine: Where the tables are.
        max_attempts: For the attempt that fails because its score cannot be stored.
        on_done: Told about every handoff that this worker is done with.
        observer: Told how every lease ended.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        max_attempts: int,
        on_done: Callable[[int], None],
        observer: Observer = NOBODY,
    ) -> None:
        self._engine = engine
        self._max_attempts = max_attempts
        self._on_done = on_done
        self._observer = observer
        self._waiting: list[_Decided] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._outage = Outage("PostgreSQL", "Finished scores wait in memory and are written when it is back.")
        self.counts: Counter[str] = Counter()
        self._set_aside_until: deque[tuple[float, _Decided]] = deque()
        self._busy: set[int] = set()
        self._reported: Counter[str] = Counter()
        self._report_at = 0.0

    @property
    def troubled(self) -> bool:
        """Whether finished work waits for PostgreSQL; nothing new should be taken meanwhile."""
        return self._outage.ongoing

    def put(self, lease: Lease, transition: Transition) -> None:
        """Have a transition performed; returns at once."""
        self._waiting.append(_Decided(lease, transition, time.monotonic()))
        self._idle.clear()
        self._arrived.set()

    async def wait_idle(self) -> None:
        """Wait until everything that was put is performed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Perform what is put, for ever."""
        while True:
            await self._arrival()
            while self._waiting:
                batch = self._waiting[:MAX_BATCH]
                del self._waiting[:MAX_BATCH]
                for kind in (Settle, Fail, Postpone, Bury, HandBack):
                    if chosen := [decided for decided in batch if isinstance(decided.transition, kind)]:
                        await self._perform(kind, chosen)
            if not self._set_aside_until:
                self._idle.set()
            self._report()

    async def _arrival(self) -> None:
        """Wait until something is put, until it is time to try what was set aside, or to report."""
        times = [self._set_aside_until[0][0]] if self._set_aside_until else []
        if self.counts != self._reported:
            times.append(self._report_at)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - time.monotonic()) if times else None):
                await self._arrived.wait()
        self._arrived.clear()
        while self._set_aside_until and self._set_aside_until[0][0] <= time.monotonic():
            self._waiting.append(self._set_aside_until.popleft()[1])

    def _report(self) -> None:
        """Say now and then how it goes, so that a worker's log shows that it works."""
        if time.monotonic() >= self._report_at and self.counts != self._reported:
            lately = self.counts - self._reported
            logger.info("Results were written.", extra=dict(lately))
            self._reported = self.counts.copy()
            self._report_at = time.monotonic() + REPORT_SECONDS

    async def _perform(self, kind: type[Transition], batch: list[_Decided]) -> None:
        """Perform transitions of one kind. Tries again while PostgreSQL is away; halves what it refuses."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                performed = await self._execute(kind, [decided.transition for decided in batch])
            except StorageBusyError:
                return await self._set_aside(kind, batch)
            except (InvalidInputError, DataError, IntegrityError, ValueError, TypeError):
                return await self._split(kind, batch)
            except Exception as exc:  # noqa: BLE001 - see below
                # Away, not migrated, no privilege, or something nobody foresaw: all of it can be mended
                # without losing a score, so none of it uses up an attempt.
                self._outage.met(exc)
                batch = [replace(decided, in_doubt=True) for decided in batch]
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(LONGEST_PAUSE_SECONDS, pause_seconds * 2)
            else:
                self._outage.over()
                self._account(kind, batch, performed)
                return None

    async def _set_aside(self, kind: type[Transition], batch: list[_Decided]) -> None:
        """Somebody holds a row of the batch locked: find it and try it again later; the others must not wait for it."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._perform(kind, batch[:middle])
            await self._perform(kind, batch[middle:])
            return
        lease = batch[0].lease
        if lease.handoff_id not in self._busy:
            self._busy.add(lease.handoff_id)
            logger.info("A handoff is locked by somebody else.", extra={"response_id": lease.response_id})
        self._set_aside_until.append((time.monotonic() + BUSY_PAUSE_SECONDS, batch[0]))

    async def _execute(self, kind: type[Transition], batch: list[Transition]) -> frozenset[int]:
        with translated():
            async with single_statements(self._engine) as conn:
                if kind is Settle:
                    settlements = [what.settlement for what in batch if isinstance(what, Settle)]
                    return frozenset(row["handoff_id"] for row in await settle_handoffs(conn, settlements))
                releases = [what.release for what in batch if not isinstance(what, Settle)]
                return await _RELEASING[kind](conn, releases)

    async def _split(self, kind: type[Transition], batch: list[_Decided]) -> None:
        """One bad row fails a whole statement: find it, and let only its attempt fail."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._perform(kind, batch[:middle])
            await self._perform(kind, batch[middle:])
            return
        lease = batch[0].lease
        if kind is Settle:
            replacement = unstorable(lease, max_attempts=self._max_attempts)
            logger.error("PostgreSQL refused to store a score.", extra={"response_id": lease.response_id})
            await self._perform(type(replacement), [replace(batch[0], transition=replacement)])
        else:
            # Its lease runs out by itself.
            refused = batch[0]
            self.counts[f"{kind.__name__.lower()}_refused"] += 1
            self._observer.ended(lease, refused.transition, "refused", time.monotonic() - refused.since)
            self._busy.discard(lease.handoff_id)
            self._on_done(lease.handoff_id)

    def _account(
        self,
        kind: type[Transition],
        batch: list[_Decided],
        performed: frozenset[int],
    ) -> None:
        name = kind.__name__.lower()
        for decided in batch:
            lease = decided.lease
            result: Result = "too_late"
            if handoff_of(decided.transition) in performed:
                result = "committed"
                self.counts[name] += 1
                _log(lease, decided.transition)
            elif decided.in_doubt:
                result = "in_doubt"
                self.counts[f"{name}_in_doubt"] += 1
            else:
                # Somebody else settled it first, or it was replaced or revoked meanwhile.
                self.counts[f"{name}_too_late"] += 1
                logger.info(
                    "A result came too late and was dropped.", extra={"response_id": lease.response_id}
                )
            self._observer.ended(lease, decided.transition, result, time.monotonic() - decided.since)
            self._busy.discard(lease.handoff_id)
            self._on_done(lease.handoff_id)
