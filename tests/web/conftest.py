"""The router in a host app, as a web app's developer mounts it, and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from producers import Producer
from producers.bell import connect_redis
from storage import create_engine
from tests.web.host import TIMEOUT_SECONDS, Host, host_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
async def host_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The host app's engine."""
    engine = create_engine(database_url, pool_size=4, timeout_seconds=TIMEOUT_SECONDS)
    yield engine
    await engine.dispose()


@pytest.fixture
async def host(host_engine: AsyncEngine, redis_url: str) -> AsyncIterator[Host]:
    """What the host app has."""
    redis = connect_redis(redis_url, timeout_seconds=TIMEOUT_SECONDS)
    producer = Producer(host_engine, redis)
    yield Host(engine=host_engine, producer=producer)
    await producer.close()
    await redis.aclose()


@pytest.fixture
def app(host: Host) -> FastAPI:
    """The host app."""
    return host_app(host)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the host app, that is user 1 unless it says otherwise."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://host/assessment", headers={"x-user": "1"}
    ) as client:
        yield client
