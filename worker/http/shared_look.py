"""One look at the servers for everybody who asks within some seconds."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from worker.ending import end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Seen = TypeVar("Seen")


class SharedLook(Generic[Seen]):
    """Looks at most once in so many seconds, however many ask, and never twice at the same time unless told to forget.

    Whoever asks while a look is under way waits for that one. A look goes on when the one who asked first goes away:
    the others wait for it, and the next one gets what it found.

    Args:
        look: What to do. It should bound itself in time, and tell what failed in what it returns: an error that it
            raises is raised to everybody who waits, and not kept.
        keep_seconds: How long what was seen is good enough, counted from the end of the look.
    """

    def __init__(self, look: Callable[[], Awaitable[Seen]], *, keep_seconds: float) -> None:
        self._look = look
        self._keep_seconds = keep_seconds
        self._looking: asyncio.Task[Seen] | None = None
        self._running: set[asyncio.Task[Seen]] = set()
        self._ended_at = 0.0

    async def get(self) -> Seen:
        """What was seen lately, or is seen now."""
        if self._looking is None or self._is_stale(self._looking):
            self._looking = asyncio.get_running_loop().create_task(self._run(), name="look")
            self._running.add(self._looking)
            self._looking.add_done_callback(self._running.discard)
        # Shielded: a browser that closes its connection must not end the look of the others.
        return await asyncio.shield(self._looking)

    def forget(self) -> None:
        """Look anew the next time: somebody has just changed what is seen. A look that is under way may be too early."""
        self._looking = None

    async def close(self) -> None:
        """End looks that are under way."""
        await end(self._running)

    def _is_stale(self, looking: asyncio.Task[Seen]) -> bool:
        if not looking.done():
            return False
        failed = looking.cancelled() or looking.exception() is not None
        return failed or time.monotonic() - self._ended_at > self._keep_seconds

    async def _run(self) -> Seen:
        try:
            return await self._look()
        finally:
            self._ended_at = time.monotonic()
