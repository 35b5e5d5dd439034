"""Real servers, a really migrated database, and nothing of the developer's shell.

Tests use the servers of ``SCORING_DATABASE_URL`` and ``SCORING_REDIS_URL`` if both are set, else embedded ones.
On a server that is not ours we work in a new database and in a Redis database that was empty.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from storage import create_engine
from tests.databases import add_users, empty_tables, temporary_database, upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Their hooks and fixtures serve all tests.
pytest_plugins = ["tests.measuring", "tests.browser"]

POOL_SIZE = 10
# Nothing here needs to survive a crash of the machine.
POSTGRES_OPTIONS = ("fsync=off", "full_page_writes=off", "autovacuum=off")
HIGHEST_REDIS_DATABASE = 15  # of the 16 that Redis has unless told otherwise


@dataclass(frozen=True)
class GivenServers:
    """Where the servers are."""

    database_url: str
    redis_url: str


GIVEN = pytest.StashKey[GivenServers | None]()


def pytest_configure(config: pytest.Config) -> None:
    """Forget every SCORING_ variable of the shell; only the two URLs are remembered, for the servers."""
    ours = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SCORING_")}
    urls = ours.get("SCORING_DATABASE_URL"), ours.get("SCORING_REDIS_URL")
    if (urls[0] is None) != (urls[1] is None):
        raise pytest.UsageError("Set both SCORING_DATABASE_URL and SCORING_REDIS_URL, or neither.")
    config.stash[GIVEN] = None if urls[0] is None or urls[1] is None else GivenServers(urls[0], urls[1])


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[GivenServers]:
    """PostgreSQL and Redis; where none can be started, tests skip locally and fail in CI."""
    given = pytestconfig.stash[GIVEN]
    if given is not None:
        yield given
        return
    try:
        from demo.servers import ServerStartError, embedded_servers  # noqa: PLC0415 - not needed otherwise
    except ImportError as exc:
        _missing(f"The embedded servers are not installed: {exc}")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(embedded_servers(postgres_options=POSTGRES_OPTIONS))
        except ServerStartError as exc:
            _missing(str(exc))
        yield GivenServers(running.database_url, running.redis_url)


@pytest.fixture(scope="session")
async def database_url(servers: GivenServers) -> AsyncIterator[str]:
    """A database of our own, migrated by the real migration, with users 1 to 20."""
    async with temporary_database(servers.database_url) as url:
        await upgrade(url)
        await add_users(url)
        yield url


@pytest.fixture
async def make_database(servers: GivenServers) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Creates empty databases beside the migrated one; they are dropped after the test."""
    async with AsyncExitStack() as databases:
        yield lambda: databases.enter_async_context(temporary_database(servers.database_url))


@pytest.fixture(scope="session")
async def redis_url(servers: GivenServers) -> AsyncIterator[str]:
    """A Redis database that was empty before us and is empty after us."""
    # Several test processes start at different numbers, so that they do not take the same for empty.
    others = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in range(HIGHEST_REDIS_DATABASE - 4 * others, 0, -1):
        url = make_url(servers.redis_url).set(database=str(number)).render_as_string(hide_password=False)
        async with Redis.from_url(url) as redis:
            if await redis.dbsize() == 0:
                break
    else:
        pytest.fail("SCORING_REDIS_URL: no database from 1 to 15 is empty.", pytrace=False)
    yield url
    async with Redis.from_url(url) as redis:
        await redis.flushdb()


@pytest.fixture(scope="session")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine as a process of ours has it."""
    engine = create_engine(database_url, pool_size=POOL_SIZE)
    yield engine
    await engine.dispose()


@pytest.fixture
async def conn(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction; whatever the test does on it is undone."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        if transaction.is_active:
            await transaction.rollback()


@pytest.fixture
async def _emptied(database_url: str, redis_url: str) -> AsyncIterator[None]:
    yield
    await empty_tables(database_url)
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()


@pytest.fixture(autouse=True)
def _empty_after_commits(request: pytest.FixtureRequest) -> None:
    """Empty the tables and Redis after a test that is marked ``commits``."""
    if request.node.get_closest_marker("commits") is not None:
        request.getfixturevalue("_emptied")
