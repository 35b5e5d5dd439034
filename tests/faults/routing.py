"""Sends each HTTP request to one of several servers, by a word in its body: one answer meets another provider."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Router:
    """Listens on 127.0.0.1, one request for each connection.

    Args:
        port: Where requests go that contain none of the words.
        by_word: Where those go that do.
    """

    def __init__(self, port: int, by_word: Mapping[str, int]) -> None:
        self._port = port
        self._by_word = {word.encode(): port for word, port in by_word.items()}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._exchange(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(length.partition(b":")[2]))
        port = next((port for word, port in self._by_word.items() if word in body), self._port)
        model_reader, model_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            model_writer.write(head + body)
            reply = await model_reader.readuntil(b"\r\n\r\n")
            first, _, rest = reply.partition(b"\r\n")
            [length] = [line for line in rest.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            writer.write(first + b"\r\nConnection: close\r\n" + rest)
            writer.write(await model_reader.readexactly(int(length.partition(b":")[2])))
            await writer.drain()
        finally:
            model_writer.close()
