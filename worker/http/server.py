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
# From one answer, or from the connection itself, to the end of the next answer: who asks slowly, or does not read what
# was asked for, is cut off. Longer than a silence and the longest answer together, which is an action of 10 seconds.
EXCHANGE_SECONDS = 30
# Requests that wait to be accepted. Nobody but probes, a scraper and some operators comes here.
BACKLOG = 64
# Connections at a time; each more cuts off the oldest. A worker that has no file descriptors left cannot reach
# PostgreSQL either.
MAX_CONNECTIONS = 100
MAX_HEADER_BYTES = 16 * 1024


class _Bounded(H11Protocol):
    """uvicorn's own holds a connection for as long as somebody sends a byte now and then, or reads nothing.

    This one also closes a connection on which nothing is asked at first, cuts off one on which an exchange takes too
    long, and makes room for those that come.
    """

    connections: set[_Bounded]  # type: ignore[assignment]
    opened_at: float
    _due: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.opened_at = self.loop.time()
        self._due = self.loop.call_later(EXCHANGE_SECONDS, transport.abort)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if len(self.connections) > MAX_CONNECTIONS:
            oldest = min(self.connections, key=lambda connection: connection.opened_at)
            # Here and now: many may come before the loop tells it that it is lost.
            self.connections.discard(oldest)
            oldest.transport.abort()

    def on_response_complete(self) -> None:
        """Begin the time of the next exchange, before what was sent ahead of its turn is looked at."""
        self._due.cancel()
        self._due = self.loop.call_later(EXCHANGE_SECONDS, self.transport.abort)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._due.cancel()


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
                http=_Bounded,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                log_level="error",  # a warning for each request that is none would let whoever connects fill the log
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
