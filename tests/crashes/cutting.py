"""Cut a process off at its n-th command to a server, and kill it there.

The process is the production code, unchanged, under a real SIGKILL; nothing in it knows of the cut. Every byte that it
sends to PostgreSQL or to Redis passes a proxy. Neither driver sends a second request on a connection before the
first is answered, so what arrives at one time on one connection is one request: also each step of a login, each
PREPARE, BEGIN, COMMIT and goodbye. They are counted over all connections of the process.

``before``: the n-th request and everything after it, on any connection, does not reach a server any more.
``after``: it does, and the server executes it; when the first bytes of the reply are there, neither they nor anything
else passes in either direction. (PostgreSQL sends replies below 8 KiB, such as all of ours, when it has committed.)

Then the process is killed. It may have gone on for some microseconds, but no server heard of it: what the servers
know is exactly what they would know had it died at the n-th request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.crashes.wire import Reader

Side = Literal["before", "after"]
SIDES: tuple[Side, ...] = ("before", "after")


@dataclass(slots=True)
class Cut:
    """Where one process shall die, and what became of it.

    ``at`` counts from 1; 0 lets the process live.
    """

    at: int
    side: Side
    kill: Callable[[], None] = lambda: None
    commands: int = 0
    command: str = ""
    happened: bool = False
    connections: set[_Client] = field(default_factory=set)

    def passes(self, client: _Client, request: bytes) -> bool:
        """Count a request, and say whether it reaches the server."""
        if self.happened:
            return False
        self.commands += 1
        what = client.reader.describe(request)
        if self.commands == self.at:
            self.command = what
            if self.side == "before":
                self.happen()
                return False
            client.last_reply = True
        return True

    def happen(self) -> None:
        """Let nothing pass any more, and kill.

        Connections fall silent and are not closed: that would be news to the process, and it might act on it.
        """
        if not self.happened:
            self.happened = True
            self.kill()


class _Server(asyncio.Protocol):
    """The side of the server: passes replies on."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.reply(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._client.server_left()


class _Client(asyncio.Protocol):
    """The side of the process: passes requests on, as far as the cut allows."""

    def __init__(self, cut: Cut, port: int, reader: Reader) -> None:
        self._cut = cut
        self._port = port
        self.reader = reader
        self.last_reply = False
        self._waiting = bytearray()
        self._transport: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._cut.connections.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            server, _ = await asyncio.get_running_loop().create_connection(
                lambda: _Server(self), "127.0.0.1", self._port
            )
        except OSError:
            self.break_off()
            return
        if self._transport is None or self._cut.happened:
            server.abort()
            return
        self._server = server
        if self._waiting:
            server.write(bytes(self._waiting))

    def data_received(self, data: bytes) -> None:
        if not self._cut.passes(self, data):
            return
        if self._server is None:
            self._waiting += data
        else:
            self._server.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._transport = None
        # What it sent before it left still counts, as on a real connection.
        if self._server is not None and not self._server.is_closing():
            self._server.close()
        if self._cut.happened or not self.last_reply:
            self._cut.connections.discard(self)

    def reply(self, data: bytes) -> None:
        """Pass a reply on, unless it is the one that the process does not live to see."""
        if self.last_reply:
            self._cut.happen()
        elif self._transport is not None and not self._cut.happened:
            self._transport.write(data)

    def server_left(self) -> None:
        """The server has closed the connection: some requests, such as a goodbye, have no other reply."""
        if self.last_reply:
            self._cut.happen()
        if not self._cut.happened:
            self.break_off()

    def break_off(self) -> None:
        """Close both sides at once."""
        for transport in (self._transport, self._server):
            if transport is not None:
                transport.abort()
        self._cut.connections.discard(self)


class CuttingProxy:
    """Stands between a process and a server on 127.0.0.1.

    Args:
        port: The server's port.
        new_reader: Makes what describes the requests of one connection.
    """

    def __init__(self, port: int, new_reader: Callable[[], Reader]) -> None:
        self._target = port
        self._new_reader = new_reader
        self._server: asyncio.Server | None = None
        self.cut = Cut(0, "before")

    @property
    def port(self) -> int:
        """Where the process connects."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Client(self.cut, self._target, self._new_reader()), "127.0.0.1", 0
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for client in list(self.cut.connections):
            client.break_off()
        await self._server.wait_closed()
