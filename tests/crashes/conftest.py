"""Lanes on servers of their own, for runs that take turns on them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from demo.servers import embedded_servers, valkey_server
from tests.conftest import POSTGRES_OPTIONS
from tests.crashes.lanes import Lane, add_journal, copy_database
from tests.crashes.processes import fork_server
from tests.databases import add_users, temporary_database, upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LANES = 6
"""Runs at a time: most of a run is waiting for a dead worker's leases."""


@pytest.fixture(scope="module")
async def lanes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Lane]]:
    """Lanes, ready to run."""
    folder = tmp_path_factory.mktemp("crashes")
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(embedded_servers(postgres_options=POSTGRES_OPTIONS))
        forks = await stack.enter_async_context(fork_server(folder / "fork_server.log"))
        template = await stack.enter_async_context(temporary_database(servers.database_url))
        await upgrade(template)
        await add_users(template)
        await add_journal(template)
        opened = []
        for number in range(LANES):
            own = folder / f"lane-{number}"
            own.mkdir()
            redis = valkey_server(own, ())
            redis.start()
            stack.callback(redis.stop)
            url = await copy_database(template, f"lane_{number}")
            lane = Lane(url, f"redis://127.0.0.1:{redis.port}/0", forks, own)
            opened.append(await stack.enter_async_context(lane.opened()))
        yield opened
