"""Keeps worker processes alive, as an orchestrator does: one that died is started again."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.processes import start_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Death:
    """The end of a worker process that nobody had told to end."""

    pid: int
    exit_status: int
    at: float
    """Seconds since 1970."""
    log: Path


@asynccontextmanager
async def supervised(
    environment: Mapping[str, str], folder: Path, *, workers: int
) -> AsyncIterator[list[Death]]:
    """Run so many workers while the block lasts; at its end they are killed.

    Args:
        environment: Their variables.
        folder: Where their logs go.
        workers: How many.

    Yields:
        The deaths so far, in their order.
    """
    deaths: list[Death] = []
    started = 0

    async def keep_one() -> None:
        nonlocal started
        while True:
            started += 1
            worker = await start_process(environment, folder / f"supervised-{started}.log")
            try:
                exit_status = await worker.process.wait()
                deaths.append(Death(worker.pid, exit_status, time.time(), worker.log))
            finally:
                await worker.killed()

    keepers = [asyncio.create_task(keep_one()) for _ in range(workers)]
    try:
        yield deaths
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.wait(keepers)
