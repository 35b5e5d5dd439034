"""A lane: one run after the other, on a database and a Redis that no other lane sees."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from storage import create_engine
from storage.tables import OWN_TABLES
from tests.crashes.cutting import CuttingProxy
from tests.crashes.script import Notes
from tests.crashes.wire import PostgresReader, RedisReader
from tests.databases import driver_url, raw_connection
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.crashes.cutting import Cut
    from tests.crashes.processes import Forks, Process

# The least that can be set: another worker waits as long for what the dead one had in hand.
LEASE_SECONDS = 1.0
# Of workers that do not die: longer than a busy machine may let one stall.
LONG_LEASE_SECONDS = 30.0
# Never reached by a run that holds, however slow the machine.
PATIENCE_SECONDS = 60.0

# What became of every handoff, kept although the handoff itself is deleted; and a word to whoever waits for changes.
JOURNAL = """
    CREATE TABLE journal (
        entry bigint GENERATED ALWAYS AS IDENTITY, handoff_id bigint, response_id bigint, question_digest text, event text
    );
    CREATE FUNCTION write_journal() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE it scoring_handoffs := coalesce(NEW, OLD);
    BEGIN
        INSERT INTO journal (handoff_id, response_id, question_digest, event)
        SELECT it.handoff_id, it.response_id, it.question_digest, event FROM (VALUES
            ('handed off', TG_OP = 'INSERT'),
            ('deleted', TG_OP = 'DELETE'),
            ('attempt', NEW.attempts > OLD.attempts),
            ('postponement', NEW.postponements > OLD.postponements),
            ('lost lease', NEW.lease_losses > OLD.lease_losses),
            ('handed back', OLD.lease_token IS NOT NULL AND NEW.lease_token IS NULL AND NEW.state = 'open'
                AND NEW.handoff_id = OLD.handoff_id AND NEW.attempts = OLD.attempts AND NEW.postponements = OLD.postponements)
        ) AS events (event, happened) WHERE happened;
        PERFORM pg_notify('moved', '');
        RETURN NULL;
    END $$;
    CREATE TRIGGER write_journal AFTER INSERT OR UPDATE OR DELETE ON scoring_handoffs
        FOR EACH ROW EXECUTE FUNCTION write_journal();
    CREATE FUNCTION say_so() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('moved', '');
        RETURN NULL;
    END $$;
    CREATE TRIGGER say_so AFTER UPDATE ON assessment_claims FOR EACH ROW EXECUTE FUNCTION say_so();
"""


class Lane:
    """One database and one Redis, with proxies in front of them.

    Args:
        database_url: Migrated, with users and the journal.
        redis_url: Of a server of its own: a wake-up reaches all databases of a server.
        forks: Starts the processes.
        folder: For logs and notes.
    """

    def __init__(self, database_url: str, redis_url: str, forks: Forks, folder: Path) -> None:
        self._forks = forks
        self._folder = folder
        self._urls = {"database_url": database_url, "redis_url": redis_url}
        self._proxies = [
            CuttingProxy(make_url(database_url).port or 5432, PostgresReader),
            CuttingProxy(make_url(redis_url).port or 6379, RedisReader),
        ]
        self._moved = asyncio.Event()
        self._processes: list[Process] = []
        # Under a name that tells it from the processes of the run.
        self.engine = create_engine(f"{database_url}?application_name=lane", pool_size=2)
        self.redis: Redis = Redis.from_url(redis_url)
        self.notes = Notes(folder / "run")
        self.observer: Any = None

    @property
    def settings(self) -> ScoringSettings:
        """Those of the workers: quick, so that a run is over in a second, with nothing idle in between."""
        return ScoringSettings(**self._worker_settings(None))

    def _worker_settings(self, cut: Cut | None) -> dict[str, Any]:
        return self._given_urls(cut) | {
            "database_pool_size": 3,
            "slots": 4,  # fewer than answers: some messages find no room
            "lease_seconds": LONG_LEASE_SECONDS if cut is None else LEASE_SECONDS,
            "renew_seconds": 0.1,
            "sweep_seconds": 0.15,
            "poll_seconds": 0.3,
            "grace_seconds": 0.0,
            "http_port": 0,
        }

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Lane]:
        """Connect, until the block ends."""
        self.observer = await asyncpg.connect(driver_url(self._urls["database_url"]))
        await self.observer.add_listener("moved", lambda *_: self._moved.set())
        async with AsyncExitStack() as stack:
            for proxy in self._proxies:
                await stack.enter_async_context(proxy)
            yield self
            await self._end_all()
        await self.redis.aclose()
        await self.engine.dispose()
        await self.observer.close()

    async def empty(self) -> None:
        """Forget the run before, and end what it left."""
        await self._end_all()
        await self.observer.execute(f"TRUNCATE journal, {', '.join(sorted(OWN_TABLES))}")
        await self.redis.flushdb()
        shutil.rmtree(self._folder / "run", ignore_errors=True)
        (self._folder / "run").mkdir()

    def worker(self, cut: Cut | None = None) -> Process:
        """Start a worker; with a cut, it dies there."""
        return self._start("worker", cut, settings=self._worker_settings(cut), folder=self._run)

    def producer(self, requests: dict[str, Any], acknowledged: Path, cut: Cut | None = None) -> Process:
        """Start a web process; with a cut, it dies there."""
        urls = self._given_urls(cut)
        return self._start("producer", cut, settings=urls, acknowledged=str(acknowledged), requests=requests)

    @property
    def _run(self) -> str:
        return str(self._folder / "run")

    def _given_urls(self, cut: Cut | None) -> dict[str, str]:
        if cut is None:
            return self._urls
        return {
            name: make_url(url).set(port=proxy.port).render_as_string(hide_password=False)
            for (name, url), proxy in zip(self._urls.items(), self._proxies, strict=True)
        }

    def _start(self, role: str, cut: Cut | None, **given: Any) -> Process:
        process = self._forks.start(role, log=str(self.log), **given)
        self._processes.append(process)
        process.ended.add_done_callback(lambda _: self._moved.set())
        if cut is not None:
            cut.kill = process.kill
            for proxy in self._proxies:
                proxy.cut = cut
        return process

    @property
    def log(self) -> Path:
        """What the processes of the run said."""
        return self._folder / "run" / "log"

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self._folder / "run" / name

    async def _end_all(self) -> None:
        for process in self._processes:
            process.kill()
            await self.end_of(process)
        self._processes.clear()

    @staticmethod
    async def end_of(process: Process) -> int:
        """Wait for a process to end, and return its exit status."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await process.ended

    async def until(self, look: Callable[[], Any]) -> None:
        """Look whenever a handoff or a claim has moved or a process has ended, until what is seen is true."""
        seen = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (seen := await look()):
                    await self._moved.wait()
                    self._moved.clear()
        except TimeoutError:
            rows = await self.observer.fetch(
                "SELECT handoff_id, response_id, state, attempts, due_at::text, lease_token, last_error FROM scoring_handoffs"
            )
            left = "\n".join(str(dict(row)) for row in rows)
            raise AssertionError(f"the run never came to rest: {seen!r}\n{left}") from None


async def add_journal(database_url: str) -> None:
    """Make a database write its journal."""
    async with raw_connection(database_url) as connection:
        await connection.execute(JOURNAL)


async def copy_database(template_url: str, name: str) -> str:
    """Copy a database to which nobody is connected; returns the URL of the copy."""
    url = make_url(template_url)
    server_url = url.set(database="postgres").render_as_string(hide_password=False)
    async with raw_connection(server_url) as connection:
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{url.database}"')
    return url.set(database=name).render_as_string(hide_password=False)
