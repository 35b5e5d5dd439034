"""Ctrl-C and SIGTERM, for commands that end between two steps and not within one."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedCommandError(WorkerError):
    """A signal ended the command; the message says what was done until then."""

    exit_status = 128 + signal.SIGINT


@asynccontextmanager
async def stoppable() -> AsyncIterator[asyncio.Event]:
    """Let the first signal ask for an end, and the second one end the process.

    Yields:
        Set as soon as the end is asked for.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def remove() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def ask() -> None:
        stop.set()
        remove()

    # Python runs handlers in its main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    for number in _SIGNALS:
        loop.add_signal_handler(number, ask)
    try:
        yield stop
    finally:
        remove()


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until the end is asked for."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
