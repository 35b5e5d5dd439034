"""The intake: decides what a free slot takes next, and leases it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from producers.contract import Drain
from storage.engine import single_statements
from storage.leases import (
    GROUPS_SHRINK_BY,
    bury_lost,
    lease_handoffs,
    pull_handoffs,
    pull_suspects,
    suspect_waits,
)
from storage.translation import translated
from worker.leasing import Leasing
from worker.outage import Outage
from worker.pace import Pace
from worker.pull_cursor import PullCursor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from worker.breaker import Breaker
    from worker.pool import ScoringPool
    from worker.question_cache import QuestionCache
    from worker.rate_limits import RateLimits
    from worker.renewer import Renewer
    from worker.settler import Settler

logger = logging.getLogger(__name__)

# Pull when so small a share of the slots is free: small enough to keep them busy, large enough to share the cost of a
# statement. Fewer are not kept waiting for company longer than this: a slot that idles for 20 ms between answers of two
# seconds costs one percent, and a worker sends at most 25 such statements a second.
PULL_SHARE = 32
GATHER_SECONDS = 0.04
# The bulk lane never holds more of the slots than this, so that a live answer always finds one.
BULK_SHARE = 0.8
# And is taken in pieces that keep the event loop for a few milliseconds, as long as it is idle otherwise.
BULK_PIECE = 16
BULK_CPU_SHARE = 0.4
# With PostgreSQL away, look again after so long.
RETRY_SECONDS = 0.5


class Intake:
    """Fills the pool: from messages, and by pulling while it knows of more.

    Args:
        engine: Where the tables are.
        pool: What is filled.
        breaker: May allow less than there are free slots.
        rate_limits: May grant less than is allowed.
        settler: While it has trouble, nothing is taken.
        renewer: The same.
        questions: What the answers are scored against.
        ring: Rings for another worker; must not raise.
        on_room: Called when slots that a statement might have filled are free again.
        lease_seconds: How long leases last.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        pool: ScoringPool,
        breaker: Breaker,
        rate_limits: RateLimits,
        settler: Settler,
        renewer: Renewer,
        questions: QuestionCache,
        ring: Callable[[Drain], None],
        on_room: Callable[[], None],
        lease_seconds: float,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._breaker = breaker
        self._rate_limits = rate_limits
        self._settler = settler
        self._renewer = renewer
        self._ring = ring
        self._lease_seconds = lease_seconds
        self._more: set[str] = set()  # lanes that are known to hold more
        self._wanted_alone = False
        self._alone = False
        self._stopped = False
        self._changed = asyncio.Event()
        self._bulk_pace = Pace(BULK_CPU_SHARE)
        self._cursors = {lane: PullCursor() for lane in ("live", "bulk")}
        self._gathering_since: float | None = None  # since when too few free slots wait for company
        self._outage = Outage("PostgreSQL", "No answer is taken until it is back.")
        self._leasing = Leasing(
            engine,
            pool,
            questions,
            rate_limits,
            lease_seconds=lease_seconds,
            on_success=self._outage.over,
            on_end=on_room,
        )

    @property
    def allowance(self) -> int:
        """How many answers may be taken now."""
        if self._alone or not self._may_lease or self._rate_limits.pause_seconds("live"):
            return 0
        return max(0, self._breaker.allowance(self._pool.free_slots) - self._leasing.reserved)

    @property
    def _may_lease(self) -> bool:
        # After an outage of PostgreSQL: first settle, then renew, then lease.
        return not (self._stopped or self._settler.troubled or self._renewer.troubled)

    @property
    def has_room(self) -> bool:
        """Whether an answer could be taken, if the breaker allowed it."""
        return self._may_lease and not self._alone and self._pool.free_slots > self._leasing.reserved

    @property
    def wants_messages(self) -> bool:
        """Whether a message is worth reading: not for a single slot while a pull will fill many."""
        return self.allowance >= (self._worth_pulling if "live" in self._more else 1)

    @property
    def _worth_pulling(self) -> int:
        return 1 if self._breaker.is_open else max(1, self._pool.slots // PULL_SHARE)

    @property
    def note(self) -> str | None:
        """Why less is taken than could be, for people."""
        if self._stopped:
            return "stopping"
        if self._settler.troubled or self._renewer.troubled or self._outage.ongoing:
            return "PostgreSQL is away"
        if self._breaker.is_open:
            return "breaker open"
        if self._rate_limits.pause_seconds("live"):
            return "the provider's rate limits are used up"
        return "scoring suspicious answers by themselves" if self._alone else None

    def changed(self) -> None:
        """Something changed that may allow more: a slot is free, a pause is over."""
        self._changed.set()

    async def take(self, response_ids: Sequence[int]) -> int:
        """Lease what a message names, as far as there are slots; the rest is left to whoever has some.

        Returns:
            How many were taken.
        """
        room = self.allowance
        if len(response_ids) > room:
            self.more("live")
            self._ring(Drain(lane="live"))
        # Reserve no more than it can fill: another message may be taking its share at this moment.
        room = min(room, len(response_ids))
        if room == 0:
            return 0

        asked = 0

        async def by_ids(conn: AsyncConnection, limit: int) -> list[dict[str, Any]]:
            nonlocal asked
            asked = limit
            return await lease_handoffs(
                conn,
                response_ids=response_ids,
                lease_token=uuid4(),
                lease_seconds=self._lease_seconds,
                limit=limit,
            )

        taken = await self._leasing.lease(by_ids, room, source="message", certain=True)
        if asked < room:
            self.more("live")  # the rate limits end sooner than the slots
        return taken

    def more(self, lane: str) -> None:
        """Remember that a lane holds more, and pull as soon as there is room."""
        if lane == "suspect":
            self._wanted_alone = True
        else:
            self._more.add(lane)
        self._changed.set()

    def rung_for(self, lane: str) -> None:
        """A bell asks for this lane: pull as soon as there is room; without any, ring on for who has some.

        A message is read while there is room, and another one may have filled it meanwhile.
        """
        if lane == "live" and self.allowance == 0:
            self._ring(Drain(lane="live"))
        self.more(lane)

    async def run(self) -> None:
        """Pull for ever, whenever more is known and there is room."""
        while True:
            # Cleared first: what changes while we pull must bring us back.
            self._changed.clear()
            probe_seconds = self._breaker.seconds_until_probe()
            try:
                if self._wanted_alone and self._may_lease and self._breaker.allowance(1):
                    await self._score_alone()
                while await self._pull():
                    pass
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next round must come
                self._outage.met(exc)
            # A probe that was due before we pulled waits for something else than time: for an answer to be due,
            # or for a slot.
            pauses = [probe_seconds]
            if self._more:
                pauses += [self._rate_limits.pause_seconds(lane) for lane in ("live", "bulk")]
                if self._gathering_since is not None:
                    pauses.append(max(0.001, self._gathering_since + GATHER_SECONDS - time.monotonic()))
            if "bulk" in self._more:
                pauses.append(self._bulk_pace.pause_seconds())
            await self._wait_for_change(min(filter(None, pauses), default=None))

    async def stop(self) -> None:
        """Take nothing any more, and wait for the leases that are being taken."""
        self._stopped = True
        self._changed.set()
        await self._leasing.wait()

    async def _wait_for_change(self, pause_seconds: float | None) -> None:
        if self._outage.ongoing or self._settler.troubled or self._renewer.troubled:
            pause_seconds = RETRY_SECONDS
        # Not wait_for: Python 3.11's swallows a cancellation that meets the end of its wait.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_seconds):
                await self._changed.wait()

    async def _pull(self) -> bool:
        """Pull once from the first lane that has more.

        Returns:
            Whether it is worth doing again at once.
        """
        room = self.allowance
        for lane in ("live", "bulk"):
            if lane not in self._more:
                continue
            if lane == "bulk":
                # One at least, or a worker with a single slot would never rescore anything.
                most = max(1, int(self._pool.slots * BULK_SHARE))
                room = min(room, most - self._pool.in_lane("bulk"))
                if self._rate_limits.pause_seconds("bulk") or self._bulk_pace.pause_seconds():
                    self._gathering_since = None  # it is held up, and nobody waits for company
                    return False
            if not self._is_worth_pulling(room):
                return False
            if lane == "bulk":
                room = min(room, BULK_PIECE)
                self._bulk_pace.begin()
            # Forgotten first: a bell that rings while we pull counts for the next time.
            self._more.discard(lane)
            try:
                more = await self._pull_from(lane, room)
            except Exception:
                self._more.add(lane)
                raise
            if more:
                self._more.add(lane)
            return True
        return False

    def _is_worth_pulling(self, room: int) -> bool:
        """Whether to pull now: for many slots at once, or for few that have waited for company long enough."""
        now = time.monotonic()
        if room < 1:
            self._gathering_since = None
        elif room >= self._worth_pulling or now >= (self._gathering_since or now) + GATHER_SECONDS:
            self._gathering_since = None
            return True
        elif self._gathering_since is None:
            self._gathering_since = now
        return False

    async def _pull_from(self, lane: str, room: int) -> bool:
        """Pull, and say whether the lane may hold more."""
        asked = 0
        pulled: list[dict[str, Any]] = []
        cursor = self._cursors[lane]

        async def by_lane(conn: AsyncConnection, limit: int) -> list[dict[str, Any]]:
            nonlocal asked, pulled
            asked = limit
            pulled = await pull_handoffs(
                conn,
                lane=lane,
                lease_token=uuid4(),
                lease_seconds=self._lease_seconds,
                limit=limit,
                after=cursor.after,
            )
            return pulled

        await self._leasing.lease(by_lane, room, source="pull", lane=lane)
        return cursor.pulled(pulled, asked)

    async def _score_alone(self) -> None:
        """Score one group of suspicious answers with nothing else in this process's hands, and reopen.

        One group for each time that somebody asks: between two, other answers have their turn.
        """
        self._wanted_alone = False
        if not await self._suspect_waits():
            return
        self._alone = True
        try:
            await self._leasing.wait()
            await self._until_empty()
            # Asked only now: while we waited, the breaker may have opened.
            most = max(1, self._pool.slots // GROUPS_SHRINK_BY)
            room = min(most, self._breaker.allowance(self._pool.free_slots))
            if self._stopped or not room:
                return

            async def suspects(conn: AsyncConnection, limit: int) -> list[dict[str, Any]]:
                for buried in await bury_lost(conn, lease_seconds=self._lease_seconds):
                    logger.error("An answer stopped its workers too often and is dead now.", extra=buried)
                return await pull_suspects(
                    conn,
                    slots=self._pool.slots,
                    lease_token=uuid4(),
                    lease_seconds=self._lease_seconds,
                    limit=limit,
                )

            if await self._leasing.lease(suspects, room, source="suspects"):
                await self._until_empty()
        finally:
            self._alone = False

    async def _suspect_waits(self) -> bool:
        # Asked before everything else is held up: whoever can write to Redis can ask for this as often as he likes.
        with translated():
            async with single_statements(self._engine) as conn:
                return await suspect_waits(conn, lease_seconds=self._lease_seconds)

    async def _until_empty(self) -> None:
        while not (self._pool.holds_nothing or self._stopped):
            self._changed.clear()
            await self._changed.wait()
