"""Two transactions at the same moment, without sleeping: one waits until PostgreSQL says that another waits."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")
PATIENCE_SECONDS = 10

# Does this session wait for a lock that somebody else holds?
_WAITS = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")


async def committed(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run something in a transaction of its own, on a connection of its own, and commit."""
    async with engine.begin() as conn:
        return await work(conn)


@asynccontextmanager
async def blocked(
    engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]
) -> AsyncIterator[asyncio.Task[T]]:
    """Start something in a transaction of its own, and go on once it waits for a lock of somebody else.

    Whoever holds the lock ends inside the block; the task is awaited at its end.
    """
    async with engine.connect() as conn, engine.connect() as watcher:
        pid = (await conn.execute(text("SELECT pg_backend_pid()"))).scalar_one()

        async def run() -> T:
            result = await work(conn)
            await conn.commit()
            return result

        task = asyncio.create_task(run())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (await watcher.execute(_WAITS, {"pid": pid})).scalar_one():
                assert not task.done(), "it should have waited for a lock"
        try:
            yield task
        finally:
            await asyncio.wait([task], timeout=PATIENCE_SECONDS)
