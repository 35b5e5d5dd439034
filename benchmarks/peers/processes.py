"""How a benchmark's process begins and ends."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import signal
import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

PR_SET_PDEATHSIG = 1

Result = TypeVar("Result")


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone (Linux only); there is nothing to save in it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ready() -> None:
    """Tell whoever started this worker that it takes jobs."""
    print("ready", flush=True)


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of uvloop's event loop, which is quicker for all of them, or asyncio's where it is missing."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - not installed with the project

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        return runner.run(main)
