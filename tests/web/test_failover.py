"""Readers of the feed when PostgreSQL fails over to a standby that had not got everything."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sqlalchemy import text

from demo.servers import Server, embedded_servers, free_port
from storage import create_engine
from storage.feed import read_lineage
from storage.settlements import settle_handoffs
from tests.conftest import POSTGRES_OPTIONS
from tests.databases import add_users, raw_connection, upgrade
from tests.factories import handoff_of, publish, settlement, submit
from tests.faults.conftest import restart
from tests.producers.waiting import eventually
from tests.races import committed
from tests.web.feeding import Page, feeding, listening, shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.processes


@pytest.fixture
def primary() -> Iterator[Server]:
    """A PostgreSQL of this test alone."""
    with embedded_servers(postgres_options=POSTGRES_OPTIONS) as servers:
        yield servers.postgres


def url_of(server: Server) -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/postgres"


@asynccontextmanager
async def standby_of(primary: Server) -> AsyncIterator[Server]:
    """A standby as of now, that gets nothing more: as far behind as one can be."""
    folder = primary.folder.with_name("standby")
    primary.stop()  # the copy of a stopped server is whole
    shutil.copytree(primary.folder, folder)
    owner = primary.folder.stat()
    (folder / "standby.signal").touch()
    for place in (folder, *folder.rglob("*")):
        os.chown(place, owner.st_uid, owner.st_gid)
    primary.start()
    port = free_port()
    changed = {str(primary.folder): str(folder), str(primary.port): str(port)}
    command = [changed.get(word, word) for word in primary.command]
    standby = replace(primary, name="standby", command=command, port=port, folder=folder, process=None)
    standby.start()
    try:
        for server in (primary, standby):
            await eventually(lambda server=server: serves(server))  # type: ignore[misc]
        yield standby
    finally:
        standby.stop()


async def serves(server: Server) -> bool:
    try:
        async with raw_connection(url_of(server)):
            return True
    except asyncpg.CannotConnectNowError:
        return False


async def promote(server: Server) -> None:
    async with raw_connection(url_of(server)) as connection:
        assert await connection.fetchval("SELECT pg_promote()")


async def settle(conn: AsyncConnection, response_id: int) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff)])


async def spend(engine: AsyncEngine, transactions: int) -> None:
    """Use up so many transaction ids."""
    for _ in range(transactions):
        await committed(engine, lambda conn: conn.execute(text("SELECT pg_current_xact_id()")))


async def test_no_score_is_missed_after_a_failover(primary: Server) -> None:
    """The standby gives transaction ids anew, and writes a score under one that is below the reader's cursor.

    Told to a reader who comes back, and to one whose connection was to the standby and is to the primary all at once.
    """
    await upgrade(url_of(primary))
    await add_users(url_of(primary))
    old = create_engine(url_of(primary))
    await committed(old, publish)
    answer = int((await committed(old, submit))["response_id"])
    await old.dispose()
    page, beside = Page(), Page()

    async with standby_of(primary) as standby:
        new = create_engine(url_of(standby))
        await spend(old, 50)
        async with feeding(old) as feed, listening(feed, page):
            assert page.shown[answer]["state"] == "waiting"
        await old.dispose()
        await asyncio.to_thread(primary.kill)
        async with feeding(new) as feed, listening(feed, beside) as listener:
            await promote(standby)
            await committed(new, lambda conn: settle(conn, answer))
            await spend(new, 100)
            await shows(beside, listener, {answer: "scored"})
            async with listening(feed, page):
                assert page.shown[answer]["state"] == "scored"
        await new.dispose()


async def test_a_crash_may_lose_transactions_and_a_clean_stop_does_not(primary: Server) -> None:
    """Leases do not wait for the disk, so that a crash begins another line; a restart goes on with the same."""
    engine = create_engine(url_of(primary))

    async def line() -> str | None:
        await eventually(lambda: serves(primary))
        await engine.dispose()
        return await committed(engine, read_lineage)

    at_first = await line()
    primary.stop()
    primary.start()
    after_restart = await line()
    primary.kill()
    await restart(primary)
    after_crash = await line()
    await engine.dispose()

    assert at_first is not None
    assert after_crash is not None
    assert after_restart == at_first != after_crash


async def test_who_listens_is_told_anew_by_another_server(primary: Server) -> None:
    """Behind a pooler the connection stays: what was known of the server before is worth nothing, and is forgotten.

    (Forgetting the statistics is what a recovery does, too.)
    """
    await upgrade(url_of(primary))
    await add_users(url_of(primary))
    engine = create_engine(url_of(primary))
    await committed(engine, publish)
    answer = int((await committed(engine, submit))["response_id"])
    await committed(engine, lambda conn: settle(conn, answer))
    page = Page()

    async with feeding(engine) as feed, listening(feed, page) as listener:
        before = page.cursor
        await committed(engine, lambda conn: conn.execute(text("SELECT pg_stat_reset_shared('bgwriter')")))

        def is_told_again() -> bool:
            page.take(listener)
            return page.told == [answer, answer]

        await eventually(is_told_again)
        assert before is not None
        assert page.cursor is not None
        assert page.cursor.lineage != before.lineage
    await engine.dispose()
