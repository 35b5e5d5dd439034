"""The heartbeat: says in the database that this worker runs, for status, verify and health checks."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from storage.engine import single_statements
from storage.errors import StorageError
from storage.translation import translated
from storage.workers import remove_worker, report_worker
from worker.provider_report import ProviderReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.breaker import Breaker
    from worker.intake import Intake
    from worker.pool import ScoringPool
    from worker.rate_limits import RateLimits

logger = logging.getLogger(__name__)

# Three reports fit into the time after which a worker counts as gone.
PERIOD_SECONDS = 4.0
# Good-bye is a courtesy: a PostgreSQL that hangs must not hold up the end of the process.
LEAVE_SECONDS = 2.0
# The one note of a worker that takes as much as it could.
REDIS_IS_AWAY = "Redis is away"


class Heartbeat:
    """Reports this worker every few seconds, and once more when it leaves.

    Args:
        engine: Where the tables are.
        pool: How many slots there are.
        intake: How many are free, and why not more.
        breaker: What is known of the provider.
        rate_limits: What is left of its limits.
        provider: Its name, the same for all workers that share it; None where none is asked.
        redis_is_away: Whether the bell is out of order; None: nobody knows.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        pool: ScoringPool,
        intake: Intake,
        breaker: Breaker,
        rate_limits: RateLimits,
        provider: str | None,
        redis_is_away: Callable[[], bool | None],
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._intake = intake
        self._breaker = breaker
        self._rate_limits = rate_limits
        self._provider = provider
        self._redis_is_away = redis_is_away
        self.worker_id = uuid4()
        # How many workers share our provider, ourselves included.
        self.fleet = 1
        self._version = version("assessment-scoring")

    async def run_once(self) -> None:
        """Report once.

        Raises:
            StorageError: PostgreSQL is away or lacks our tables.
        """
        with translated():
            async with single_statements(self._engine) as conn:
                self.fleet = await report_worker(
                    conn,
                    worker_id=self.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=self._version,
                    slots=self._pool.slots,
                    free_slots=self._intake.allowance,
                    note=self._intake.note or (REDIS_IS_AWAY if self._redis_is_away() else None),
                    provider=self._about_provider(),
                )

    def _about_provider(self) -> dict[str, Any] | None:
        if self._provider is None:
            return None
        report = ProviderReport(
            name=self._provider,
            breaker="open" if self._breaker.is_open else "closed",
            shared=self._breaker.is_shared,
            reason=self._breaker.reason,
            open_seconds=self._breaker.open_seconds,
            rate_limits=self._rate_limits.report(),
        )
        return report.model_dump(mode="json")

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.run_once()
            except Exception:  # noqa: BLE001 - the others log outages; this one only falls silent
                logger.debug("The heartbeat could not be reported.")

    async def leave(self) -> None:
        """Say good-bye; silence would do, a little later."""
        try:
            with translated():
                async with asyncio.timeout(LEAVE_SECONDS), single_statements(self._engine) as conn:
                    await remove_worker(conn, worker_id=self.worker_id)
        except StorageError:
            logger.debug("The heartbeat could not be removed.")
