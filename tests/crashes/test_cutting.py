"""The cut itself: what reaches the server, what comes back, and when the process dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from tests.crashes.cutting import SIDES, Cut, CuttingProxy, Side
from tests.crashes.wire import PostgresReader, RedisReader
from tests.databases import driver_url, raw_connection
from tests.producers.waiting import eventually, settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import GivenServers

BOTH_SIDES = pytest.mark.parametrize("side", SIDES)


async def cut_off(cut: Cut, act: Callable[[], Awaitable[Any]]) -> list[str]:
    """Do what the cut comes at, and give it up when the process would be dead; returns what was killed how often."""
    killed: list[str] = []
    cut.kill = lambda: killed.append("killed")
    acting = asyncio.ensure_future(act())
    await eventually(lambda: killed)
    await settled()
    assert not acting.done()
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    return killed


async def given_up(attempt: Awaitable[Any]) -> None:
    """Try something that gets no reply, for a moment."""
    acting = asyncio.ensure_future(attempt)
    await settled()
    assert not acting.done()
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)


@BOTH_SIDES
async def test_postgresql_has_executed_what_the_cut_comes_after(side: Side, servers: GivenServers) -> None:
    """Before: nothing is stored. After: it is committed, and the process never learns of it."""
    url = make_url(servers.database_url)
    async with (
        CuttingProxy(url.port or 5432, PostgresReader) as proxy,
        raw_connection(servers.database_url) as beside,
    ):
        await beside.execute("CREATE TABLE cut_off (number integer)")
        proxied = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        connection = await asyncpg.connect(driver_url(proxied))
        await connection.execute("SELECT 1")
        cut = proxy.cut
        cut.at, cut.side = cut.commands + 1, side

        killed = await cut_off(cut, lambda: connection.execute("INSERT INTO cut_off VALUES (1)"))
        connection.terminate()

        stored = await beside.fetchval("SELECT count(*) FROM cut_off")
        await beside.execute("DROP TABLE cut_off")
    assert killed == ["killed"]
    assert cut.command == "PostgreSQL: INSERT INTO cut_off VALUES (1)"
    assert stored == (side == "after")


@BOTH_SIDES
async def test_redis_has_executed_what_the_cut_comes_after(side: Side, redis_url: str) -> None:
    """The same, where commands are sent in a pipeline and on several connections."""
    url = make_url(redis_url)
    async with CuttingProxy(url.port or 6379, RedisReader) as proxy, Redis.from_url(redis_url) as beside:
        proxied = url.set(port=proxy.port).render_as_string(hide_password=False)
        async with Redis.from_url(proxied) as redis, Redis.from_url(proxied) as other:
            await asyncio.gather(redis.ping(), other.ping())
            cut = proxy.cut
            cut.at, cut.side = cut.commands + 1, side
            pipeline = redis.pipeline().set("cut off", "once").set("and", "twice")

            killed = await cut_off(cut, pipeline.execute)
            await given_up(other.set("cut off", "later"))  # the cut is through all connections
        stored = await beside.get("cut off")
        await beside.delete("cut off", "and")
    assert killed == ["killed"]
    assert cut.command == "Redis: MULTI; SET cut off; SET and; EXEC"
    assert stored == (b"once" if side == "after" else None)


async def test_a_goodbye_that_has_no_reply_is_a_command_too(servers: GivenServers) -> None:
    """The server's hanging up is its reply: otherwise no run would ever die after a goodbye."""
    url = make_url(servers.database_url)
    async with CuttingProxy(url.port or 5432, PostgresReader) as proxy:
        proxied = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        connection = await asyncpg.connect(driver_url(proxied))
        proxy.cut.at, proxy.cut.side = proxy.cut.commands + 1, "after"

        killed = await cut_off(proxy.cut, connection.close)
        connection.terminate()

    assert killed == ["killed"]
    assert proxy.cut.command == "PostgreSQL: goodbye"
