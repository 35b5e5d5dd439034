"""How soon a worker is ready, and what importing the producers costs a web app."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.figures import Figures, Goal
from benchmarks.pipeline import pipeline

if TYPE_CHECKING:
    from benchmarks.progress import Step

ROUNDS = 9
STEPS = 2
# What a web app that uses us imports anyway, and what of it we use.
DEPENDENCIES = (
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "asyncpg",
    "redis.asyncio",
    "arq.jobs",
    "pydantic",
    "pydantic_settings",
)
_NOTHING = "pass"


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def _imports() -> dict[str, float]:
    """Median seconds of a fresh process that imports it, without what Python itself takes."""
    codes = {
        "nothing": _NOTHING,
        "dependencies": "import " + ", ".join(DEPENDENCIES),
        "producers": "import producers",
    }
    took: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(ROUNDS):
        for name, code in codes.items():
            took[name].append(_seconds(code))
    median = {name: statistics.median(values) for name, values in took.items()}
    return {name: seconds - median["nothing"] for name, seconds in median.items() if name != "nothing"}


async def measure(step: Step) -> Figures:
    """Measure both, each in fresh processes."""
    step("imports")
    imports = _imports()
    ready: list[float] = []
    step("workers")
    async with pipeline() as line:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            # Pipeline.worker looks at the log for "ready" every 20 ms, which counts against us.
            with line.worker(SCORING_SCORER="lexical", SCORING_LOG_LEVEL="INFO"):
                ready.append(time.perf_counter() - began)
    ratio = imports["producers"] / imports["dependencies"]
    return Figures(
        f"Start (medians of {ROUNDS} fresh processes)",
        ("", "seconds"),
        [
            ("scoring worker, lexical scorer: until it is ready", f"{statistics.median(ready):.2f}"),
            ("the slowest of them", f"{max(ready):.2f}"),
            ("import producers", f"{imports['producers']:.2f}"),
            ("import of its dependencies alone", f"{imports['dependencies']:.2f}"),
        ],
        values={
            "ready_seconds": statistics.median(ready),
            "import_producers_seconds": imports["producers"],
            "import_dependencies_seconds": imports["dependencies"],
        },
        goals=[
            Goal("scoring worker is ready after", statistics.median(ready), 1.5, unit="s"),
            Goal("import producers, against its dependencies", ratio, 1.5),
        ],
    )
