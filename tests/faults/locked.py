"""Servers that ask for passwords, each of them a canary."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from demo.servers import embedded_servers
from storage import create_engine
from tests.conftest import POSTGRES_OPTIONS
from tests.databases import add_users, empty_tables, raw_connection, upgrade
from tests.factories import publish
from tests.faults.canaries import API_KEY, DATABASE_PASSWORD, REDIS_PASSWORD, WRONG_PASSWORD
from tests.faults.conftest import restart
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Servers

# Their superuser is trusted, so that the test can set things up and look at everything.
ACCESS = """
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
DATABASE = "scoring"
USER = "scoring"
CONSTRAINT = "of_the_host"


@dataclass(frozen=True)
class Locked:
    """Servers that ask for passwords, migrated and empty; a test may break them."""

    servers: Servers
    engine: AsyncEngine
    """The superuser's."""

    @property
    def superuser_url(self) -> str:
        """Our database, without a password."""
        return (
            make_url(self.servers.database_url).set(database=DATABASE).render_as_string(hide_password=False)
        )

    def database_url(self, password: str = DATABASE_PASSWORD) -> str:
        """Our database, as processes of ours connect to it."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.servers.postgres.port}/{DATABASE}"

    def redis_url(self, password: str = REDIS_PASSWORD) -> str:
        """Redis, as processes of ours connect to it."""
        return f"redis://:{password}@127.0.0.1:{self.servers.redis.port}/0"

    def environment(self, **changes: object) -> Mapping[str, str]:
        """All variables of a process of ours; every secret is a canary, every log is as talkative as can be."""
        given: dict[str, object] = {
            "DATABASE_URL": self.database_url(),
            "DATABASE_TIMEOUT_SECONDS": 2,
            "REDIS_URL": self.redis_url(),
            "REDIS_TIMEOUT_SECONDS": 1,
            "SCORER": "lexical",
            "LLM_API_KEY": API_KEY,
            "LLM_MODEL": "a-model",
            "LEASE_SECONDS": 1,
            "SWEEP_SECONDS": 0.2,
            "GRACE_SECONDS": 1,
            "LOG_LEVEL": "DEBUG",
            "HTTP_PORT": 0,
        }
        ours = {f"SCORING_{name}": str(value) for name, value in (given | changes).items()}
        return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | ours

    @property
    def wrong(self) -> Mapping[str, Mapping[str, str]]:
        """Environments with which nothing works, by what is wrong."""
        return {
            "wrong database password": self.environment(DATABASE_URL=self.database_url(WRONG_PASSWORD)),
            "wrong Redis password": self.environment(REDIS_URL=self.redis_url(WRONG_PASSWORD)),
            "no Redis password": self.environment(REDIS_URL=self.redis_url("")),
            "garbled database URL": self.environment(DATABASE_URL=f"postgresql:/{DATABASE_PASSWORD}@[::1/x"),
            "garbled Redis URL": self.environment(REDIS_URL=f"redis://:{REDIS_PASSWORD}@x:port/zero"),
            "wrong number": self.environment(SLOTS=API_KEY),
            "wrong key": self.environment(SCORER="llm", LLM_API_KEY=f"{API_KEY} {API_KEY}"),
        }

    async def forbid_user_7(self) -> None:
        """A rule of the web app's own, in the database that it shares with us."""
        rule = f"ADD CONSTRAINT {CONSTRAINT} CHECK (user_id <> 7) NOT VALID"
        await self.sql(f"ALTER TABLE assessment_responses {rule}")

    async def sql(self, statement: str, *given: Any) -> list[Any]:
        """Run a statement as the superuser."""
        async with raw_connection(self.superuser_url) as connection:
            return list(await connection.fetch(statement, *given))


@contextmanager
def _servers() -> Iterator[Servers]:
    folder = Path(tempfile.mkdtemp(prefix="scoring-access-"))
    folder.chmod(0o755)  # the server may run under another account
    access = folder / "pg_hba.conf"
    access.write_text(ACCESS)
    try:
        with embedded_servers(
            postgres_options=[f"hba_file={access}", *POSTGRES_OPTIONS],
            redis_options=["--requirepass", REDIS_PASSWORD, "--rdbcompression", "no"],
        ) as servers:
            yield servers
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def locked_servers() -> AsyncIterator[Locked]:
    """Start them, and make a database whose owner has a password."""
    with _servers() as servers:
        async with raw_connection(servers.database_url) as connection:
            await connection.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{DATABASE_PASSWORD}'")
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")
        url = make_url(servers.database_url).set(database=DATABASE).render_as_string(hide_password=False)
        engine = create_engine(url)
        locked = Locked(servers, engine)
        await upgrade(locked.database_url())
        await add_users(url)
        yield locked
        await engine.dispose()


async def _is_ready(servers: Servers) -> bool:
    """PostgreSQL listens before it has recovered from a crash."""
    with contextlib.suppress(asyncpg.CannotConnectNowError):
        async with raw_connection(servers.database_url):
            return True
    return False


@asynccontextmanager
async def lent(locked: Locked) -> AsyncIterator[Locked]:
    """Lend the servers to one test, with the question published; it may kill them."""
    async with locked.engine.begin() as conn:
        await publish(conn)
    yield locked
    await mend(locked)


async def start_again(locked: Locked) -> None:
    """Start what a test has killed, and wait until it serves."""
    await locked.engine.dispose()
    for server in (locked.servers.postgres, locked.servers.redis):
        if server.process is None:
            await restart(server)
    await eventually(partial(_is_ready, locked.servers))


async def mend(locked: Locked) -> None:
    """Undo whatever a test may have done."""
    await start_again(locked)
    await locked.sql(f"ALTER TABLE assessment_responses DROP CONSTRAINT IF EXISTS {CONSTRAINT}")
    async with Redis.from_url(locked.redis_url()) as redis:
        await redis.flushall()
    await empty_tables(locked.superuser_url)
