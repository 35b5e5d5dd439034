"""Whether everything costs the same with five million answers stored, or a million waiting, as with ten thousand.

Each size has a server of its own, and they take turns operation by operation, so that whatever else the machine does
meets all of them.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.figures import Figures, Goal
from benchmarks.pipeline import ANSWER, Pipeline, pipeline
from benchmarks.stored import ACTIVE_USERS, NEW_USERS, add_many_users, settle_down, store, verified_but
from demo.worker_process import SCORING
from storage import get_responses, submit_responses
from storage.claims import apply_claim, request_claim, requested_claims
from storage.engine import single_statements
from storage.leases import lease_handoffs, pull_handoffs
from storage.settlements import Settlement, settle_handoffs
from storage.statistics import handoff_statistics
from storage.sweeps import overdue, revive_missed
from storage.verification import verify_settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from benchmarks.progress import Step

# How many answers are stored with a score, and how many wait beside them: enough to pull from until the end. The first is
# what the others are compared with.
SIZES = ((10_000, 20_000), (1_000_000, 20_000), (5_000_000, 20_000), (1_000_000, 1_000_000))
ROUNDS, WARM_UP = 300, 60
COMMAND_ROUNDS = 7
VERIFIED = 1_000
BATCH = 32
LEASE_SECONDS = 30.0
SCORE = {
    "overall_score": 4.0,
    "reasoning": "Names both pigments, and says which colours they take up and which not.",
}
COMMAND = "scoring status (the command)"
BOUND = 1.3
REPORT_EVERY = 20
STEPS = len(SIZES) + (WARM_UP + ROUNDS) // REPORT_EVERY


class Operations:
    """One round of everything, on one size; keeps how long each operation took."""

    def __init__(self, line: Pipeline) -> None:
        self.line = line
        self.took: dict[str, list[float]] = {}
        self._numbers = itertools.count()

    async def timed(self, name: str, act: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        """Run statements on a connection in autocommit, and keep how many milliseconds they took."""
        async with single_statements(self.line.engine) as conn:
            began = time.perf_counter()
            result = await act(conn)
            self.took.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        return result

    async def round(self) -> None:
        """Do everything once."""
        await self._live()
        await self._batch()
        await self._claim()
        student = random.choice(ACTIVE_USERS)  # noqa: S311 - no secret
        page = await self.timed(
            "get_responses, first page", lambda conn: get_responses(conn, user_id=student)
        )
        if len(page) != 50:  # noqa: PLR2004 - the page's default
            raise AssertionError(f"a page of {len(page)}")
        await self.timed("sweep", self._sweep)
        await self.timed("scoring status (its statements)", handoff_statistics)

    async def _live(self) -> None:
        """One answer on the fast path."""
        [row] = await self.timed("submit", lambda conn: submit_responses(conn, [ANSWER]))
        leases = await self.timed(
            "lease of one answer",
            lambda conn: lease_handoffs(
                conn,
                response_ids=[row["response_id"]],
                lease_token=uuid4(),
                lease_seconds=LEASE_SECONDS,
                limit=1,
            ),
        )
        await self.timed("settle of one answer", lambda conn: self._settle(conn, leases))

    async def _batch(self) -> None:
        """A batch from whatever waits."""
        async with single_statements(self.line.engine) as conn:
            await submit_responses(conn, [ANSWER] * BATCH)
        leases = await self.timed(
            f"pull of {BATCH}",
            lambda conn: pull_handoffs(
                conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=BATCH
            ),
        )
        if len(leases) != BATCH:
            raise AssertionError(f"{len(leases)} leases")
        await self.timed(f"settle of {BATCH}", lambda conn: self._settle(conn, leases))

    @staticmethod
    async def _settle(conn: AsyncConnection, leases: Sequence[dict[str, Any]]) -> None:
        await settle_handoffs(
            conn,
            [Settlement(lease["handoff_id"], lease["created_at"], "model", "1", SCORE) for lease in leases],
        )

    async def _claim(self) -> None:
        """Two answers under a token, claimed by a student who has answered nothing else."""
        number = next(self._numbers)
        token, student = f"token-{number}", NEW_USERS[number]
        given = ANSWER | {"user_id": None, "anonymous_token": token}
        async with single_statements(self.line.engine) as conn:
            rows = await submit_responses(conn, [given, given | {"question_id": "other"}])
            leases = await lease_handoffs(
                conn,
                response_ids=[row["response_id"] for row in rows],
                lease_token=uuid4(),
                lease_seconds=LEASE_SECONDS,
                limit=2,
            )
            await self._settle(conn, leases)

        async def claim(conn: AsyncConnection) -> None:
            claim_id = await request_claim(conn, anonymous_token=token, user_id=student)
            await apply_claim(conn, claim_id)

        await self.timed("claim, requested and applied", claim)

    @staticmethod
    async def _sweep(conn: AsyncConnection) -> None:
        await overdue(conn, lease_seconds=LEASE_SECONDS, overdue_seconds=0.25)
        await revive_missed(conn)
        await requested_claims(conn, age_seconds=0.25, limit=500)

    async def verify(self) -> None:
        """Verify the last thousand answers, as if the ones before had been verified."""
        await verified_but(self.line.engine, VERIFIED)
        await self.timed("scoring verify (its statements)", verify_settlement)

    def command(self) -> None:
        """Run the command as an operator does."""
        urls = {
            "SCORING_DATABASE_URL": self.line.servers.database_url,
            "SCORING_REDIS_URL": self.line.servers.redis_url,
        }
        began = time.perf_counter()
        subprocess.run(
            [*SCORING, "status", "--json"], env={**os.environ, **urls}, check=True, capture_output=True
        )
        self.took.setdefault(COMMAND, []).append((time.perf_counter() - began) * 1000)


async def _fill(line: Pipeline, stored: int, waiting: int) -> None:
    await add_many_users(line.engine)
    await store(line.engine, stored, scored=True)
    await store(line.engine, waiting, scored=False)
    await settle_down(line.engine)


def _title(stored: int, waiting: int) -> str:
    return f"{stored:,} scored, {waiting:,} due"


async def measure(step: Step) -> Figures:
    """Fill a server for each size, and measure them in turns."""
    async with AsyncExitStack() as stack:
        sizes: list[Operations] = []
        for stored, waiting in SIZES:
            line = await stack.enter_async_context(pipeline())
            step(f"filling: {_title(stored, waiting)}")
            await _fill(line, stored, waiting)
            sizes.append(Operations(line))
        for done in range(WARM_UP + ROUNDS):
            if done % REPORT_EVERY == 0:
                step(f"round {done} of {WARM_UP + ROUNDS}")
            for operations in sizes:
                await operations.round()
        for _ in range(COMMAND_ROUNDS):
            for operations in sizes:
                operations.command()
                await operations.verify()
    medians = [
        {name: statistics.median(took[WARM_UP:] or took) for name, took in operations.took.items()}
        for operations in sizes
    ]
    figures = Figures(
        "With more answers stored, and more that wait: medians in ms, and times the first column",
        ("", *itertools.starmap(_title, SIZES)),
        [],
        notes=[
            "Every size has a server of its own with PostgreSQL's defaults (128 MB of shared buffers).",
            "scoring status counts up to 10,000, and scoring verify looks at what is unsettled: both see a backlog. With ten thousand",
            "scores PostgreSQL reads all of them instead of looking up those of what is unsettled.",
        ],
    )
    worst = 0.0
    for name, first in medians[0].items():
        ratios = [each[name] / first for each in medians]
        figures.rows.append((name, f"{first:.2f}", *(f"{r * first:.2f} ({r:.2f})" for r in ratios[1:])))
        figures.values[name] = {"ms": [r * first for r in ratios], "ratios": ratios}
        if name == "scoring verify (its statements)":
            figures.goals.append(
                Goal(f"flat, {name}, 5,000,000 scored against 1,000,000", ratios[2] / ratios[1], BOUND)
            )
        elif name != "scoring status (its statements)":
            worst = max(worst, *ratios)
    slowest = max(
        (name for name in medians[0] if not name.endswith("statements)")),
        key=lambda name: max(figures.values[name]["ratios"]),
    )
    figures.goals.insert(0, Goal(f"flat, the worst of all operations ({slowest})", worst, BOUND))
    return figures
