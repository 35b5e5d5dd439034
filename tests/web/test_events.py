"""``GET /events`` over a real server: what is sent, how it ends, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from fastapi import Request, Response  # noqa: TC002 - FastAPI reads annotations

from demo.servers import free_port
from producers.feed import FeedSettings, parse_cursor
from producers.web import EventStreams, Identity, StreamSettings
from storage import create_engine
from storage.settlements import Settlement, settle_handoffs
from storage.validation import Owner
from tests.factories import handoff_of, publish, settlement, submit, token
from tests.producers.waiting import PATIENCE_SECONDS, eventually
from tests.races import committed
from tests.web.hosting import make_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits
QUICK = FeedSettings(look_seconds=0.02)
BLOCK = re.compile(r"^(\w*): ?(.*)$")


async def settle(conn: AsyncConnection, response_id: int) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff)])


@dataclass
class Stream:
    """What a browser makes of a stream."""

    response: httpx.Response
    last_event_id: str | None = None
    comments: int = 0
    retry: str | None = None

    def __post_init__(self) -> None:
        self._lines = self.response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The next block that is not only a comment."""
        fields: dict[str, str] = {}
        async for line in self._lines:
            if not line and fields:
                self.last_event_id = fields.get("id", self.last_event_id)
                self.retry = fields.get("retry", self.retry)
                return fields
            self.comments += line.startswith(":")
            if line and not line.startswith(":"):
                found = BLOCK.match(line)
                assert found, line
                fields[found[1]] = found[2]
        raise EOFError

    async def event(self) -> dict[str, Any]:
        """The next event."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                block = await self.block()
                if "data" in block:
                    assert block["event"] == "response"
                    return dict(json.loads(block["data"]))

    async def until_the_end(self) -> None:
        """Read until the server ends it, as a complete response."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(EOFError):
                while True:
                    await self.block()

    async def until_told(self) -> None:
        """Wait for the first cursor: what there was is told, and the stream goes on from there."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.last_event_id is None:
                await self.block()


@dataclass
class Host:
    """A running web app."""

    url: str
    app: Any
    server: uvicorn.Server
    client: httpx.AsyncClient

    @asynccontextmanager
    async def stream(self, last_event_id: str | None = None, **headers: str) -> AsyncIterator[Stream]:
        sent = {"x-user": "1"} if not headers else {name.replace("_", "-"): v for name, v in headers.items()}
        if last_event_id is not None:
            sent["Last-Event-ID"] = last_event_id
        async with self.client.stream("GET", self.url, headers=sent) as response:
            yield Stream(response)

    @property
    def open_streams(self) -> int:
        return len(self.app.state.streams._open)


@asynccontextmanager
async def hosting(
    database_url: str, settings: StreamSettings | None = None, **changes: Any
) -> AsyncIterator[Host]:
    """Run the web app in this loop, on a real socket."""
    app = make_app(database_url, settings or StreamSettings(feed=QUICK), **changes)
    # Signals belong to the test run.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", log_config=None, lifespan="on"))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
        try:
            yield Host(f"http://127.0.0.1:{port}/assessment/events", app, server, client)
        finally:
            await app.state.streams.close()
            server.should_exit = True
            await asyncio.wait_for(task, PATIENCE_SECONDS)


@pytest.fixture
async def host(database_url: str) -> AsyncIterator[Host]:
    async with hosting(database_url) as running:
        yield running


async def test_streams_show_how_they_stand(engine: AsyncEngine) -> None:
    """How many are open, and whether what they look at is there, of two databases as well."""
    streams, ada = EventStreams(StreamSettings(feed=QUICK)), Owner(1, None)
    nowhere = create_engine(f"postgresql://127.0.0.1:{free_port()}/nothing")
    assert (streams.open_streams, streams.are_blind) == (0, None)

    seeing = streams.listen(engine, ada, None)
    await eventually(lambda: seeing[1].is_current)
    assert (streams.open_streams, streams.are_blind) == (1, False)

    blind = streams.listen(nowhere, ada, None)
    await eventually(lambda: streams.are_blind)
    assert streams.open_streams == 2

    streams.leave(*blind)
    assert (streams.open_streams, streams.are_blind) == (1, False)
    streams.leave(*seeing)
    assert (streams.open_streams, streams.are_blind) == (0, None)
    await streams.close()
    await nowhere.dispose()


async def test_a_stream_tells_how_the_caller_s_answer_fares(engine: AsyncEngine, host: Host) -> None:
    """From its beginning to the score, with a cursor that a browser gives back."""
    await committed(engine, publish)
    waiting = (await committed(engine, submit))["response_id"]
    await committed(engine, lambda conn: submit(conn, user_id=2))

    async with host.stream() as stream:
        assert stream.response.status_code == 200
        headers = stream.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        event = await stream.event()
        assert (event["id"], event["state"], event["score"]) == (waiting, "waiting", None)
        await committed(engine, lambda conn: settle(conn, waiting))
        event = await stream.event()
        assert (event["id"], event["state"], event["score"]["overall_score"]) == (waiting, "scored", 4.0)
        assert stream.retry == "2000"
        assert parse_cursor(stream.last_event_id) is not None


async def test_who_comes_back_is_told_what_he_missed(engine: AsyncEngine, host: Host) -> None:
    """Scores that came while he was away, and nothing that he knows already."""
    await committed(engine, publish)
    answers = [(await committed(engine, submit))["response_id"] for _ in range(3)]
    await committed(engine, lambda conn: settle(conn, answers[0]))
    async with host.stream() as stream:
        assert [(await stream.event())["id"] for _ in answers] == answers
        await stream.until_told()
    await committed(engine, lambda conn: settle(conn, answers[1]))

    async with host.stream(last_event_id=stream.last_event_id) as again:
        told = [await again.event() for _ in range(2)]

    assert [(event["id"], event["state"]) for event in told] == [
        (answers[1], "scored"),
        (answers[2], "waiting"),
    ]


@pytest.mark.parametrize("last_event_id", ["", "x", "-3", "9" * 18, "1e5", "1" * 4000])
async def test_a_cursor_that_is_none_begins_anew(engine: AsyncEngine, host: Host, last_event_id: str) -> None:
    """Malformed, or from a future that was lost."""
    await committed(engine, publish)
    answer = (await committed(engine, submit))["response_id"]
    await committed(engine, lambda conn: settle(conn, answer))

    async with host.stream(last_event_id=last_event_id) as stream:
        assert (await stream.event())["id"] == answer


async def test_only_the_last_event_of_a_look_has_the_cursor(engine: AsyncEngine, host: Host) -> None:
    """Else who gets half of them would come back behind the other half."""
    await committed(engine, publish)
    for _ in range(3):
        await committed(engine, submit)

    async with host.stream() as stream:
        blocks: list[bool] = []
        while len(blocks) < 3:
            if "data" in (block := await stream.block()):
                blocks.append("id" in block)

    assert blocks == [False, False, True]


async def test_a_silent_stream_is_kept_alive_and_moves_its_cursor(
    engine: AsyncEngine, database_url: str
) -> None:
    """A comment for proxies; and the cursor, so that who comes back after hours is told little."""
    await committed(engine, publish)
    settings = StreamSettings(keep_alive_seconds=0.01, feed=QUICK)
    async with hosting(database_url, settings) as host, host.stream() as stream:
        await stream.until_told()
        before = stream.comments
        while stream.comments < before + 5:
            await stream.block()


async def test_a_client_that_goes_leaves_nothing(engine: AsyncEngine, host: Host) -> None:
    """No listener, no task, no connection."""
    held = host.app.state.engine.pool.checkedout()
    async with host.stream() as stream, host.stream(x_token=token()) as other:
        await stream.until_told()
        await other.until_told()
        assert (host.open_streams, host.app.state.engine.pool.checkedout()) == (2, held + 1)
    await eventually(lambda: not host.open_streams)
    await eventually(lambda: host.app.state.engine.pool.checkedout() == held)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not any("assessment" in name for name in names)


async def test_a_client_that_reads_nothing_is_given_up(
    engine: AsyncEngine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its listener goes and its connection too, with all that was written for it; that is no error of anybody's."""
    await committed(engine, publish)
    settings = StreamSettings(send_seconds=0.2, keep_alive_seconds=0.001, feed=QUICK)
    async with hosting(database_url, settings) as host:
        port = httpx.URL(host.url).port
        with socket.create_connection(("127.0.0.1", port or 0)) as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            stuck.sendall(b"GET /assessment/events HTTP/1.1\r\nHost: x\r\nx-user: 1\r\n\r\n")
            await eventually(lambda: host.open_streams)
            assert host.server.server_state.connections
            await _fill(host)
            await eventually(lambda: not host.server.server_state.connections)
            await eventually(lambda: not host.server.server_state.tasks)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


async def _fill(host: Host) -> None:
    """Let the one listener be offered more than any socket's buffer takes."""
    while host.open_streams:
        for listener in host.app.state.streams._open:
            listener.offer(1, "x" * 1_000_000)
        await asyncio.sleep(0)


async def test_a_stream_ends_by_itself(engine: AsyncEngine, database_url: str) -> None:
    """Then a browser comes back, and is asked again who it is."""
    async with hosting(database_url, StreamSettings(max_stream_seconds=0.05, feed=QUICK)) as host:
        async with host.stream() as stream:
            await stream.until_the_end()
        await eventually(lambda: not host.open_streams)


async def test_too_many_streams_are_refused(engine: AsyncEngine, database_url: str) -> None:
    """In the form of all refusals; others are not concerned, and who goes makes room."""
    settings = StreamSettings(feed=FeedSettings(look_seconds=0.02, per_owner=1, in_total=2))
    async with hosting(database_url, settings) as host:
        async with host.stream() as first:
            await first.until_told()
            async with host.stream() as refused:
                problem = json.loads(await refused.response.aread())
                assert (refused.response.status_code, problem["status"]) == (429, 429)
                assert problem["type"] == "urn:assessment-scoring:too-many-streams"
                assert refused.response.headers["content-type"] == "application/problem+json"
                assert refused.response.headers["retry-after"] == "30"
            async with host.stream(x_user="2") as second:
                await second.until_told()
                async with host.stream(x_user="3") as third:
                    assert third.response.status_code == 503
        await eventually(lambda: not host.open_streams)
        async with host.stream() as again:
            await again.until_told()


@pytest.mark.parametrize(("headers", "status"), [({"x_other": "1"}, 401), ({"x_token": "t" * 5000}, 422)])
async def test_who_is_nobody_is_refused(
    engine: AsyncEngine, host: Host, headers: dict[str, str], status: int
) -> None:
    """There is nobody whose answers could be told; and the reply does not repeat what was given."""
    async with host.stream(**headers) as stream:
        assert stream.response.status_code == status
        assert "tttt" not in (await stream.response.aread()).decode()


async def test_an_event_shows_a_score_as_the_list_does(engine: AsyncEngine, host: Host) -> None:
    """A page may put one in the place of the other."""
    await committed(engine, publish)
    answer = (await committed(engine, submit))["response_id"]
    data = {
        "overall_score": 4,
        "reasoning": "Line\none \u2028 \U0001f331",
        "dimensions": [{"name": "a", "score": 1.5}, {"name": "b", "score": 2, "note": "n"}],
    }

    async def score(conn: AsyncConnection) -> None:
        handoff = await handoff_of(conn, answer)
        assert handoff is not None
        assert await settle_handoffs(
            conn, [Settlement(handoff["handoff_id"], handoff["created_at"], "m", "p", data)]
        )

    await committed(engine, score)
    listed = await host.client.get(host.url.replace("/events", "/responses"), headers={"x-user": "1"})
    async with host.stream() as stream:
        event = await stream.event()

    [row] = listed.json()["items"]
    assert event == {name: row[name] for name in event}
    assert event.keys() == row.keys() - {"answer_text", "created_at"}


async def test_a_cookie_of_the_host_s_goes_out_with_the_stream(
    engine: AsyncEngine, database_url: str
) -> None:
    """A page may open its stream before anything else: what it submits then is the same student's."""

    def identity(request: Request, response: Response) -> Identity:
        known = request.cookies.get("student") or token()
        response.set_cookie("student", known, httponly=True)
        return Identity(anonymous_token=known)

    await committed(engine, publish)
    async with hosting(database_url, identity=identity) as host, host.stream() as stream:
        await stream.until_told()
        given = stream.response.cookies["student"]
        answer = await committed(engine, lambda conn: submit(conn, user_id=None, anonymous_token=given))
        assert (await stream.event())["id"] == answer["response_id"]
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-length" not in stream.response.headers


async def test_a_dependency_of_the_host_holds_nothing_while_a_stream_is_open(
    engine: AsyncEngine, database_url: str
) -> None:
    """What it opened to find out who calls is closed before the stream begins."""
    open_sessions: list[int] = []

    async def identity() -> AsyncIterator[Identity]:
        open_sessions.append(1)
        yield Identity(user_id=1)
        open_sessions.pop()

    async with hosting(database_url, identity=identity) as host, host.stream() as stream:
        await stream.until_told()
        assert open_sessions == []


@pytest.mark.processes
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", [[], ["--own-signals"]], ids=["uvicorn's signals", "the host's signals"])
async def test_a_server_that_is_told_to_stop_does(
    engine: AsyncEngine, database_url: str, stop: signal.Signals, more: list[str]
) -> None:
    """Open streams end by themselves, although uvicorn would wait for them for ever; whoever handles the signal."""
    port = free_port()
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [sys.executable, "-m", "tests.web.hosting", "--port", str(port), *more],
        env={**os.environ, "DATABASE_URL": database_url},
        stderr=subprocess.PIPE,
    )
    try:
        await eventually(lambda: _accepts(port))
        async with (
            httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client,
            client.stream(
                "GET", f"http://127.0.0.1:{port}/assessment/events", headers={"x-user": "1"}
            ) as response,
        ):
            stream = Stream(response)
            await stream.until_told()
            process.send_signal(stop)
            await stream.until_the_end()
        _, log = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert b"Traceback" not in log.replace(b"KeyboardInterrupt", b"")
    assert b"Application shutdown complete" in log


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
