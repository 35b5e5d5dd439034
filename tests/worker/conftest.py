"""A worker's parts as the runtime composes them, and servers that a test may kill."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from demo.servers import embedded_servers
from producers.bell import connect_redis
from tests.conftest import POSTGRES_OPTIONS
from tests.databases import add_users, empty_tables, upgrade
from tests.producers.proxy import Proxy
from tests.worker.scripted import ScriptedScorer, in_background
from worker.arq_loop import ArqLoop
from worker.ending import end
from worker.runtime import Runtime
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from demo.servers import Servers

SLOTS = 16


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Callable[..., ScoringSettings]:
    """Makes settings that are quick enough for tests."""

    def make(**changes: Any) -> ScoringSettings:
        given: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "scorer": "lexical",
            "slots": SLOTS,
            "sweep_seconds": 0.1,
            "poll_seconds": 0.05,
            "grace_seconds": 10,
            "lease_seconds": 600,
        }
        return ScoringSettings(**given | changes)

    return make


def settings_of(servers: Servers) -> ScoringSettings:
    """Settings for servers that a test may kill."""
    given: dict[str, Any] = {
        "database_url": servers.database_url,
        "redis_url": servers.redis_url,
        "scorer": "lexical",
        "sweep_seconds": 0.1,
        "poll_seconds": 0.05,
        "renew_seconds": 0.1,
    }
    return ScoringSettings(**given)


@pytest.fixture
def scorer() -> ScriptedScorer:
    """Scores at once and well, unless told otherwise."""
    return ScriptedScorer()


@pytest.fixture
async def make_runtime(
    settings: Callable[..., ScoringSettings], scorer: ScriptedScorer
) -> AsyncIterator[Callable[..., Runtime]]:
    """Makes a worker's parts without starting a loop; their connections are closed at the end."""
    made: list[Runtime] = []

    def make(**changes: Any) -> Runtime:
        runtime = Runtime(settings(**changes), scorer=scorer)
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        # A pull that is under way goes on when the loop around it is cancelled, and would give its connection back to
        # nobody.
        await runtime.intake.stop()
        await runtime.close()


@pytest.fixture
async def runtime(make_runtime: Callable[..., Runtime]) -> AsyncIterator[Runtime]:
    """A worker's parts, with the settler running and nothing else."""
    runtime = make_runtime()
    async with in_background(runtime.settler.run()):
        yield runtime


@pytest.fixture
def running(
    settings: Callable[..., ScoringSettings], scorer: ScriptedScorer
) -> Callable[..., AbstractAsyncContextManager[Runtime]]:
    """A whole worker inside this process: all of its loops, arq's included."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Runtime]:
        chosen = settings(**changes)
        runtime = Runtime(chosen, scorer=scorer)
        failures: list[str] = []
        runtime.on_failure = lambda: failures.append("a loop ended")
        await runtime.start()
        polling = asyncio.create_task(ArqLoop(runtime, chosen).run())
        try:
            yield runtime
            assert not polling.done()
        finally:
            # Polling first: a message that is run after the end would open a connection that nobody closes.
            scorer.let_go()
            await end([polling])
            await runtime.stop()
        assert not failures

    return run


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as a process of ours has it."""
    client = connect_redis(redis_url, timeout_seconds=10)
    yield client
    await client.aclose()


@pytest.fixture
async def postgres_proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of PostgreSQL."""
    async with Proxy(make_url(database_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
def proxied_database_url(database_url: str, postgres_proxy: Proxy) -> str:
    """The test database through ``postgres_proxy``."""
    url = make_url(database_url).set(host="127.0.0.1", port=postgres_proxy.port)
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def _breakable_servers() -> Iterator[Servers]:
    with embedded_servers(postgres_options=POSTGRES_OPTIONS) as servers:
        yield servers


@pytest.fixture(scope="session")
async def _migrated_breakable_servers(_breakable_servers: Servers) -> Servers:
    await upgrade(_breakable_servers.database_url)
    await add_users(_breakable_servers.database_url)
    return _breakable_servers


@pytest.fixture
async def breakable(_migrated_breakable_servers: Servers) -> AsyncIterator[Servers]:
    """Servers that a test may kill and start again; afterwards both run and are empty."""
    servers = _migrated_breakable_servers
    yield servers
    async with AsyncExitStack() as stack:
        for server in (servers.postgres, servers.redis):
            if server.process is None:
                server.start()
        redis = await stack.enter_async_context(Redis.from_url(servers.redis_url))
        await redis.flushall()
        await empty_tables(servers.database_url)
