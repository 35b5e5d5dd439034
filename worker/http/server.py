"""Serves an application from inside the worker's event loop; the worker keeps its signals and its life."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker.ending import end

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

# Responses are made within milliseconds; whoever still waits for one when the worker ends gets none.
STOP_SECONDS = 1
# A connection on which nothing is asked is closed after so long.
SILENT_SECONDS = 10
# Requests that wait to be accepted. Nobody but probes, a scraper and some operators comes here.
BACKLOG = 64
MAX_HEADER_BYTES = 16 * 1024


class _Patient(H11Protocol):
    """uvicorn's own closes a silent connection only after it has served a first request; this one also before."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


class _Guest(uvicorn.Server):
    """A server that is a guest in somebody else's process and event loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave SIGTERM and SIGINT to the worker."""
        return nullcontext()

    async def main_loop(self) -> None:
        """Wait to be told. uvicorn's own looks ten times a second; an idle worker should sleep."""
        self.server_state.default_headers = list(self.config.encoded_headers)
        await self._told.wait()

    def tell(self) -> None:
        self._told.set()


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: An address, or a name for one.
        port: Its number; 0 takes any that is free.

    Returns:
        The socket, which listens already.

    Raises:
        OSError: The port is taken, may not be taken by us, or the host is none of this machine.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server((address[0], port), family=family, backlog=BACKLOG)


class HttpServer:
    """Serves one application on one socket.

    Args:
        app: What is served.
        listener: Where; closed by :meth:`stop`.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        self._server = _Guest(
            uvicorn.Config(
                app,
                http=_Patient,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=SILENT_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Serve from now on."""
        self._serving = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=[self._listener]), name="HTTP port"
        )
        self._serving.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Close the port and every connection, within some seconds."""
        if self._serving is None:
            self._listener.close()
            return
        self._serving.remove_done_callback(self._ended)
        self._server.tell()
        await asyncio.wait([self._serving], timeout=2 * STOP_SECONDS)
        await end([self._serving])
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        self._listener.close()

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> None:
        # Scoring needs none of it; a probe that gets no answer any more has the worker started anew.
        exc = None if task.cancelled() else task.exception()
        logger.error("The HTTP port has ended; the worker goes on scoring.", exc_info=exc)
