"""A real worker, as a process of its own, with its log in a file."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from demo.servers import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STOP_TIMEOUT_SECONDS = 40

# The installed command, whatever the PATH is.
SCORING = (sys.executable, "-c", "from worker.cli import main; main()")


class WorkerFailedError(RuntimeError):
    """The worker ended by itself, or not in peace; the message ends with its log."""


def start_worker(environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``scoring worker``.

    Call it in the main thread: the kernel ends the worker when the thread that started it is gone.

    Args:
        environment: All its variables.
        log: Where its output goes, after what is there already.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*SCORING, "worker"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C reaches the whole foreground group; the worker is told to stop by us, in order.
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509
        )


def stop_worker(process: subprocess.Popen[bytes], log: Path) -> None:
    """Stop a worker as an operator would.

    Raises:
        WorkerFailedError: It did not exit with 0 when it was told to stop.
    """
    process.send_signal(signal.SIGTERM)
    try:
        exit_status = process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        exit_status = process.wait()
    if exit_status:
        raise WorkerFailedError(f"The worker exited with {exit_status}:\n{tail(log)}")


@contextmanager
def worker_process(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``scoring worker`` until the block ends, then stop it as an operator would.

    Args:
        environment: All its variables.
        log: Where its output goes.

    Yields:
        The process.

    Raises:
        WorkerFailedError: It did not exit with 0 when it was told to stop.
    """
    process = start_worker(environment, log)
    try:
        yield process
    finally:
        stop_worker(process, log)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
