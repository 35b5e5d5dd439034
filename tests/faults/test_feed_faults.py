"""The live feed and its streams through PgBouncer, and while PostgreSQL and Redis are away."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from producers.feed import FeedSettings
from producers.web import StreamSettings
from storage import create_engine
from storage.settlements import settle_handoffs
from tests.factories import handoff_of, settlement, submit
from tests.faults.conftest import PROGRAMS, needed, restart
from tests.faults.pgbouncer import PROGRAM, pgbouncer
from tests.producers.waiting import eventually
from tests.races import committed
from tests.web.feeding import Page, feeding, listening, shows
from tests.web.test_events import QUICK, hosting

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.faults.conftest import Site

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]


async def settle(conn: AsyncConnection, response_id: int) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff)])


async def test_the_feed_works_through_pgbouncer(site: Site) -> None:
    """In transaction mode, with others on the same server connections, and across its restart."""
    needed(PROGRAM, package=PROGRAM)
    server = pgbouncer(site.servers.postgres, shutil.which(PROGRAM, path=PROGRAMS) or PROGRAM)
    server.start()
    url = make_url(site.database_url).set(port=server.port).render_as_string(hide_password=False)
    engine = create_engine(url, pgbouncer=True)
    pages = [Page(), Page()]
    try:
        async with (
            feeding(engine, FeedSettings(look_seconds=0.01)) as first,
            feeding(engine, FeedSettings(look_seconds=0.01)) as second,
            listening(first, pages[0]) as one,
            listening(second, pages[1]) as other,
        ):
            listeners = list(zip(pages, (one, other), strict=True))
            for restarts in range(2):
                answer = int((await committed(site.engine, submit))["response_id"])
                for page, listener in listeners:
                    await shows(page, listener, {answer: "waiting"})
                if restarts == 0:
                    await asyncio.to_thread(server.kill)
                await committed(site.engine, partial(settle, response_id=answer))
                if restarts == 0:
                    await restart(server)
                for page, listener in listeners:
                    await shows(page, listener, {answer: "scored"})
    finally:
        await engine.dispose()
        server.stop()
        shutil.rmtree(server.folder)


async def test_a_stream_outlives_an_outage_of_everything(site: Site) -> None:
    """It stays open and says that it lives; what is scored then is told as soon as it is over."""
    answer = int((await committed(site.engine, submit))["response_id"])
    settings = StreamSettings(keep_alive_seconds=0.02, feed=QUICK)
    async with hosting(site.database_url, settings) as host, host.stream() as stream:
        assert (await stream.event())["state"] == "waiting"
        await asyncio.to_thread(site.servers.redis.kill)
        await asyncio.to_thread(site.servers.postgres.kill)
        comments = stream.comments
        while stream.comments < comments + 5:
            await stream.block()
        assert host.open_streams == 1
        await restart(site.servers.postgres)
        await site.engine.dispose()
        await committed(site.engine, lambda conn: settle(conn, answer))

        async def knows() -> bool:
            event = await stream.event()
            return (event["id"], event["state"]) == (answer, "scored")

        await eventually(knows)
        assert host.open_streams == 1
