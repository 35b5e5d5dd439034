"""A thousand open event streams on one web process: how late an event is, and what a stream costs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy import text

from benchmarks.events_server import FILES
from benchmarks.figures import Figures, Goal, quantile
from benchmarks.pipeline import ANSWER, POLL_SECONDS, STALLED_SECONDS, START_SECONDS, StalledError, pipeline
from demo.servers import free_port
from storage.settlements import Settlement, settle_handoffs
from storage.submissions import submit_responses
from tests.databases import raw_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

STREAMS = 1_000
SCORES_PER_SECOND = 50
SECONDS = 30
# As many more answers as there are streams stay unscored and are watched, as on pages on which somebody waits.
SCORES = SCORES_PER_SECOND * SECONDS
STEPS = 3
NAME = "bench-events"
_HOST = "127.0.0.1"

# Connections of the measured process.
_CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
_WAITING = text("SELECT handoff_id, created_at, response_id FROM scoring_handoffs ORDER BY handoff_id")


class Reader:
    """All streams: when which answer's score arrived, and which streams are up to date."""

    def __init__(self) -> None:
        self.scored_at: dict[int, float] = {}
        self.told = 0
        self.events = 0

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read one stream until it ends."""
        is_told = False
        while line := await stream.readline():
            if line.startswith(b"data: "):
                now = time.perf_counter()
                self.events += 1
                event = json.loads(line[6:])
                if event["state"] == "scored":
                    self.scored_at.setdefault(event["id"], now)
            elif line.startswith(b"id: ") and not is_told:
                is_told = True
                self.told += 1

    @asynccontextmanager
    async def stream(self, port: int, user_id: int) -> AsyncIterator[None]:
        """Keep one stream open."""
        reader, writer = await asyncio.open_connection(_HOST, port)
        writer.write(f"GET /events HTTP/1.1\r\nHost: {_HOST}\r\nx-user: {user_id}\r\n\r\n".encode())
        task = asyncio.create_task(self.read(reader))
        try:
            yield
        finally:
            writer.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _until(look: Any, what: str) -> None:
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            while True:
                if look():
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise StalledError(f"This did not happen within a minute: {what}.") from None


@contextmanager
def _server(database_url: str) -> Iterator[int]:
    """Run the measured process; its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.events_server", str(port)],
        env={**os.environ, "DATABASE_URL": f"{database_url}?application_name={NAME}"},
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"http://{_HOST}:{port}/figures").raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StalledError("The web process did not start.") from None
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


async def _figures(port: int) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        return dict((await client.get(f"http://{_HOST}:{port}/figures", timeout=30)).json())


async def _prepare(line: Pipeline) -> list[dict[str, Any]]:
    """Give each student answers; returns handoff and response of those that will be scored, in any order."""
    async with raw_connection(line.servers.database_url) as connection:
        await connection.execute(
            "INSERT INTO users SELECT generate_series(1, $1::integer) ON CONFLICT DO NOTHING", STREAMS
        )
    async with line.engine.begin() as conn:
        for start in range(0, SCORES + STREAMS, 500):
            given = range(start, min(start + 500, SCORES + STREAMS))
            await submit_responses(conn, [{**ANSWER, "user_id": number % STREAMS + 1} for number in given])
        waiting = [dict(row) for row in (await conn.execute(_WAITING)).mappings()]
    chosen = random.Random(1)  # noqa: S311 - always the same
    return chosen.sample(waiting, SCORES)


async def _settle(line: Pipeline, waiting: list[dict[str, Any]]) -> dict[int, float]:
    """Score at an even pace; when each was committed, by response."""
    committed: dict[int, float] = {}
    data = {"overall_score": 4.0, "reasoning": "Because. " * 20, "dimensions": []}
    began = time.perf_counter()
    for number, handoff in enumerate(waiting):
        await asyncio.sleep(max(0.0, began + number / SCORES_PER_SECOND - time.perf_counter()))
        async with line.engine.begin() as conn:
            await settle_handoffs(
                conn, [Settlement(handoff["handoff_id"], handoff["created_at"], "bench", "1", data)]
            )
        committed[handoff["response_id"]] = time.perf_counter()
    return committed


async def measure(step: Step) -> Figures:
    """Open the streams, score, and look at what arrived."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    step("answers")
    async with pipeline() as line:
        waiting = await _prepare(line)
        with _server(line.servers.database_url) as port:
            reader = Reader()
            async with reader.stream(port, 1):  # what every process pays once
                await _until(lambda: reader.told == 1, "the first stream")
            empty = await _figures(port)
            step(f"{STREAMS:,} streams")
            reader = Reader()
            async with AsyncExitStack() as streams:
                opening = time.perf_counter()
                for user_id in range(1, STREAMS + 1):
                    await streams.enter_async_context(reader.stream(port, user_id))
                await _until(lambda: reader.told == STREAMS, "all streams")
                opened_seconds = time.perf_counter() - opening
                full = await _figures(port)
                step(f"{SCORES:,} scores")
                began = time.perf_counter()
                settling = asyncio.create_task(_settle(line, waiting))
                await asyncio.sleep(SECONDS / 2)
                async with line.engine.connect() as conn:
                    connections = int((await conn.execute(_CONNECTIONS, {"name": NAME})).scalar_one())
                committed = await settling
                took = time.perf_counter() - began
                await _until(lambda: committed.keys() <= reader.scored_at.keys(), "every score at its reader")
                busy = await _figures(port)
    late = [1000 * (reader.scored_at[response_id] - at) for response_id, at in committed.items()]
    stream_kb = (full["resident_kb"] - empty["resident_kb"]) / STREAMS
    share = 100 * (busy["processor_seconds"] - full["processor_seconds"]) / took
    rate = (busy["statements"] - full["statements"]) / took
    delays = {name: quantile(late, at) for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return Figures(
        f"{STREAMS:,} open event streams on one web process, {SCORES_PER_SECOND} scores a second for {SECONDS} s",
        ("", "measured"),
        [
            *((f"from commit to the client, {name}, ms", f"{ms:.0f}") for name, ms in delays.items()),
            ("from commit to the client, the latest, ms", f"{max(late):.0f}"),
            ("all streams open and told how everything stands after, s", f"{opened_seconds:.2f}"),
            (
                "memory of the process with one stream that has ended, MB",
                f"{empty['resident_kb'] / 1024:.0f}",
            ),
            ("memory of the process with all streams, MB", f"{full['resident_kb'] / 1024:.0f}"),
            ("memory of a stream, KB", f"{stream_kb:.0f}"),
            ("memory at the end, MB", f"{busy['resident_kb'] / 1024:.0f}"),
            ("processor of the web process, % of a core", f"{share:.1f}"),
            ("statements a second", f"{rate:.1f}"),
            ("PostgreSQL connections of the web process", f"{connections}"),
            ("scores committed, and arrived", f"{len(committed):,}, {len(reader.scored_at):,}"),
        ],
        notes=["Readers and whoever scores share the machine with the web process and PostgreSQL."],
        values={
            "delay_ms": {**delays, "max": max(late)},
            "opened_seconds": opened_seconds,
            "stream_kb": stream_kb,
            "processor_percent": share,
            "statements_per_second": rate,
            "connections": connections,
        },
        goals=[
            Goal("events, from commit to the client, p99", delays["p99"], 1000, unit="ms"),
            Goal("events, memory of a stream", stream_kb, 100, unit="KB"),
            Goal("events, PostgreSQL connections for 1,000 streams", connections, 1, unit="connections"),
        ],
    )
