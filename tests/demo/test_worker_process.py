"""A worker that is told to stop, whenever that is."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from demo.worker_process import READY, WorkerFailedError, start_worker, stop_worker

if TYPE_CHECKING:
    from pathlib import Path


def test_a_worker_may_be_told_before_it_listens(tmp_path: Path) -> None:
    """Python is still starting then, and dies of the signal: nothing was taken, and nothing failed."""
    log = tmp_path / "worker.log"
    worker = start_worker({}, log)

    stop_worker(worker, log)

    assert worker.poll() is not None


def test_a_worker_that_was_ready_must_end_in_peace(tmp_path: Path) -> None:
    """Whoever dies of the signal then has handed nothing back."""
    log = tmp_path / "worker.log"
    log.write_text(f"INFO worker.main {READY}\n")
    deaf = subprocess.Popen(["sleep", "60"])

    with pytest.raises(WorkerFailedError, match="-15"):
        stop_worker(deaf, log)
