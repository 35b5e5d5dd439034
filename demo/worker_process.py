"""A real worker, as a process of its own, with its log in a file."""

from __future__ import annotations

import signal
import socket
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


# The worker's own default.
HTTP_PORT = 8422
# What a worker logs when it takes answers; from then on it ends in peace when it is told to.
READY = "The worker is ready."


class WorkerFailedError(RuntimeError):
    """The worker ended by itself, or not in peace; the message ends with its log."""


def start_worker(environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``scoring worker``.

    Call it in the main thread: the kernel ends the worker when the thread that started it is gone.

    Args:
        environment: All its variables; without ``SCORING_HTTP_PORT`` it opens no port.
        log: Where its output goes, after what is there already.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*SCORING, "worker"],
            env={"SCORING_HTTP_PORT": "0"} | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C reaches the whole foreground group; the worker is told to stop by us, in order.
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509
        )


def stop_worker(process: subprocess.Popen[bytes], log: Path) -> None:
    """Stop a worker as an operator would.

    Raises:
        WorkerFailedError: It did not exit with 0 when it was told to stop, though it had started.
    """
    process.send_signal(signal.SIGTERM)
    try:
        exit_status = process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        exit_status = process.wait()
    if exit_status == -signal.SIGTERM and READY not in log.read_text(errors="replace"):
        return  # told before it could listen; it has taken nothing
    if exit_status:
        raise WorkerFailedError(f"The worker exited with {exit_status}:\n{tail(log)}")


@contextmanager
def worker_process(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``scoring worker`` until the block ends, then stop it as an operator would.

    Args:
        environment: All its variables. The HTTP port is opened only where it is named: several of these may run at once.
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


def with_console(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Give a worker an HTTP port of its own: the one that is set, the usual one, or any that is free.

    Args:
        environment: All its variables.

    Returns:
        The variables with the port among them, and the address of its console.
    """
    port = int(environment.get("SCORING_HTTP_PORT") or 0) or _free_port()
    return dict(environment) | {"SCORING_HTTP_PORT": str(port)}, f"http://127.0.0.1:{port}/console"


def _free_port() -> int:
    for port in (HTTP_PORT, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise WorkerFailedError("This machine has no free port for the worker's console.")


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
