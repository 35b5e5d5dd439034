"""Whoever holds connections of the worker's port: silent, slow, half asked, by the hundred."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.producers.waiting import eventually
from worker.http import server

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]


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


HALF = b"POST /console/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nname="


async def test_who_has_asked_is_answered_however_many_come(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Those go first who have not asked anything whole, and nobody is alarmed by them."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def exposition() -> bytes:
        asked.set()
        await may_answer.wait()
        return b"scoring_slots 16\n"

    async with open_port(metrics=exposition) as port, port.client() as client:
        scraping = asyncio.create_task(client.get("/metrics"))
        await asked.wait()
        held = [await _connect(port, HALF) for _ in range(2 * server.MAX_CONNECTIONS)]
        may_answer.set()
        assert (await scraping).status_code == 200
        for _, writer in held:
            writer.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_is_no_request_is_refused_without_a_line(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever speaks TLS or nonsense to the port, again and again, does not fill the log."""
    async with open_port() as port:
        reader, writer = await _connect(port, b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 400")
        writer.close()

    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_whoever_leaves_in_the_middle_is_no_error(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can connect could fill the worker's log otherwise, and wake people whom its errors call."""
    async with open_port() as port:
        _, writer = await _connect(port, HALF)

        def is_waited_for() -> bool:
            return any(connection.is_half_asked for connection in port.connections())

        await eventually(is_waited_for)
        writer.close()
        await eventually(lambda: not is_waited_for())

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_stop_does_not_wait_for_half_a_request(
    open_port: OpenPort, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cut off at once, and not told of."""
    async with open_port() as port:
        reader, writer = await _connect(port, HALF)

        def is_waited_for() -> bool:
            return any(connection.is_half_asked for connection in port.connections())

        await eventually(is_waited_for)
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
