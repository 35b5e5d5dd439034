"""Apply claims, each in a transaction of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from storage.claims import apply_claim
from storage.errors import StorageUnavailableError
from storage.translation import translated
from worker.observer import NOBODY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.observer import Observer

logger = logging.getLogger(__name__)

# A deadlock victim or a dropped connection deserves so many more tries at once; then the sweep takes over.
TRIES = 3


class Claimer:
    """Moves what students answered anonymously to the users they turned out to be."""

    def __init__(self, engine: AsyncEngine, *, observer: Observer = NOBODY) -> None:
        self._engine = engine
        self._observer = observer

    async def apply(self, claim_ids: Sequence[int]) -> int:
        """Apply claims. One that fails does not keep the others, and is announced again by the sweep.

        Returns:
            How many responses were moved.
        """
        moved = 0
        for claim_id in claim_ids:
            try:
                moved += await self._apply_one(claim_id)
            except StorageUnavailableError:
                logger.warning("PostgreSQL is away; claims wait for the next sweep.")
                return moved
            except Exception:
                logger.exception("A claim could not be applied.", extra={"claim_id": claim_id})
        return moved

    async def _apply_one(self, claim_id: int) -> int:
        for tries_left in reversed(range(TRIES)):
            try:
                with translated():
                    async with self._engine.begin() as conn:
                        applied = await apply_claim(conn, claim_id)
            except StorageUnavailableError:
                if tries_left == 0:
                    raise
            else:
                if applied is None:
                    return 0
                logger.info("A claim was applied.", extra=applied)
                self._observer.claimed(applied["moved"])
                return int(applied["moved"])
        raise AssertionError  # the last round returns or raises
