"""Rescore, backfill and purge of a million answers, by the commands that operators use: are the last as quick as the first?"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from benchmarks.figures import Figures, Goal
from benchmarks.pipeline import pipeline
from benchmarks.stored import add_many_users, settle_down, store
from demo.worker_process import SCORING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

ANSWERS = 1_000_000
LOOK_SECONDS = 0.1
# The last quarter of a run may take so many times as long as its first.
FLAT_BOUND = 1.5
# A process that has imported the command, and its steps; not what it runs over.
MOST_MIB = 200.0
STEPS = 4

_CURSOR = text("SELECT run_id, changed, finished_at FROM scoring_runs ORDER BY run_id DESC LIMIT 1")
_FORGET = text("TRUNCATE scoring_handoffs, assessment_scores")
# Every answer becomes one that somebody gave anonymously, ten to a token, long ago.
_ANONYMOUS = text("""
    UPDATE assessment_responses SET
        user_id = NULL, anonymous_token = md5((response_id / 10)::text), created_at = created_at - interval '60 days'
""")


@dataclass
class Run:
    """How one command went: when it had worked off how many answers, and its memory at its largest."""

    looked_seconds: float = 0.0
    lasted_seconds: float = 0.0
    memory_mib: float = 0.0
    changed_at: list[tuple[float, int]] = field(default_factory=list)

    def seconds_until(self, share: float) -> float:
        """When it had done this share of all, seconds from its first step."""
        return next(at for at, changed in self.changed_at if changed >= share * ANSWERS)

    @property
    def last_against_first_quarter(self) -> float:
        """How many times as long the last quarter took."""
        return (self.seconds_until(1) - self.seconds_until(0.75)) / self.seconds_until(0.25)


def _memory_mib(pid: int) -> float:
    """What of a process is in memory now, MiB; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123 - a line that the kernel makes
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


async def _watched(line: Pipeline, *words: str) -> Run:
    run = Run()
    before = await _cursor(line.engine)
    environment = {**os.environ, "SCORING_DATABASE_URL": line.servers.database_url}
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *SCORING,
        *words,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    ended = asyncio.create_task(process.wait())
    work_began = 0.0
    while not ended.done():
        now = await _cursor(line.engine)
        if now["run_id"] != before["run_id"]:
            at = time.perf_counter()
            if not work_began:
                work_began, run.looked_seconds = at, at - began
            run.changed_at.append((at - work_began, now["changed"]))
        run.memory_mib = max(run.memory_mib, _memory_mib(process.pid))
        await asyncio.wait([ended], timeout=LOOK_SECONDS)
    run.lasted_seconds = time.perf_counter() - began
    last = await _cursor(line.engine)
    run.changed_at.append((time.perf_counter() - work_began, last["changed"]))
    if ended.result() != 0 or last["finished_at"] is None or last["changed"] != ANSWERS:
        raise RuntimeError(
            f"scoring {' '.join(words)} ended with {ended.result()}, having changed {last['changed']}"
        )
    return run


async def _cursor(engine: AsyncEngine) -> Any:
    async with engine.connect() as conn:
        found = (await conn.execute(_CURSOR)).mappings().one_or_none()
    return found or {"run_id": None, "changed": 0, "finished_at": None}


async def _at_leisure(engine: AsyncEngine, *statements: Any) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        await conn.execute(text("SELECT set_config('session_replication_role', 'replica', true)"))
        for statement in statements:
            await conn.execute(statement)
    await settle_down(engine)


async def measure(step: Step) -> Figures:
    """Run each command over a million answers, on the same server."""
    step(f"{ANSWERS:,} answers are stored")
    async with pipeline(pool_size=4) as line:
        await add_many_users(line.engine)
        await store(line.engine, ANSWERS, scored=True)
        await settle_down(line.engine)

        async def nothing() -> None:
            pass

        parts: tuple[tuple[str, Callable[[], Awaitable[None]], tuple[str, ...]], ...] = (
            ("rescore", nothing, ("rescore", "--all", "--yes")),
            ("backfill", lambda: _at_leisure(line.engine, _FORGET), ("backfill", "--yes")),
            (
                "purge",
                lambda: _at_leisure(line.engine, _ANONYMOUS),
                ("purge", "--older-than", "30", "--yes"),
            ),
        )
        runs = {}
        for name, prepare, words in parts:
            step(f"scoring {name} of {ANSWERS:,} answers")
            await prepare()
            runs[name] = await _watched(line, *words)
    return _figures(runs)


def _figures(runs: dict[str, Run]) -> Figures:
    figures = Figures(
        f"{ANSWERS:,} answers, by command",
        ("", "looking first, s", "in all, s", "answers/s", "last against first quarter", "memory, MiB"),
        [],
        notes=[
            "Workers score what rescore and backfill hand over, in the bulk lane; that is no part of these times.",
        ],
    )
    for name, run in runs.items():
        rate = ANSWERS / (run.lasted_seconds - run.looked_seconds)
        figures.rows.append(
            (
                f"scoring {name}",
                f"{run.looked_seconds:.1f}",
                f"{run.lasted_seconds:.0f}",
                f"{rate:,.0f}",
                f"{run.last_against_first_quarter:.2f}",
                f"{run.memory_mib:.0f}",
            )
        )
        figures.values[name] = {
            "looked_seconds": run.looked_seconds,
            "seconds": run.lasted_seconds,
            "last_against_first_quarter": run.last_against_first_quarter,
            "memory_mib": run.memory_mib,
        }
        figures.goals.extend(
            (
                Goal(
                    f"scoring {name}, last against first quarter", run.last_against_first_quarter, FLAT_BOUND
                ),
                Goal(f"scoring {name}, memory", run.memory_mib, MOST_MIB, unit="MiB"),
            )
        )
    return figures
