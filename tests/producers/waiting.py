"""Wait for a condition instead of a while."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Never reached by a test that passes, however slow the machine.
PATIENCE_SECONDS = 20.0
_PAUSE_SECONDS = 0.01


async def eventually(look: Callable[[], Any], *, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Look again and again until what is seen is true, and return it.

    Args:
        look: A function or coroutine function without arguments.
        patience_seconds: After so long the test fails.
    """
    seen: object = None
    try:
        async with asyncio.timeout(patience_seconds):
            while True:
                found = look()
                seen = found_now = await found if inspect.isawaitable(found) else found
                if found_now:
                    return found_now
                await asyncio.sleep(_PAUSE_SECONDS)
    except TimeoutError:
        msg = f"this never became true; last seen: {seen!r}"
        raise AssertionError(msg) from None


async def settled() -> None:
    """Let everything run that can run without waiting for anybody else."""
    for _ in range(20):
        await asyncio.sleep(0)
