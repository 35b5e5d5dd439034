"""``GET /events``: server-sent events about the caller's own answers, for as long as he listens.

Every stream is a response that writes itself, without a task group or a queue of its own: a thousand of them have to
fit into one process. It ends, and the browser's ``EventSource`` comes back with ``Last-Event-ID``, when the client has
gone, takes nothing for too long, has listened for ``max_stream_seconds`` (so that a sign-out takes effect), or when
the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Header
from starlette.responses import JSONResponse, Response

from producers.errors import ProducerClosedError, TooManyListenersError
from producers.feed import Feed, FeedSettings, parse_cursor
from storage.errors import InvalidInputError
from storage.validation import checked_owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.types import Receive, Scope, Send

    from producers.feed import Listener
    from storage.validation import Owner

# How often it is looked whether the server stops.
_STOP_SECONDS = 0.5
# Streams that began together shall not all come back together.
_SPREAD = 0.2


class Caller(Protocol):
    """Who asks: exactly one of the two is set."""

    @property
    def user_id(self) -> int | None:
        """The signed-in student."""

    @property
    def anonymous_token(self) -> str | None:
        """The anonymous student's secret."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How streams behave.

    Args:
        keep_alive_seconds: A stream without events says something after so long, seconds, so that no proxy takes it
            for dead.
        max_stream_seconds: After about so long a stream ends and its client comes back, and is asked again who it is.
        send_seconds: A client that takes nothing for so long, seconds, is given up.
        retry_ms: How long a browser waits before it comes back, milliseconds.
        feed: See :class:`producers.feed.FeedSettings`.
    """

    keep_alive_seconds: float = 15.0
    max_stream_seconds: float = 300.0
    send_seconds: float = 30.0
    retry_ms: int = 2_000
    feed: FeedSettings = field(default_factory=FeedSettings)


def _server_stops() -> bool:
    """Whether uvicorn has been told to stop.

    It waits for open responses before it tells the application, which would be for ever. While it runs, it is the
    handler of the signal.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


def _problem(status: int, title: str, detail: str, *, retry_seconds: int | None = None) -> Response:
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": []},
        status,
        {"Cache-Control": "no-store"}
        | ({} if retry_seconds is None else {"Retry-After": str(retry_seconds)}),
        "application/problem+json",
    )


class EventStreams:
    """All streams of one process, and the feed behind them, one for each engine.

    Args:
        settings: See :class:`StreamSettings`.
    """

    def __init__(self, settings: StreamSettings | None = None) -> None:
        self.settings = settings or StreamSettings()
        self._feeds: WeakKeyDictionary[AsyncEngine, Feed] = WeakKeyDictionary()
        self._open: set[Listener] = set()
        self._watch: asyncio.Task[None] | None = None

    def listen(self, engine: AsyncEngine, owner: Owner, cursor: int | None) -> tuple[Feed, Listener]:
        """Begin to listen; arguments and errors as of ``Feed.listen``. Give both back with :meth:`leave`."""
        if (feed := self._feeds.get(engine)) is None:
            feed = self._feeds[engine] = Feed(engine, self.settings.feed)
        listener = feed.listen(owner, cursor)
        self._open.add(listener)
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_server_stops(), name="assessment event streams")
        return feed, listener

    def leave(self, feed: Feed, listener: Listener) -> None:
        """End listening."""
        feed.leave(listener)
        self._open.discard(listener)
        if not self._open and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _until_server_stops(self) -> None:
        # Until the last has left, also those who come while it is stopping.
        while True:
            if _server_stops():
                for listener in self._open:
                    listener.end()
            await asyncio.sleep(_STOP_SECONDS)

    async def close(self) -> None:
        """End all streams, for servers that are not stopped by a signal to uvicorn."""
        await asyncio.gather(*(feed.close() for feed in self._feeds.values()))


class _Stream(Response):
    """One stream. It listens from when it is sent until it is not sent any more, whatever ends it."""

    media_type = "text/event-stream"

    def __init__(self, streams: EventStreams, engine: AsyncEngine, owner: Owner, cursor: int | None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._engine = engine
        self._owner = owner
        self._cursor = cursor

    def init_headers(self, headers: Any = None) -> None:
        self.body = b""
        super().init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            feed, listener = self._streams.listen(self._engine, self._owner, self._cursor)
        except TooManyListenersError as exc:
            status, title = (
                (429, "Too many streams of this student") if exc.is_owners else (503, "Too many streams")
            )
            await _problem(status, title, str(exc), retry_seconds=30)(scope, receive, send)
            return
        except ProducerClosedError:
            detail = "The server stops; another one will answer."
            await _problem(503, "Stopping", detail, retry_seconds=1)(scope, receive, send)
            return
        gone = asyncio.create_task(_end_when_gone(listener, receive))
        try:
            await self._write(listener, send, gone)
        except TimeoutError:
            # He takes nothing. The response stays unfinished, and the server closes the connection.
            pass
        finally:
            gone.cancel()
            self._streams.leave(feed, listener)
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    async def _write(self, listener: Listener, send: Send, gone: asyncio.Task[None]) -> None:
        settings, loop = self._streams.settings, asyncio.get_running_loop()
        longest = settings.max_stream_seconds * (1 - _SPREAD * random.random())  # noqa: S311 - no secret
        ends_at = loop.time() + longest

        async def put(body: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(settings.send_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await put(b"retry: %d\n\n" % settings.retry_ms)
        while not gone.done():
            wait_seconds = min(settings.keep_alive_seconds, ends_at - loop.time())
            await listener.wait(wait_seconds)
            if gone.done():
                return
            events, cursor = listener.take()
            if events:
                await put(_encoded(events, cursor))
            elif not listener.ended:
                await put(_position(cursor) + b":\n\n")
            if listener.ended or loop.time() >= ends_at:
                break
        await put(b"", more=False)


async def _end_when_gone(listener: Listener, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.end()


def _position(cursor: int | None) -> bytes:
    return b"" if cursor is None else b"id: %d\n" % cursor


def _encoded(events: list[str], cursor: int | None) -> bytes:
    """Events as bytes. Only the last carries the cursor: who gets half of them comes back with the one before."""
    *first, last = [b"event: response\ndata: " + data.encode() + b"\n" for data in events]
    return b"".join(event + b"\n" for event in first) + last + _position(cursor) + b"\n"


def events_router(
    *,
    identity: Callable[..., Any],
    engine: Callable[..., Any],
    settings: StreamSettings | None = None,
    streams: EventStreams | None = None,
) -> APIRouter:
    """Make the router with ``GET /events``.

    Args:
        identity: Dependency that says who asks: something with ``user_id`` and ``anonymous_token``. What it depends on
            lives as long as the stream, unless it is of the scope ``function``: let it hold no connection.
        engine: Dependency that gives the web app's own engine.
        settings: See :class:`StreamSettings`.
        streams: Where the host wants to close them itself.

    Returns:
        The router.
    """
    opened = streams or EventStreams(settings)
    router = APIRouter()

    # The annotations name arguments of this function, so they cannot be looked up by name later.
    async def events(caller: Any, asked: Any, last_event_id: Any = None) -> Response:
        try:
            owner = checked_owner(caller.user_id, caller.anonymous_token)
        except InvalidInputError:
            return _problem(401, "Unknown caller", "Sign in, or take an anonymous token first.")
        return _Stream(opened, asked, owner, parse_cursor(last_event_id))

    events.__annotations__ = {
        "caller": Annotated[Any, Depends(identity, scope="function")],
        "asked": Annotated[Any, Depends(engine, scope="function")],
        "last_event_id": Annotated[str | None, Header(description="Where an earlier stream was interrupted")],
    }
    router.add_api_route(
        "/events",
        events,
        methods=["GET"],
        response_class=Response,
        response_model=None,
        summary="Follow one's own answers",
        description="Server-sent events: each is the state of one answer, and receiving one twice changes nothing.",
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "A stream.",
            },
            429: {"description": "This student has too many streams open."},
            503: {"description": "This process has too many streams open, or stops."},
        },
    )
    return router
