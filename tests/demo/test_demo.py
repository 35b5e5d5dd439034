"""The demo, as a process, with the servers that it starts itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.databases import ROOT
from tests.producers.waiting import eventually

pytestmark = pytest.mark.processes

MARK = "SCORING_DEMO_TEST"


def start_demo(mark: str) -> subprocess.Popen[str]:
    """Start the demo; every process that it starts inherits the mark."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, MARK: mark, "COLUMNS": "160"},
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


async def test_the_demo_scores_the_class_and_leaves_nothing_behind() -> None:
    """The demo exits with 0, prints scores, refusals, claims and the invariants, and leaves no process behind."""
    mark = uuid4().hex
    demo = start_demo(mark)

    output, _ = await asyncio.to_thread(demo.communicate, timeout=120)

    assert demo.returncode == 0, output
    assert "Refused, as it should be" in output
    assert "signed in as" in output
    assert "BROKEN" not in output
    assert marked(mark) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_leaves_no_process_behind(stop_signal: signal.Signals) -> None:
    """Interrupted while servers and worker run, the demo ends them all."""
    mark = uuid4().hex
    demo = start_demo(mark)
    assert demo.stdout is not None
    output = demo.stdout

    def until_the_worker_starts() -> None:
        for line in output:
            if "scoring worker" in line:
                return

    await asyncio.to_thread(until_the_worker_starts)
    await eventually(lambda: len(marked(mark)) > 3)
    demo.send_signal(stop_signal)

    await asyncio.to_thread(output.read)
    output.close()
    assert await asyncio.to_thread(demo.wait, 60) == 130
    await eventually(lambda: marked(mark) == [])
