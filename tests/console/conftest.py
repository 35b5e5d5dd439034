"""The HTTP port as a worker opens it, and logins with the rights of our roles and no more."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from producers.bell import connect_redis
from tests.storage.acting import committed_roles
from worker.http.port import HttpPort
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

TOKEN = "a-token-that-nobody-guesses"


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Opened:
    """An open port. ``ended`` and ``stopping`` are what its worker says of itself."""

    address: str
    http: HttpPort
    ended: list[str] = field(default_factory=list)
    stopping: bool = False

    def connections(self) -> list[Any]:
        """The server's side of each connection."""
        served = self.http._server
        assert served is not None
        return list(served._server.server_state.connections)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client with cookies of its own; its caller closes it."""
        return httpx.AsyncClient(base_url=self.address, trust_env=False, timeout=20, **options)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as a worker has it."""
    client = connect_redis(redis_url, timeout_seconds=10)
    yield client
    await client.aclose()


@pytest.fixture
def open_port(
    database_url: str, redis_url: str, redis: Redis
) -> Callable[..., AbstractAsyncContextManager[Opened]]:
    """Opens the port with other settings than the default ones."""

    @asynccontextmanager
    async def opened(
        *, metrics: Callable[[], Awaitable[bytes]] | None = None, client: Redis | None = None, **changes: Any
    ) -> AsyncIterator[Opened]:
        port = free_port()
        given: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "scorer": "lexical",
            "http_port": port,
            "console_token": TOKEN,
        }
        http = HttpPort(
            ScoringSettings(**given | changes),
            client or redis,
            ended=lambda: told.ended,
            stopping=lambda: told.stopping,
            metrics=metrics,
        )
        told = Opened(f"http://127.0.0.1:{port}", http)
        await http.start()
        try:
            yield told
        finally:
            await http.stop()

    return opened


@pytest.fixture
async def opened(
    open_port: Callable[..., AbstractAsyncContextManager[Opened]],
) -> AsyncIterator[Opened]:
    """The port with a token and the tables' owner as its login."""
    async with open_port() as port:
        yield port


@pytest.fixture
async def browserless(opened: Opened) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``opened``."""
    async with opened.client() as client:
        yield client


@pytest.fixture
async def logins(engine: AsyncEngine, database_url: str) -> AsyncIterator[dict[str, str]]:
    """Database URLs of a worker's and an operator's login, each a member of its role and of nothing else."""
    async with committed_roles(engine) as roles:
        urls, names = {}, []
        for part in ("worker", "ops"):
            name, password = f"scoring_test_login_{uuid4().hex[:8]}", uuid4().hex
            async with engine.begin() as conn:
                await conn.execute(
                    text(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE {roles[part]}")
                )
            names.append(name)
            url = make_url(database_url).set(username=name, password=password)
            urls[part] = url.render_as_string(hide_password=False)
        try:
            yield urls
        finally:
            async with engine.begin() as conn:
                for name in names:
                    await conn.execute(text(f"DROP ROLE {name}"))


async def sign_in(client: httpx.AsyncClient, name: str = "Ada Ops", token: str = TOKEN) -> httpx.Response:
    """Sign in as a person does; the client keeps the cookie."""
    return await client.post("/console/login", data={"name": name, "token": token})
