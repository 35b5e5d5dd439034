"""The sweep: the only rescue, and the only way back for what was postponed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from producers.contract import Drain
from storage.claims import requested_claims
from storage.engine import single_statements
from storage.leases import bury_lost
from storage.sweeps import overdue, revive_missed
from storage.translation import translated
from worker.ending import end, undisturbed
from worker.observer import NOBODY
from worker.outage import Outage

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers.bell import Bell
    from worker.claiming import Claimer
    from worker.intake import Intake
    from worker.observer import Observer

logger = logging.getLogger(__name__)

# Younger than this, a handoff is on its way: its message was sent a moment ago.
OVERDUE_SECONDS = 0.25
# One worker at a time sweeps, by a lock that any login of the database could keep. So often each looks all the same: it
# costs an index entry or two, and what is found twice is leased once.
INSIST_EVERY = 10
# So many claims are announced by one sweep; the next one announces the next.
MAX_CLAIMS = 500


class Sweep:
    """Looks every ``sweep_seconds`` for what nobody takes, and rings for it.

    It writes nothing for what is overdue, so a backlog of a million costs it nothing. This worker pulls for
    itself and rings for the others; where Redis cannot be rung, it also does the rest of what it would have rung
    for. No sweep waits for the ring of another: a Redis that hangs costs nothing but its bell.

    Args:
        engine: Where the tables are.
        bell: Rings for whichever worker has room.
        intake: This worker's own, for when Redis is away.
        claimer: The same for claims.
        lease_seconds: How long leases last.
        sweep_seconds: Pause between two sweeps.
        observer: Told what each sweep found.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        bell: Bell,
        intake: Intake,
        claimer: Claimer,
        lease_seconds: float,
        sweep_seconds: float,
        observer: Observer = NOBODY,
    ) -> None:
        self._engine = engine
        self._bell = bell
        self._intake = intake
        self._claimer = claimer
        self._lease_seconds = lease_seconds
        self._sweep_seconds = sweep_seconds
        self._observer = observer
        self._sweeps = 0
        self._revived_up_to = 0
        self._postgres = Outage("PostgreSQL", "Nothing is swept until it is back.")
        self._redis = Outage("Redis", "This worker takes by itself what is due; others may do the same.")
        self._ringing: asyncio.Task[None] | None = None
        self._applying: asyncio.Task[int] | None = None

    async def run_once(self) -> Counter[str]:
        """Sweep once, and wait until others were rung for.

        Returns:
            What was found: ``live``, ``bulk`` and ``suspect`` (lanes that were rung for), ``buried``,
            ``revived`` and ``claims``.

        Raises:
            StorageUnavailableError: PostgreSQL is away.
        """
        counts = await self._sweep()
        for task in (self._ringing, self._applying):
            if task is not None:
                await task
        return counts

    async def _sweep(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        with translated():
            async with single_statements(self._engine) as conn:
                self._sweeps += 1
                lanes = await overdue(
                    conn,
                    lease_seconds=self._lease_seconds,
                    overdue_seconds=OVERDUE_SECONDS,
                    insist=self._sweeps % INSIST_EVERY == 0,
                )
                if "lost" in lanes:
                    counts["buried"] = len(await bury_lost(conn, lease_seconds=self._lease_seconds))
                counts["revived"], self._revived_up_to = await revive_missed(
                    conn, after_handoff_id=self._revived_up_to
                )
                claim_ids = await requested_claims(conn, age_seconds=OVERDUE_SECONDS, limit=MAX_CLAIMS)
        # A drain that a killed worker was reading keeps its name for a while, and ours would be taken for it. So
        # the bell is for the others; this worker looks for itself.
        for lane in ("live", "bulk"):
            if lane in lanes:
                self._intake.more(lane)
        drains = [Drain(lane=lane) for lane in ("live", "bulk", "suspect") if lane in lanes]
        counts.update({drain.lane: 1 for drain in drains})
        counts["claims"] = len(claim_ids)
        if drains:
            self._serve(drains)
        # Not rung for: who has no room for answers, or whose provider is down, reads no messages. Claims that come
        # while others are being applied are found again by the next sweep.
        if claim_ids and _is_over(self._applying):
            apply = self._claimer.apply(claim_ids)
            self._applying = asyncio.get_running_loop().create_task(apply, name="sweep-claims")
        self._observer.swept(counts)
        return counts

    def _serve(self, drains: list[Drain]) -> None:
        """Ring in the background, once at a time; while Redis owes us an answer, do it without."""
        if _is_over(self._ringing):
            self._ringing = asyncio.get_running_loop().create_task(self._ring(drains), name="sweep-ring")
        else:
            self._serve_alone(drains)

    async def _ring(self, drains: list[Drain]) -> None:
        try:
            await self._bell.ring(drains)
        except Exception as exc:  # noqa: BLE001 - whatever it is, what was found must be served
            self._redis.met(exc)
            self._serve_alone(drains)
        else:
            self._redis.over()

    def _serve_alone(self, drains: list[Drain]) -> None:
        for drain in drains:
            self._intake.more(drain.lane)  # the suspect too: nobody else hears of it

    async def run(self) -> None:
        """Sweep for ever."""
        try:
            while True:
                # Workers that were started together must not sweep in step.
                await asyncio.sleep(self._sweep_seconds * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
                try:
                    counts = await self._sweep()
                except Exception as exc:  # noqa: BLE001 - whatever it is, the next sweep must come
                    self._postgres.met(exc)
                else:
                    self._postgres.over()
                    if any(counts.values()):
                        logger.debug("The sweep found something.", extra=dict(counts))
        finally:
            await undisturbed(end(task for task in (self._ringing, self._applying) if task is not None))


def _is_over(task: asyncio.Task[Any] | None) -> bool:
    return task is None or task.done()
