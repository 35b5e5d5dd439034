"""What the database says of the backlog, asked for seldom, however often monitoring asks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from storage.engine import single_statements
from storage.statistics import handoff_statistics
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# Several scrapers, or a page that reloads, cost the database one look in so long.
CACHE_SECONDS = 5.0
# Less than the ten seconds that Prometheus waits by default.
TIMEOUT_SECONDS = 3.0


class DatabaseGauges:
    """Reads the counts of ``scoring status``; a database that is away gives None and no error.

    Args:
        engine: Where the tables are.
        cache_seconds: How long an answer, or its absence, serves, seconds.
    """

    def __init__(self, engine: AsyncEngine, *, cache_seconds: float = CACHE_SECONDS) -> None:
        self._engine = engine
        self._cache_seconds = cache_seconds
        self._read: dict[str, Any] | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def read(self) -> dict[str, Any] | None:
        """Return what ``storage.statistics.handoff_statistics`` does, or None while PostgreSQL does not answer."""
        async with self._lock:  # who comes meanwhile gets the same answer
            if time.monotonic() >= self._fresh_until:
                try:
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        with translated():
                            async with single_statements(self._engine) as conn:
                                self._read = await handoff_statistics(conn)
                except Exception:  # noqa: BLE001 - whatever it is, the other metrics must come
                    self._read = None
                self._fresh_until = time.monotonic() + self._cache_seconds
            return self._read
