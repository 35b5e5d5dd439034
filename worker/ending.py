"""End tasks for certain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable


async def end(tasks: Iterable[asyncio.Task[Any]], *, patience_seconds: float = 1.0) -> None:
    """Cancel tasks until all of them are over; what they end with is dropped.

    One cancellation is not enough for a loop around a driver: redis-py and Python 3.11's ``wait_for`` lose one
    that comes at the moment at which their wait ends, and the loop would go on for ever.

    Args:
        tasks: What shall end.
        patience_seconds: How long a task may take over its end before it is cancelled again, seconds.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=patience_seconds)
        for task in done:
            if not task.cancelled():
                task.exception()


async def undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Do what must be done to its end, whoever cancels us meanwhile; then be cancelled.

    ``asyncio.shield`` alone lets the work go on, but nobody waits for it, and connections stay open.

    Args:
        work: Something bounded in time, as closing a connection.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()
