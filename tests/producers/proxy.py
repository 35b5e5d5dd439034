"""A TCP proxy that fails on command: cuts connections, refuses new ones, loses replies, falls silent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Proxy:
    """Stands between a client and a server on 127.0.0.1.

    Args:
        port: The server's port.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lose_reply_with: bytes | None = None
        self.refuses = False
        self.silent = False
        self.lost_replies = 0
        self.refused = 0
        self.seen = bytearray()
        self.requests = 0  # reads of what clients sent; what is written at once is read at once

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections off."""
        for writer in self._writers:
            writer.transport.abort()

    def break_down(self) -> None:
        """Break all connections off and let nobody in any more."""
        self.refuses = True
        self.cut()

    def lose_next_reply(self, *, that_contains: bytes) -> None:
        """Let the server work, but break off instead of passing on its next reply of this kind."""
        self._lose_reply_with = that_contains

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        mine = {writer, their_writer}
        self._writers |= mine
        try:
            await asyncio.gather(
                self._pump(reader, their_writer, replies=False),
                self._pump(their_reader, writer, replies=True),
            )
        finally:
            self._writers -= mine
            for each in mine:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if not replies:
                    self.seen += chunk
                    self.requests += 1
                elif self._lose_reply_with is not None and self._lose_reply_with in chunk:
                    self._lose_reply_with = None
                    self.lost_replies += 1
                    break
                if self.silent:
                    continue
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()
