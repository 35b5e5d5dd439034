"""Servers that a test may break, worker processes on them, and a ledger of how every handoff ended."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from demo.servers import ServerStartError, embedded_servers
from demo.worker_process import tail
from producers import Producer
from storage import create_engine
from tests.conftest import POSTGRES_OPTIONS
from tests.databases import add_users, empty_tables, raw_connection, upgrade
from tests.factories import publish
from tests.faults.processes import WorkerProcess, start_process
from tests.faults.scorers import NAME, CallLog
from tests.producers.waiting import eventually
from worker.settings import ScoringSettings
from worker.verification import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Server, Servers

# Short enough to see many of them run out and be renewed, long enough for two renewals on a busy machine.
LEASE_SECONDS = 2.0
DATABASE_TIMEOUT_SECONDS = 5.0
# A backlog of thousands on a busy machine; reached only where an answer is lost.
SCORING_PATIENCE_SECONDS = 90.0

# Where Debian installs servers, too: not in everybody's PATH.
PROGRAMS = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"

# A handoff is deleted with its score, and its counters with it. This keeps them for the test.
LEDGER = """
    CREATE TABLE ended_handoffs AS SELECT * FROM scoring_handoffs WITH NO DATA;
    CREATE FUNCTION keep_handoff() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO ended_handoffs SELECT OLD.*; RETURN OLD; END';
    CREATE TRIGGER keep_handoff AFTER DELETE ON scoring_handoffs FOR EACH ROW EXECUTE FUNCTION keep_handoff();
"""
COUNTERS = ("attempts", "postponements", "suspicions", "lease_losses")


def needed(*tools: str, package: str) -> None:
    """Skip the test where a tool is missing, and fail it in CI."""
    if missing := [tool for tool in tools if shutil.which(tool, path=PROGRAMS) is None]:
        unavailable(f"{' and '.join(missing)} is missing: apt-get install {package}")


def unavailable(reason: str) -> NoReturn:
    """The test cannot run here: a skip locally, a failure in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Site:
    """Servers of these tests alone, migrated and empty; a test may do anything to them."""

    servers: Servers
    engine: AsyncEngine

    @property
    def database_url(self) -> str:
        """PostgreSQL itself, as its superuser."""
        return self.servers.database_url

    @property
    def redis_url(self) -> str:
        """Redis itself."""
        return self.servers.redis_url

    async def sql(self, statement: str, **given: Any) -> Sequence[Any]:
        """Run a statement as the superuser, outside of transactions, and return its rows."""
        async with self.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
            result = await conn.execute(text(statement), given)
            return result.all() if result.returns_rows else ()

    async def scored(self, response_ids: Sequence[int]) -> bool:
        """Whether each of these has a score."""
        [[found]] = await self.sql(
            "SELECT count(DISTINCT response_id) FROM assessment_scores WHERE response_id = ANY (:ids)",
            ids=list(response_ids),
        )
        return int(found) == len(set(response_ids))

    async def all_scored(self, response_ids: Sequence[int]) -> None:
        """Wait until each of these has a score."""
        await eventually(lambda: self.scored(response_ids), patience_seconds=SCORING_PATIENCE_SECONDS)

    async def leased(self) -> int:
        """How many handoffs are in a worker's hands."""
        [[found]] = await self.sql("SELECT count(*) FROM scoring_handoffs WHERE lease_token IS NOT NULL")
        return int(found)

    async def on_disk(self) -> None:
        """Wait until what is committed now survives a crash, leases included: they commit without waiting."""
        [[now]] = await self.sql("SELECT pg_current_wal_insert_lsn() - CAST('0/0' AS pg_lsn)")

        async def flushed() -> bool:
            [[enough]] = await self.sql(
                "SELECT pg_current_wal_flush_lsn() - CAST('0/0' AS pg_lsn) >= :now", now=now
            )
            return bool(enough)

        await eventually(flushed)

    async def counters(self, response_ids: Sequence[int] | None = None) -> dict[str, int]:
        """What was counted against these responses, or all, over the life of their handoffs, all together."""
        sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in COUNTERS)
        chosen = "" if response_ids is None else "WHERE response_id = ANY (:ids)"
        given = {} if response_ids is None else {"ids": list(response_ids)}
        [row] = await self.sql(
            f"SELECT {sums} FROM (SELECT * FROM ended_handoffs UNION ALL SELECT * FROM scoring_handoffs) AS h {chosen}",
            **given,
        )
        return {name: int(value) for name, value in row._mapping.items()}

    async def assert_nothing_lost(self, response_ids: Sequence[int]) -> None:
        """Exactly these responses are stored, each has exactly one score and no handoff, every invariant holds."""
        stored = [row[0] for row in await self.sql("SELECT response_id FROM assessment_responses")]
        assert sorted(stored) == sorted(response_ids)
        scores = [row[0] for row in await self.sql("SELECT response_id FROM assessment_scores")]
        assert sorted(scores) == sorted(response_ids)
        assert await self.sql("SELECT response_id, state, last_error FROM scoring_handoffs") == []
        findings = await verify(self.engine, self.settings(), full=True)
        assert [finding for finding in findings if finding.holds is not True] == []

    def settings(self, **changes: Any) -> ScoringSettings:
        """Settings of a process of ours beside these servers."""
        given: dict[str, Any] = {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "database_timeout_seconds": DATABASE_TIMEOUT_SECONDS,
            "lease_seconds": LEASE_SECONDS,
            "sweep_seconds": 0.2,
        }
        return ScoringSettings(**given | changes)


async def restart(server: Server) -> None:
    """Start a server that was killed, in a thread: meanwhile everything else goes on.

    PostgreSQL refuses to start as long as a process of its predecessor lives, which ends by itself within a moment,
    and to serve until it has recovered.
    """

    async def started() -> bool:
        try:
            await asyncio.to_thread(server.start)
        except ServerStartError as exc:
            if "pre-existing shared memory" not in str(exc) and "lock file" not in str(exc):
                raise
            return False
        return True

    async def serves() -> bool:
        try:
            async with raw_connection(f"postgresql://postgres@127.0.0.1:{server.port}/postgres"):
                return True
        except asyncpg.CannotConnectNowError:
            return False

    await eventually(started)
    if server.name == "postgres":
        await eventually(serves)


@pytest.fixture(scope="session")
def _servers_to_break() -> Iterator[Servers]:
    with embedded_servers(postgres_options=POSTGRES_OPTIONS) as servers:
        yield servers


@pytest.fixture(scope="session")
async def _migrated_servers_to_break(_servers_to_break: Servers) -> Servers:
    await upgrade(_servers_to_break.database_url)
    await add_users(_servers_to_break.database_url)
    async with raw_connection(_servers_to_break.database_url) as connection:
        await connection.execute(LEDGER)
    return _servers_to_break


@pytest.fixture
async def site(_migrated_servers_to_break: Servers) -> AsyncIterator[Site]:
    """Servers that a test may break; afterwards both run and are empty."""
    servers = _migrated_servers_to_break
    # Under a name of its own, so that a test can tell its connections from those of our processes.
    engine = create_engine(f"{servers.database_url}?application_name=test", timeout_seconds=30)
    yield Site(servers, engine)
    await engine.dispose()
    for server in (servers.postgres, servers.redis):
        if server.process is None:
            await restart(server)
    async with Redis.from_url(servers.redis_url) as redis:
        await redis.flushall()
    await empty_tables(servers.database_url)
    async with raw_connection(servers.database_url) as connection:
        await connection.execute("TRUNCATE ended_handoffs")


@pytest.fixture
def chance() -> random.Random:
    """Dice; their seed is shown where the test failed, and FAULTS_SEED throws them again."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(2**32)))
    print(f"FAULTS_SEED={seed}")  # noqa: T201
    return random.Random(seed)


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[CallLog]:
    """What the scorers of all worker processes were asked; at the end nothing waits inside them."""
    calls = CallLog(tmp_path)
    yield calls
    calls.let_go()


@pytest.fixture
async def start(
    site: Site, calls: CallLog, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[WorkerProcess]]]:
    """Starts worker processes and waits until each reports itself; those that are left are killed at the end."""
    started: list[WorkerProcess] = []
    numbers = count()

    async def run(
        *,
        scorer_seconds: float = 0.0,
        score_chars: int = 0,
        wrapper: tuple[str, ...] = (),
        **variables: object,
    ) -> WorkerProcess:
        given: dict[str, object] = {
            "DATABASE_URL": site.database_url,
            "DATABASE_TIMEOUT_SECONDS": DATABASE_TIMEOUT_SECONDS,
            "REDIS_URL": site.redis_url,
            "SCORER": NAME,
            "SLOTS": 50,
            "LEASE_SECONDS": LEASE_SECONDS,
            "SWEEP_SECONDS": 0.2,
            "GRACE_SECONDS": 10,
            "LOG_FORMAT": "json",
        }
        environment = {f"SCORING_{name}": str(value) for name, value in (given | variables).items()}
        worker = await start_process(
            {**environment, **calls.variables(scorer_seconds=scorer_seconds, score_chars=score_chars)},
            tmp_path / f"worker-{next(numbers)}.log",
            wrapper=wrapper,
        )
        started.append(worker)

        async def ready() -> bool:
            assert worker.process.returncode is None, worker.log.read_text()
            return worker.logged("worker is ready")

        await eventually(ready)
        return worker

    yield run
    for worker in started:
        await worker.killed()
        print(f"worker {worker.pid}:\n{tail(worker.log)}")  # noqa: T201 - shown where the test failed


@pytest.fixture
async def producer(site: Site) -> AsyncIterator[Producer]:
    """A producer as a web process has it, on the servers themselves."""
    settings = site.settings()
    engine, redis = settings.engine(), settings.redis()
    producer = Producer(engine, redis)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(redis.aclose)
        stack.push_async_callback(producer.close)
        yield producer


@pytest.fixture
async def published(site: Site) -> None:
    """The question that submissions answer is published."""
    async with site.engine.begin() as conn:
        await publish(conn)
