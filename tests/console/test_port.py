from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from producers.errors import InvalidSettingsError
from tests.console.conftest import free_port
from tests.producers.waiting import eventually
from tests.worker.scripted import scored_once, submit_answers
from worker.http import server
from worker.http.hosts import is_allowed
from worker.main import run_worker
from worker.runtime import Runtime
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]

PATHS = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/console",
    "/console/live",
    "/console/static/console.js",
    "/nowhere",
)


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Callable[..., ScoringSettings]:
    def make(**changes: Any) -> ScoringSettings:
        given: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "scorer": "lexical",
            "sweep_seconds": 0.1,
            "grace_seconds": 5,
        }
        return ScoringSettings(**given | changes)

    return make


@pytest.mark.commits
async def test_a_taken_port_is_warned_of_and_the_worker_scores(
    settings: Callable[..., ScoringSettings], engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Scoring needs no port; the warning names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = asyncio.create_task(run_worker(settings(http_port=port)))
        ids = await submit_answers(engine, 3)
        await eventually(lambda: scored_once(engine, ids))
        os.kill(os.getpid(), signal.SIGTERM)
        assert await worker == 0

    [warning] = [record for record in caplog.records if "HTTP port" in record.message]
    assert (warning.levelno, vars(warning)["port"]) == (logging.WARNING, port)


async def test_where_the_port_is_required_a_taken_one_is_an_error(
    settings: Callable[..., ScoringSettings],
) -> None:
    """An orchestrator that probes it would otherwise kill a worker that scores; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettingsError, match=f"SCORING_HTTP_PORT.*{port}"):
            await run_worker(settings(http_port=port, http_required=True))

    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "HTTP port"] == []


@pytest.mark.commits
async def test_the_port_lives_as_long_as_the_worker_and_leaves_it_its_signals(
    settings: Callable[..., ScoringSettings],
) -> None:
    """SIGTERM ends the worker and not only its server; a connection that is kept open holds nobody up."""
    port = free_port()
    worker = asyncio.create_task(run_worker(settings(http_port=port)))

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        assert not worker.done(), worker.exception()
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return None

    reader, writer = await eventually(connected)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(worker, 20) == 0

    await reader.read()  # to its end
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_silent_connection_is_closed(open_port: OpenPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects and asks nothing takes a place from nobody for long."""
    monkeypatch.setattr(server, "SILENT_SECONDS", 0.1)
    async with open_port() as port:
        reader, writer = await _connect(port)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


async def _connect(port: Opened, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, number = port.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    writer.write(sent)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    "begun",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /console/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nname=",
    ],
)
async def test_half_a_request_holds_a_connection_for_no_longer_than_an_exchange(
    open_port: OpenPort, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """A byte now and then keeps nothing open: whoever holds many would leave the worker no file descriptor."""
    monkeypatch.setattr(server, "EXCHANGE_SECONDS", 0.3)
    async with open_port() as port:
        reader, writer = await _connect(port, begun)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


async def test_whoever_reads_nothing_is_cut_off(
    open_port: OpenPort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that nobody takes is given up with its connection, and nobody is alarmed."""
    monkeypatch.setattr(server, "EXCHANGE_SECONDS", 0.3)
    written = asyncio.Event()

    async def exposition() -> bytes:
        written.set()
        return b"#" * 50_000_000  # more than the buffers of two sockets take

    async with open_port(metrics=exposition) as port:
        reader, writer = await _connect(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await written.wait()
        [held] = port.connections()
        await eventually(lambda: held not in port.connections() or None)
        writer.transport.abort()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    del reader


async def test_whoever_leaves_in_the_middle_is_no_error(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can connect could fill the worker's log otherwise, and wake people whom its errors call."""
    begun = b"POST /console/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nname="
    async with open_port() as port:
        served = port.http._server
        assert served is not None
        requests = served._server.server_state.tasks
        _, writer = await _connect(port, begun)

        await eventually(lambda: bool(requests))

        writer.close()
        await eventually(lambda: not requests)

    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_what_is_no_request_is_refused_without_a_line(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever speaks TLS or nonsense to the port, again and again, does not fill the log."""
    async with open_port() as port:
        reader, writer = await _connect(port, b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 400")
        writer.close()

    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_time_begins_anew_with_each_answer(
    open_port: OpenPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser that asks again and again keeps its connection, for however long."""
    monkeypatch.setattr(server, "EXCHANGE_SECONDS", 5)
    async with open_port() as port:
        reader, writer = await _connect(port)
        [connection] = await eventually(port.connections)
        before = connection._due
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await eventually(lambda: connection._due is not before or None)
        assert before.cancelled()
        assert not connection._due.cancelled()
        writer.close()


async def test_those_who_come_make_the_oldest_go(open_port: OpenPort) -> None:
    """However many connections somebody holds: the worker has its file descriptors, and a probe its answer."""
    async with open_port() as port, port.client() as client:
        held = [await _connect(port, b"G") for _ in range(2 * server.MAX_CONNECTIONS)]
        assert (await client.get("/healthz")).status_code == 200
        assert len(port.connections()) <= server.MAX_CONNECTIONS
        for reader, _ in held[: server.MAX_CONNECTIONS]:
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
        for reader, writer in held[server.MAX_CONNECTIONS + 1 :]:
            assert not reader.at_eof()
            writer.close()
        for _, writer in held[: server.MAX_CONNECTIONS + 1]:
            writer.close()


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_carries_the_security_headers(browserless: httpx.AsyncClient, path: str) -> None:
    """Also a refusal: nothing foreign is loaded, nobody frames us, nothing is cached for others."""
    answer = await browserless.get(path)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] in {"no-store", "no-cache"}
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    "host", ["attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example", ""]
)
async def test_a_foreign_name_is_refused(browserless: httpx.AsyncClient, host: str) -> None:
    """A page whose name was made to lead here learns nothing and changes nothing; a probe may use any name."""
    for path in ("/console", "/console/live", "/metrics", "/"):
        answer = await browserless.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert "Waiting" not in answer.text
    assert (await browserless.post("/console/login", headers={"Host": host})).status_code == 421
    assert (await browserless.get("/healthz", headers={"Host": host})).status_code == 200


async def test_names_that_ops_allow(open_port: OpenPort) -> None:
    """Besides localhost and addresses, which no stranger can make lead here."""
    async with open_port(http_allowed_hosts="Scoring.internal., other") as port, port.client() as client:
        for host in (
            "scoring.internal:8422",
            "SCORING.internal",
            "other",
            "localhost:1",
            "[::1]:8422",
            "10.1.2.3",
        ):
            assert (await client.get("/console", headers={"Host": host})).status_code == 200, host
        assert (await client.get("/console", headers={"Host": "internal"})).status_code == 421
    assert not is_allowed(None, ())


async def test_metrics_are_what_is_given(open_port: OpenPort, caplog: pytest.LogCaptureFixture) -> None:
    """As Prometheus reads it; what fails there is answered without a word of why, which may quote a secret."""

    async def exposition() -> bytes:
        return b"scoring_slots 16\n"

    async def broken() -> bytes:
        raise RuntimeError("password=hunter2")

    async with open_port(metrics=exposition) as port, port.client() as client:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.content) == (200, b"scoring_slots 16\n")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    async with open_port() as port, port.client() as client:
        assert (await client.get("/metrics")).status_code == 404
    async with open_port(metrics=broken) as port, port.client() as client:
        answer = await client.get("/metrics")
        assert answer.status_code == 500
    assert "hunter2" not in answer.text + caplog.text
    [record] = [record for record in caplog.records if "request to the HTTP port" in record.message]
    assert vars(record)["error"] == "RuntimeError"


async def test_large_forms_are_refused(browserless: httpx.AsyncClient) -> None:
    """Nobody fills the worker's memory."""
    answer = await browserless.post("/console/login", content=b"name=" + b"a" * 200_000)

    assert answer.status_code == 413


@pytest.mark.commits
async def test_the_port_is_off_where_it_is_0(
    settings: Callable[..., ScoringSettings], engine: AsyncEngine
) -> None:
    """Then nothing of a server is even made, and the worker scores."""
    runtime = Runtime(settings(http_port=0))
    await runtime.start()
    ids = await submit_answers(engine, 1)
    await eventually(lambda: scored_once(engine, ids))

    assert runtime.http is None
    await runtime.stop()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("console_token", "short"), ("console_database_url", "mysql://x"), ("http_port", 65_536)],
)
def test_wrong_settings_are_refused(
    settings: Callable[..., ScoringSettings], variable: str, value: object
) -> None:
    """A token that can be guessed is none; and none of them is repeated in the refusal."""
    with pytest.raises(ValueError, match=r"expected|less than") as refused:
        settings(**{variable: value})

    assert "short" not in str(refused.value)
    assert "mysql" not in str(refused.value)


async def test_the_server_takes_no_signal(open_port: OpenPort) -> None:
    """Whoever handles SIGTERM and SIGINT before the port is open handles them while it is, and is not told twice."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        async with open_port() as port, port.client() as client:
            assert (await client.get("/healthz")).status_code == 200
            assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    assert not told.is_set()
