"""A short run, as ``make chaos`` does it: real processes, real faults, and the audit of every answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.chaos.audit import TOGETHER
from tests.chaos.processes import children
from tests.databases import ROOT
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.processes

MARK = "CHAOS_TEST"
SECONDS = 40


def start_chaos(mark: str, *words: str) -> subprocess.Popen[str]:
    """Start a run; every process that it starts inherits the mark."""
    # Workers that count their own lines would be half as fast, and this run is not there to be counted.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=ROOT,
        env={**inherited, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found


def totals(report: dict[str, Any], names: Sequence[str]) -> dict[str, int]:
    total: dict[str, int] = report["total"]
    return {name: total[name] for name in names}


async def test_a_short_run_passes(tmp_path: Path) -> None:
    """Each kind of fault at most once, two of them together: nothing lost, scored twice, or paid twice unexplained."""
    mark = uuid4().hex
    path = tmp_path / "report.json"
    chaos = start_chaos(mark, "--seconds", str(SECONDS), "--seed", "11", "--json", str(path))

    output, _ = await asyncio.to_thread(chaos.communicate, timeout=500)

    assert chaos.returncode == 0, output
    report = json.loads(path.read_text())
    assert report["passed"], output
    assert totals(report, ["lost", "scored_twice"]) == {"lost": 0, "scored_twice": 0}
    assert report["total"]["scored"] > 0
    happened = [each["name"] for each in report["happenings"]]
    assert len(happened) == len(set(happened)) > 3
    assert {each["fault"]: each["times"] for each in report["rows"]}[TOGETHER] == 2
    assert output.startswith("Seed 11.")
    assert output.rstrip().endswith("Seed 11.")
    assert marked(mark) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_ctrl_c_leaves_no_process_behind() -> None:
    """Interrupted while it holds Redis frozen, the run ends everything that it started."""
    mark = uuid4().hex
    chaos = start_chaos(mark, "--seconds", "40", "--seed", "1", "--only", "Redis hangs")
    try:
        await eventually(lambda: "T" in states(chaos.pid).values(), patience_seconds=200)
        # Valkey writes its title over its environment: it carries no mark.
        started = states(chaos.pid).keys()
        assert len(started) >= 8
        chaos.send_signal(signal.SIGINT)

        output, _ = await asyncio.to_thread(chaos.communicate, timeout=60)
    finally:
        chaos.kill()
        chaos.communicate()

    assert chaos.returncode == 130, output
    await eventually(lambda: marked(mark) == [])
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def states(parent: int) -> dict[int, str]:
    """The children of a process, and what each is doing: T is stopped by a signal."""
    found = {}
    for pid in children(parent):
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return found
