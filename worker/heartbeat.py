"""The heartbeat: says in the database that this worker runs, for status, verify and health checks."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import uuid4

from storage.engine import single_statements
from storage.errors import StorageError
from storage.translation import translated
from storage.workers import remove_worker, report_worker

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.intake import Intake
    from worker.pool import ScoringPool

logger = logging.getLogger(__name__)

# Three reports fit into the time after which a worker counts as gone.
PERIOD_SECONDS = 4.0
# Good-bye is a courtesy: a PostgreSQL that hangs must not hold up the end of the process.
LEAVE_SECONDS = 2.0


class Heartbeat:
    """Reports this worker every few seconds, and once more when it leaves."""

    def __init__(self, engine: AsyncEngine, pool: ScoringPool, intake: Intake) -> None:
        self._engine = engine
        self._pool = pool
        self._intake = intake
        self.worker_id = uuid4()
        self._version = version("assessment-scoring")

    async def run_once(self) -> None:
        """Report once.

        Raises:
            StorageError: PostgreSQL is away or lacks our tables.
        """
        with translated():
            async with single_statements(self._engine) as conn:
                await report_worker(
                    conn,
                    worker_id=self.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=self._version,
                    slots=self._pool.slots,
                    free_slots=self._intake.allowance,
                    note=self._intake.note,
                )

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
