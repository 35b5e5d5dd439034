"""A model server that repeats everything it was sent, answer and key included, in every way that a reply can be wrong.

How it replies stands in the answer: ``do:NAME``, one of ``WAYS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, Self

from tests.fake_model import BEHAVIOURS, Request, reply_to, verdict_for

if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER_REPLIES: Final = frozenset({"hold", "hang", "drip", "drop", "drop_midway"})


def _echo(request: Request) -> str:
    return f"{request.user} {json.dumps(request.headers)}"


def _status(status: int) -> Callable[[Request], tuple[int, bytes]]:
    return lambda request: (
        status,
        json.dumps({"error": {"code": _echo(request), "message": _echo(request)}}).encode(),
    )


def _verdict(**changes: Callable[[Request], Any]) -> Callable[[Request], tuple[int, bytes]]:
    """A reply whose verdict is sound but for these fields."""

    def reply(request: Request) -> tuple[int, bytes]:
        changed = verdict_for(request) | {name: make(request) for name, make in changes.items()}
        return _called(request, json.dumps(changed))

    return reply


def _called(request: Request, arguments: str) -> tuple[int, bytes]:
    """A sound reply, with other arguments in place of its own."""
    body = json.loads(reply_to(request, "well").body)
    if request.protocol == "anthropic":
        try:
            body["content"][0]["input"] = json.loads(arguments)
        except ValueError:
            body["content"][0]["input"] = {"garbage": arguments}
    else:
        body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = arguments
    return 200, json.dumps(body).encode()


def _renamed(request: Request) -> tuple[int, bytes]:
    """A call of a tool that nobody offered."""
    body = reply_to(request, "well").body.decode()
    return 200, body.replace('"submit_score"', json.dumps(_echo(request))).encode()


# What is wrong, beyond the fake model's own ways.
_OWN: Final[dict[str, Callable[[Request], tuple[int, bytes]]]] = {
    **{
        f"status_{status}": _status(status)
        for status in (400, 401, 403, 404, 408, 409, 413, 418, 422, 429, 500, 503, 529)
    },
    "page": lambda request: (200, f"<html>{_echo(request)}</html>".encode()),
    "not_utf8": lambda request: (200, b"\xff\xfe" + _echo(request).encode()),
    "broken_json": lambda request: (200, ('{"choices": [{"message": "' + _echo(request)).encode()),
    "other_json": lambda request: (
        200,
        json.dumps({"choices": _echo(request), "content": _echo(request)}).encode(),
    ),
    "nothing": lambda _: (200, b""),
    "garbage": lambda request: _called(request, _echo(request)),
    "half_verdict": lambda request: _called(request, '{"reasoning": ' + json.dumps(_echo(request))),
    "other_tool": _renamed,
    "score_is_text": _verdict(overall_score=_echo),
    "score_is_list": _verdict(overall_score=lambda request: [_echo(request)]),
    "dimension_is_text": _verdict(dimensions=_echo),
    "foreign_dimension": _verdict(
        dimensions=lambda request: [{"name": _echo(request), "score": 3, "note": ""}]
    ),
    "extra_field": _verdict(verdict=_echo),
    "observations_are_text": _verdict(key_observations=_echo),
    "oversized": _verdict(reasoning=lambda request: _echo(request) * 2000),
    "oversized_page": lambda request: (200, _echo(request).encode() * 20_000),
    "nul": _verdict(reasoning=lambda request: "\x00" + _echo(request)),
    "surrogate": _verdict(reasoning=lambda request: "\ud800" + _echo(request)),
}
WAYS: Final = tuple(sorted({*_OWN, *BEHAVIOURS} - {"hold"}))


class Parrot:
    """Serves until it is left."""

    def __init__(self) -> None:
        self.drawn: set[str] = set()
        """The ways in which it has replied."""
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
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
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        request = Request(path=first.split()[1].partition("?")[0], headers=headers, body=body)
        asked = re.search(r"do:(\w+)", request.user)
        way = asked[1] if asked else "well"
        self.drawn.add(way)
        if way in _NEVER_REPLIES:
            if way in {"drop", "drop_midway"}:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + _echo(request).encode())
                await writer.drain()
                return False
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" if way == "drip" else b"")
            while True:
                await asyncio.sleep(0.1)
                writer.write(b" " if way == "drip" else b"")
        if way in _OWN:
            (status, content), more = _OWN[way](request), {"X-Echo": _echo(request).replace("\n", " ")}
        else:
            reply = reply_to(request, way)
            status, content, more = reply.status, reply.body, reply.headers
        fields = {"Content-Type": "application/json", "Content-Length": len(content), **more}
        head = [f"HTTP/1.1 {status} {request.headers.get('authorization', 'Parrot')}"]
        head += [f"{name}: {value}" for name, value in fields.items()]
        writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await writer.drain()
        return True
