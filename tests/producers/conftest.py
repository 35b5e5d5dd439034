"""Producers as a web process has them, and servers that fail on command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event
from sqlalchemy.engine import make_url

from demo.servers import free_port
from producers import Producer
from producers.bell import connect_redis
from storage import create_engine
from tests.factories import publish
from tests.producers.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

POOL_SIZE = 4
TIMEOUT_SECONDS = 10.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as a process of ours has it."""
    client = connect_redis(redis_url, timeout_seconds=TIMEOUT_SECONDS)
    yield client
    await client.aclose()


@pytest.fixture
async def dead_redis() -> AsyncIterator[Redis]:
    """A client of a server that is not there."""
    client = connect_redis(f"redis://127.0.0.1:{free_port()}/0", timeout_seconds=TIMEOUT_SECONDS)
    yield client
    await client.aclose()


@pytest.fixture
async def own_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of this test alone, whose connections it may break."""
    engine = create_engine(database_url, pool_size=POOL_SIZE, timeout_seconds=TIMEOUT_SECONDS)
    yield engine
    await engine.dispose()


@pytest.fixture
def statements(own_engine: AsyncEngine) -> list[str]:
    """Every statement that ``own_engine`` sends."""
    sent: list[str] = []

    @event.listens_for(own_engine.sync_engine, "before_cursor_execute")
    def record(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    return sent


@pytest.fixture
async def producer(own_engine: AsyncEngine, redis: Redis) -> AsyncIterator[Producer]:
    """A producer on ``own_engine`` and ``redis``."""
    producer = Producer(own_engine, redis)
    yield producer
    await producer.close()


@pytest.fixture
async def published(engine: AsyncEngine) -> str:
    """The digest of the question that submissions answer unless they say otherwise."""
    async with engine.begin() as conn:
        return await publish(conn)


@pytest.fixture
async def postgres_proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of PostgreSQL."""
    async with Proxy(make_url(database_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
async def redis_proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of Redis."""
    async with Proxy(make_url(redis_url).port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def fragile_engine(database_url: str, postgres_proxy: Proxy) -> AsyncIterator[AsyncEngine]:
    """An engine that reaches PostgreSQL through ``postgres_proxy``, on one connection."""
    url = make_url(database_url).set(host="127.0.0.1", port=postgres_proxy.port)
    engine = create_engine(
        url.render_as_string(hide_password=False), pool_size=1, timeout_seconds=TIMEOUT_SECONDS
    )
    yield engine
    await engine.dispose()


@pytest.fixture
async def fragile_redis(redis_url: str, redis_proxy: Proxy) -> AsyncIterator[Redis]:
    """A client that reaches Redis through ``redis_proxy``."""
    url = make_url(redis_url).set(host="127.0.0.1", port=redis_proxy.port)
    client = connect_redis(url.render_as_string(hide_password=False), timeout_seconds=TIMEOUT_SECONDS)
    yield client
    await client.aclose()
