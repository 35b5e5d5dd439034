"""Our pipeline, set up to be measured: embedded servers, the real schema, a published question, real workers."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from benchmarks.scorers import LOG_VARIABLE, NAME, SECONDS_VARIABLE, SIGMA_VARIABLE
from demo.servers import embedded_servers
from demo.worker_process import tail, worker_process
from producers import ProducerSettings
from storage.questions import publish_questions
from tests.databases import add_users, upgrade

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Servers

QUESTION = {"module_slug": "bench", "question_id": "q", "question_text": "Why?", "rubric": "Because."}
ANSWER: dict[str, Any] = {
    "user_id": 1,
    "module_slug": "bench",
    "question_id": "q",
    "answer_text": "word " * 120,
}
POLL_SECONDS = 0.02
# No new score for so long: something is broken, and waiting would not end.
STALLED_SECONDS = 60.0
START_SECONDS = 30.0

# Ids of scores have no gaps but those of refused settlements, and the end of an index costs the same however many
# there are.
_LAST_SCORE = text("SELECT coalesce(max(score_id), 0) FROM assessment_scores")
_SCORED = text("SELECT count(*) FROM assessment_scores")


class StalledError(RuntimeError):
    """Answers wait and no score comes any more."""


@dataclass(frozen=True)
class Pipeline:
    """Running servers with our schema in them.

    ``folder`` holds logs; ``engine`` is the web app's.
    """

    servers: Servers
    settings: ProducerSettings
    engine: AsyncEngine
    folder: Path

    @property
    def starts_log(self) -> Path:
        """Where the scorer writes when it began with which answer."""
        return self.folder / "starts"

    def starts(self) -> dict[int, int]:
        """When each answer was begun with first, nanoseconds of the machine's monotonic clock, by response."""
        began: dict[int, int] = {}
        if self.starts_log.exists():
            for line in self.starts_log.read_text().splitlines():
                response_id, at = map(int, line.split())
                began.setdefault(response_id, at)
        return began

    @contextmanager
    def worker(
        self, *, slots: int = 100, scorer_seconds: float = 0.0, sigma: float = 0.0, **variables: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker process whose scorer takes its time.

        Args:
            slots: Answers at the same time.
            scorer_seconds: Mean time of the scorer.
            sigma: Standard deviation of the time's logarithm; 0 for a fixed time.
            variables: More of its environment.
        """
        environment = {
            **os.environ,
            "SCORING_DATABASE_URL": self.servers.database_url,
            "SCORING_REDIS_URL": self.servers.redis_url,
            "SCORING_SCORER": NAME,
            "SCORING_SLOTS": str(slots),
            LOG_VARIABLE: str(self.starts_log),
            SECONDS_VARIABLE: str(scorer_seconds),
            SIGMA_VARIABLE: str(sigma),
            **variables,
        }
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".log", delete=False) as log:
            path = Path(log.name)
        with worker_process(environment, path) as process:
            _until_ready(process, path)
            yield process

    async def scored(self, *, exactly: bool = False) -> int:
        """How many scores there are."""
        async with self.engine.connect() as conn:
            return int((await conn.execute(_SCORED if exactly else _LAST_SCORE)).scalar_one())

    async def all_scored(self, expected: int) -> float:
        """Wait until there are so many scores.

        Returns:
            The time, by ``time.perf_counter()``, at which they were all seen.

        Raises:
            StalledError: None came for a minute.
        """
        seen, changed_at = 0, time.perf_counter()
        while True:
            last = await self.scored()
            now = time.perf_counter()
            if last >= expected and await self.scored(exactly=True) >= expected:
                return now
            if last > seen:
                seen, changed_at = last, now
            elif now - changed_at > STALLED_SECONDS:
                raise StalledError(f"{seen} of {expected} scores came, then none for a minute.")
            await asyncio.sleep(POLL_SECONDS)


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "The worker is ready." not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StalledError(f"The worker did not start:\n{tail(log)}")
        time.sleep(0.02)


@asynccontextmanager
async def pipeline(*, pool_size: int = 5, postgres_options: Sequence[str] = ()) -> AsyncIterator[Pipeline]:
    """Start servers, migrate, publish the question.

    Args:
        pool_size: Connections of the web app's engine.
        postgres_options: ``name=value`` settings for PostgreSQL, beside its defaults.
    """
    with (
        embedded_servers(postgres_options=postgres_options) as servers,
        tempfile.TemporaryDirectory() as folder,
    ):
        await upgrade(servers.database_url)
        await add_users(servers.database_url)
        urls: dict[str, Any] = {"database_url": servers.database_url, "redis_url": servers.redis_url}
        settings = ProducerSettings(**urls, database_pool_size=pool_size, database_timeout_seconds=60)
        engine = settings.engine()
        async with engine.begin() as conn:
            await publish_questions(conn, [QUESTION])
        try:
            yield Pipeline(servers, settings, engine, Path(folder))
        finally:
            await engine.dispose()
