"""``GET /events``: server-sent events about the caller's own answers, for as long as he listens.

Every stream is a response that writes itself, without a task group or a queue of its own: a thousand of them have to
fit into one process. It ends, and the browser's ``EventSource`` comes back with ``Last-Event-ID``, when the client has
gone, takes nothing for too long, has listened for ``max_stream_seconds`` (so that a sign-out takes effect), or when
the server stops.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Header
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from producers.errors import ProducerClosedError, TooManyListenersError
from producers.feed import Cursor, Feed, FeedSettings, Listener, parse_cursor
from producers.web.documentation import problems
from producers.web.host import Host
from producers.web.identity import Identity
from producers.web.problems import ProblemError
from producers.web.servers import abort_connection, running_servers
from storage.validation import Owner, checked_owner

MEDIA_TYPE = "text/event-stream"
# Whoever was refused comes back so much later, seconds.
_FULL_SECONDS = 30
# How often it is looked whether the server stops.
_STOP_SECONDS = 0.5
# A dropped connection is reported at once; whatever happens, it is not waited for longer.
_ABORT_SECONDS = 1.0
# Streams that began together shall not all come back together.
_SPREAD = 0.2


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


def _too_many(exc: TooManyListenersError) -> ProblemError:
    return ProblemError(
        HTTPStatus.TOO_MANY_REQUESTS if exc.is_owners else HTTPStatus.SERVICE_UNAVAILABLE,
        str(exc),
        kind="too-many-streams",
        headers={"Retry-After": str(_FULL_SECONDS), "Cache-Control": "no-store"},
    )


def _stops() -> ProblemError:
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "This server stops; another one will answer.",
        headers={"Retry-After": "1", "Cache-Control": "no-store"},
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

    @property
    def open_streams(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def are_blind(self) -> bool | None:
        """Whether some feed behind them cannot look at PostgreSQL just now; None while nobody listens."""
        looking = [feed.is_blind for feed in self._feeds.values() if feed.is_blind is not None]
        return any(looking) if looking else None

    def listen(self, engine: AsyncEngine, owner: Owner, cursor: Cursor | None) -> tuple[Feed, Listener]:
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
        # A server waits for open responses before it tells the application that it stops, which would be for ever. Until
        # the last has left, also those who come while it is stopping.
        servers = running_servers()
        while True:
            if any(server.should_exit for server in servers):
                for listener in self._open:
                    listener.end()
            await asyncio.sleep(_STOP_SECONDS)

    async def close(self) -> None:
        """End all streams, and begin no other. For servers other than uvicorn, before they wait for open responses."""
        await asyncio.gather(*(feed.close() for feed in self._feeds.values()))


# As OpenAPI 3.2 describes each event of a stream. The data are those of a response, without its text.
_EVENT_SCHEMA: dict[str, Any] = {
    "title": "AssessmentEvent",
    "type": "object",
    "properties": {
        "event": {"type": "string", "const": "response"},
        "id": {"type": "string", "description": "for Last-Event-ID"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "type": "object",
                "required": ["id", "module_slug", "question_id", "state", "score"],
                "properties": {
                    "id": {"type": "integer"},
                    "module_slug": {"type": "string"},
                    "question_id": {"type": "string"},
                    "state": {
                        "type": "string",
                        "enum": ["waiting", "unpublished", "scoring", "scored", "failed"],
                    },
                    "score": {"type": ["object", "null"]},
                },
            },
        },
        "retry": {"type": "integer", "minimum": 0},
    },
}
_EXAMPLE = (
    'event: response\ndata: {"id":42,"module_slug":"photosynthesis","question_id":"why-leaves-are-green",'
    '"state":"waiting","score":null}\nid: 7312-5b0c91fe\n\n'
)
_DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            MEDIA_TYPE: {
                "itemSchema": _EVENT_SCHEMA,
                "examples": {"waiting": {"summary": "An answer waits.", "value": _EXAMPLE}},
            }
        }
    }
}


class _Stream(Response):
    """One stream. It listens from when it is sent until it is not sent any more, whatever ends it."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        streams: EventStreams,
        engine: AsyncEngine,
        owner: Owner,
        cursor: Cursor | None,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.raw_headers.extend(headers)
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
            await _too_many(exc).response()(scope, receive, send)
            return
        except ProducerClosedError:
            await _stops().response()(scope, receive, send)
            return
        gone = asyncio.create_task(_end_when_gone(listener, receive))
        try:
            await self._write(listener, send, gone)
        except TimeoutError:
            # He takes nothing. Where the connection cannot be dropped, the response stays unfinished.
            if abort_connection(receive):
                await asyncio.wait([gone], timeout=_ABORT_SECONDS)
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


def _position(cursor: Cursor | None) -> bytes:
    return b"" if cursor is None else b"id: %s\n" % str(cursor).encode()


def _encoded(events: list[str], cursor: Cursor | None) -> bytes:
    """Events as bytes. Only the last carries the cursor: who gets half of them comes back with the one before."""
    *first, last = [b"event: response\ndata: " + data.encode() + b"\n" for data in events]
    return b"".join(event + b"\n" for event in first) + last + _position(cursor) + b"\n"


def add_events(router: APIRouter, host: Host, streams: EventStreams) -> None:
    """Add the route.

    What the host's dependencies open, they hold for as long as a stream, unless they are of FastAPI's scope
    ``function``.

    Args:
        router: Where to.
        host: What the host app gives.
        streams: All streams of this router.
    """

    @router.get(
        "/events",
        operation_id="follow_responses",
        summary="Follow one's own answers",
        response_class=Response,  # of no type: else the document would call the whole stream a text
        response_description="Server-sent events, each the state of one answer; receiving one twice changes nothing.",
        responses=_DESCRIBED | problems("too_many_streams", "too_many_streams_here"),
    )
    async def follow(
        caller: Annotated[Identity, Depends(host.identity, scope="function")],
        engine: Annotated[AsyncEngine, Depends(host.engine, scope="function")],
        response: Response,
        last_event_id: Annotated[
            str | SkipJsonSchema[None], Header(description="where an earlier stream was interrupted")
        ] = None,
    ) -> Response:
        """Tell how the caller's answers stand, and then whatever becomes of them."""
        owner = checked_owner(caller.user_id, caller.anonymous_token)
        # The host's dependencies have perhaps given him a cookie: without it he would be somebody else at his next call.
        return _Stream(streams, engine, owner, parse_cursor(last_event_id), response.headers.raw)
