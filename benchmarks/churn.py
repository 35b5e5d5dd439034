"""Whether the handoff table stays quick after a million handoffs came and went, with autovacuum at its defaults."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import text

from benchmarks.figures import Figures, quantile
from benchmarks.pipeline import pipeline
from storage import submit_responses
from storage.engine import single_statements
from storage.leases import pull_handoffs, renew_leases
from storage.settlements import Settlement, settle_handoffs
from worker.pull_cursor import PullCursor

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.progress import Step

HANDOFFS = 1_000_000
BATCH = 100
# So many batches wait between submit and lease: a table that is never empty, as under load.
AHEAD = 20
SUBMITTERS, SCORERS = 2, 2
STEPS = 20
ANSWER = {"user_id": 1, "module_slug": "bench", "question_id": "q", "answer_text": "word " * 20}
SCORE = {"overall_score": 4.0, "reasoning": "Names both."}

# How large the table and its indexes are, and what is dead in it.
_SIZES = text("""
    SELECT pg_table_size('scoring_handoffs') AS table_bytes, pg_indexes_size('scoring_handoffs') AS index_bytes,
        s.n_dead_tup AS dead_rows, s.autovacuum_count AS vacuums
    FROM pg_stat_user_tables AS s WHERE s.relname = 'scoring_handoffs'
""")


class Churn:
    """Submits, leases, renews and settles with the real statements, and keeps how long each took."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.submitted = self.settled = 0
        self.began = time.perf_counter()
        # (seconds since the beginning, milliseconds) of each statement
        self.took: dict[str, list[tuple[float, float]]] = {"lease": [], "renew": [], "settle": []}
        self._room = asyncio.Semaphore(AHEAD)

    async def submit(self) -> None:
        while self.submitted < HANDOFFS:
            await self._room.acquire()
            self.submitted += BATCH
            async with single_statements(self._engine) as conn:
                await submit_responses(conn, [ANSWER] * BATCH)

    async def score(self) -> None:
        cursor = PullCursor()
        while self.settled < HANDOFFS:
            leases = await self._timed("lease", lambda conn: self._lease(conn, cursor.after))
            cursor.pulled(leases, BATCH)
            if not leases:
                await asyncio.sleep(0.001)
                continue
            await self._timed("renew", lambda conn, leases=leases: self._renew(conn, leases))
            settled = await self._timed("settle", lambda conn, leases=leases: self._settle(conn, leases))
            self.settled += len(settled)
            for _ in range(len(settled) // BATCH):
                self._room.release()

    async def _timed(self, name: str, statement: Any) -> Any:
        async with single_statements(self._engine) as conn:
            began = time.perf_counter()
            result = await statement(conn)
            ended = time.perf_counter()
        if result:
            self.took[name].append((ended - self.began, (ended - began) * 1000))
        return result

    async def _lease(self, conn: Any, after: datetime | None) -> Any:
        return await pull_handoffs(
            conn, lane="live", lease_token=uuid4(), lease_seconds=30, limit=BATCH, after=after
        )

    async def _renew(self, conn: Any, leases: Any) -> Any:
        held = [(lease["handoff_id"], lease["lease_token"]) for lease in leases]
        return await renew_leases(conn, held, lease_seconds=30)

    async def _settle(self, conn: Any, leases: Any) -> Any:
        return await settle_handoffs(
            conn, [Settlement(lease["handoff_id"], lease["created_at"], "m", "1", SCORE) for lease in leases]
        )

    async def sizes(self) -> Any:
        async with self._engine.connect() as conn:
            return (await conn.execute(_SIZES)).mappings().one()


async def _run(engine: AsyncEngine, step: Step) -> tuple[Churn, deque[Any]]:
    churn = Churn(engine)
    sizes: deque[Any] = deque()

    async def watch() -> None:
        said = 0
        while True:
            sizes.append(await churn.sizes())
            if churn.settled >= said * HANDOFFS / STEPS:
                said += 1
                step(f"{churn.settled:,} of {HANDOFFS:,} handoffs came and went")
            await asyncio.sleep(2)

    watching = asyncio.create_task(watch())
    async with asyncio.TaskGroup() as group:
        for _ in range(SUBMITTERS):
            group.create_task(churn.submit())
        for _ in range(SCORERS):
            group.create_task(churn.score())
    watching.cancel()
    sizes.append(await churn.sizes())
    return churn, sizes


async def measure(step: Step) -> Figures:
    """Measure lease, renew and settle in the first and in the last quarter of a million handoffs."""
    async with pipeline(pool_size=8) as line:
        churn, sizes = await _run(line.engine, step)
    lasted = time.perf_counter() - churn.began
    figures = Figures(
        f"{churn.settled:,} handoffs came and went in {lasted:,.0f} s, autovacuum at its defaults",
        (f"statement of {BATCH} rows", "first quarter p50, ms", "last quarter p50, ms", "ratio"),
        [],
    )
    for name, took in churn.took.items():
        first = quantile([ms for at, ms in took if at <= lasted / 4], 0.5)
        last = quantile([ms for at, ms in took if at >= lasted * 3 / 4], 0.5)
        figures.rows.append((name, f"{first:.2f}", f"{last:.2f}", f"{last / first:.2f}"))
        figures.values[name] = {"first_ms": first, "last_ms": last, "ratio": last / first}
    largest = (
        max(size["table_bytes"] for size in sizes) / 1e6,
        max(size["index_bytes"] for size in sizes) / 1e6,
    )
    figures.notes.append(
        f"scoring_handoffs at its largest: table {largest[0]:.1f} MB, indexes {largest[1]:.1f} MB; "
        f"vacuumed {sizes[-1]['vacuums']} times."
    )
    figures.values.update(
        seconds=lasted, table_mb=largest[0], index_mb=largest[1], vacuums=sizes[-1]["vacuums"]
    )
    return figures
