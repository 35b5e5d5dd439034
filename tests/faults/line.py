"""A line to a server that can go dead: nothing arrives, nothing is refused, and connecting hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Self

from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from types import TracebackType

_CHUNK = 65536
# More than the kernel lets wait on a socket that listens with a backlog of 1.
_CALLERS = 8


class Line:
    """Stands between a client and a server on 127.0.0.1, and is a black hole on command.

    Unlike a proxy that swallows what it reads, a dead line reads nothing: what was sent waits in the kernel, as
    it would wait for retransmission. So it may arrive long after whoever sent it has given up.

    Args:
        port: The server's port.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._alive = asyncio.Event()
        self._alive.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: list[socket.socket] = []
        self._listener = socket.socket()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    def to(self, url: str) -> str:
        """The URL of the server, by this line."""
        return make_url(url).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)

    async def __aenter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._tasks.add(asyncio.create_task(self._accept()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (tasks := self._tasks.copy()):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        self._hang_up()
        self._listener.close()

    def go_dead(self) -> None:
        """Let nothing through any more, and nobody in: even connecting hangs."""
        self._alive.clear()
        # While the queue of those who wait to be accepted is full, the kernel answers nobody who knocks.
        self._listener.listen(1)
        for _ in range(_CALLERS):
            caller = socket.socket()
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(("127.0.0.1", self.port))
            self._callers.append(caller)

    def come_back(self, *, late: bool) -> None:
        """Let everything through again.

        Args:
            late: What was sent meanwhile arrives now; otherwise the connections of before are gone.
        """
        if not late:
            for writer in self._writers:
                writer.transport.abort()
        self._hang_up()
        self._listener.listen(64)
        self._alive.set()

    def _hang_up(self) -> None:
        for caller in self._callers:
            caller.close()
        self._callers.clear()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(self._listener)
            try:
                await self._alive.wait()
                reader, writer = await asyncio.open_connection(sock=accepted)
            except BaseException:
                accepted.close()
                raise
            self._writers.add(writer)
            connection = asyncio.create_task(self._serve(reader, writer))
            self._tasks.add(connection)
            connection.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = {writer}
        try:
            with contextlib.suppress(OSError):
                their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
                mine.add(their_writer)
                self._writers.add(their_writer)
                await asyncio.gather(self._pump(reader, their_writer), self._pump(their_reader, writer))
        finally:
            self._writers -= mine
            for each in mine:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._alive.wait()
                writer.write(chunk)
                await writer.drain()
            # The end of a connection travels like everything else.
            await self._alive.wait()
        writer.transport.abort()
