"""What no interface between server and application says: that the server stops, and that a connection is to be dropped.

Both are read from uvicorn, where it runs us; beside another server nothing here does anything.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive


def _frames() -> Iterator[Any]:
    """Where the tasks of this loop stand, from the outermost coroutine inwards."""
    for task in asyncio.all_tasks():
        waits: Any = task.get_coro()
        while waits is not None:
            if (frame := getattr(waits, "cr_frame", None)) is not None:
                yield frame
            waits = getattr(waits, "cr_await", None)


def running_servers() -> list[Any]:
    """Find the uvicorn servers that run in this loop, whoever started them and whoever handles the signals."""
    module = sys.modules.get("uvicorn.server")
    if module is None:
        return []
    found = (frame.f_locals.get("self") for frame in _frames() if frame.f_code.co_name == "serve")
    return [server for server in found if isinstance(server, module.Server)]


def abort_connection(receive: Receive) -> bool:
    """Drop a request's connection, with all that was written and not sent.

    An application can only leave a response unfinished: uvicorn calls that an error of ours, and keeps what was written
    until TCP gives up, after a quarter of an hour.

    Args:
        receive: Of the request.

    Returns:
        Whether that was possible; not behind a middleware that puts a function of its own in the place of ``receive``.
    """
    # By name: uvloop's transports are of no class of asyncio's.
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    abort = getattr(transport, "abort", None)
    if abort is None:
        return False
    abort()
    return True
