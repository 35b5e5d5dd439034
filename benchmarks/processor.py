"""Where the time goes: processor time of each process for one answer, and whose code it is in the two of Python."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Figures
from benchmarks.pickup import cpu_seconds
from benchmarks.pipeline import pipeline
from benchmarks.throughput import SUBMITTERS, submit_all, ways
from producers import open_producer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.pipeline import Pipeline
    from benchmarks.progress import Step

ANSWERS = {"coalesced": 30_000, "own transaction": 6_000}
TITLES = {"coalesced": "producer.submit", "own transaction": "a transaction for each answer"}
PROCESSES = ("producer", "worker", "PostgreSQL", "Valkey")
PYTHON = PROCESSES[:2]
STEPS = 2 * len(ANSWERS)
SAMPLES_A_SECOND = 200
# Whose a frame is, by the path of its file; the first that fits.
_OWNERS = {
    "ours": re.compile(r"/(storage|producers|worker)/"),
    "SQLAlchemy": re.compile(r"/sqlalchemy/"),
    "asyncpg": re.compile(r"/asyncpg/"),
    "redis-py, arq": re.compile(r"/(redis|arq)/"),
    "pydantic": re.compile(r"/pydantic"),
    "the benchmark": re.compile(r"/benchmarks/"),
}
ELSE = "asyncio and the rest"
# Of a line "frame;frame;... count": the file of the innermost frame, and the count.
_SAMPLE = re.compile(r"\((?P<file>[^();]*?)(:\d+)?\) (?P<count>\d+)$")


def _children(pid: int) -> Iterator[int]:
    """The server's own process and those that it forked (``proc_pid_task_children(5)``)."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)


def _used(line: Pipeline, worker: int) -> dict[str, float]:
    """Seconds of processor time that each has used."""
    postgres, valkey = line.servers.postgres.process, line.servers.redis.process
    if postgres is None or valkey is None:
        raise RuntimeError("the servers are gone")
    return {
        "producer": time.process_time(),
        "worker": cpu_seconds(worker),
        "PostgreSQL": sum(cpu_seconds(pid) for pid in _children(postgres.pid)),
        "Valkey": cpu_seconds(valkey.pid),
    }


def owner(file: str) -> str:
    """Whose code a file holds."""
    return next((name for name, pattern in _OWNERS.items() if pattern.search(file)), ELSE)


def _shares(samples: Path) -> dict[str, float]:
    """Whose code the innermost Python frame was in, as shares of all samples."""
    counts: Counter[str] = Counter()
    for line in samples.read_text().splitlines():
        found = _SAMPLE.search(line)
        if found and not found["file"].endswith("selectors.py"):  # waiting takes no processor time
            counts[owner(found["file"])] += int(found["count"])
    return {name: count / counts.total() for name, count in counts.items()}


async def _sample(pid: int, output: Path, seconds: float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(pid), "--format", "raw"),
        *("--duration", str(max(1, round(seconds))), "--rate", str(SAMPLES_A_SECOND), "--full-filenames"),
        *("--nonblocking", "--output", str(output)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def _run(way: str, *, sampled: bool) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Seconds of each process for all answers; and shares of the two Python processes, where they are sampled."""
    answers = ANSWERS[way]
    async with pipeline(pool_size=SUBMITTERS) as line:
        with line.worker() as worker:
            async with open_producer(line.settings, engine=line.engine) as producer:
                submit = ways(line, producer)[way]
                took = await submit_all(submit, answers // 3)
                await line.all_scored(answers // 3)
                outputs = {"producer": line.folder / "producer.raw", "worker": line.folder / "worker.raw"}
                pids = {"producer": os.getpid(), "worker": worker.pid}
                samplers = [await _sample(pids[name], outputs[name], 2 * took) for name in PYTHON if sampled]
                before = _used(line, worker.pid)
                await submit_all(submit, answers)
                await line.all_scored(answers + answers // 3)
                after = _used(line, worker.pid)
                for sampler in samplers:
                    await sampler.wait()
        shares = {name: _shares(path) for name, path in outputs.items() if path.exists()}
    return {name: after[name] - before[name] for name in after}, shares


async def measure(step: Step) -> Figures:
    """Measure both ways to submit: once for the processes, once with a sampling profiler for whose code it is."""
    figures = Figures(
        "Processor time for one answer, microseconds, end to end with a scorer that takes no time",
        ("", *(TITLES[way] for way in ANSWERS)),
        [],
        notes=[
            "Of the two Python processes: whose code the innermost frame was in, by a sampling profiler (py-spy), times the time.",
            "What C extensions do counts for the Python code that calls them.",
        ],
    )
    columns: dict[str, dict[str, float]] = {}
    for way, answers in ANSWERS.items():
        step(f"{TITLES[way]}, processes")
        seconds, _ = await _run(way, sampled=False)
        step(f"{TITLES[way]}, sampled")
        _, shares = await _run(way, sampled=True)
        micro = {name: used / answers * 1e6 for name, used in seconds.items()}
        column = columns[way] = {}
        for name in PROCESSES:
            column[name] = micro[name]
            if name in PYTHON:
                for whose in (*_OWNERS, ELSE):
                    column[f"{name}: {whose}"] = micro[name] * shares[name].get(whose, 0.0)
        column["all"] = sum(micro.values())
    for row in columns["coalesced"]:
        figures.rows.append((row, *(f"{columns[way][row]:,.0f}" for way in ANSWERS)))
    figures.values.update(columns)
    return figures
