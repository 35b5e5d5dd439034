"""The renewer: keeps the leases of what is being worked on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from storage.engine import single_statements
from storage.leases import renew_leases
from storage.translation import translated
from worker.observer import NOBODY
from worker.outage import Outage

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.observer import Observer
    from worker.pool import ScoringPool
    from worker.settler import Settler

logger = logging.getLogger(__name__)

# After an outage the leases are renewed as soon as the finished scores are written, not a period later.
RETRY_SECONDS = 0.5


class Renewer:
    """Renews leases every ``renew_seconds``, in one statement."""

    def __init__(
        self,
        engine: AsyncEngine,
        pool: ScoringPool,
        settler: Settler,
        *,
        lease_seconds: float,
        renew_seconds: float,
        observer: Observer = NOBODY,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._settler = settler
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._observer = observer
        self._lost: set[tuple[int, UUID]] = set()
        self._outage = Outage("PostgreSQL", "Leases cannot be renewed; they are not lost while it is away.")

    @property
    def troubled(self) -> bool:
        """Whether leases wait to be renewed; nothing new should be leased before."""
        return self._outage.ongoing

    async def run_once(self) -> int:
        """Renew once.

        Returns:
            How many leases were renewed.

        Raises:
            StorageUnavailableError: PostgreSQL is away.
        """
        leases = self._pool.renewable()
        if not leases:
            return 0
        with translated():
            async with single_statements(self._engine) as conn:
                renewed = await renew_leases(conn, leases, lease_seconds=self._lease_seconds)
        # One that is missing without its answer being with the scorer is being settled by us.
        lost = {lease for lease in leases if lease[0] not in renewed and self._pool.is_scoring(lease[0])}
        if new := lost - self._lost:
            self._observer.lost(len(new))
        self._lost = lost
        return len(renewed)

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(RETRY_SECONDS if self.troubled else self._renew_seconds)
            if self._settler.troubled:
                continue  # first what is finished, then what is still worked on
            try:
                await self.run_once()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next round must come
                self._outage.met(exc)
            else:
                self._outage.over()
