"""Ctrl-C and SIGTERM: for commands that end between two steps and not within one, and for those that end anywhere."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import FrameType

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


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Let a signal end the block wherever it is, for what only reads: also where it waits for whoever reads us.

    Raises:
        InterruptedCommandError: A signal came; its message is the one that is given.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        # The one exception that an event loop lets pass wherever it is raised.
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedCommandError(message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
