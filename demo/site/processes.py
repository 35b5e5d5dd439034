"""Processes to break: stop and start the worker and the Redis-compatible server while the page is open.

Only of the demo. The processes are really killed, as a crash would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from demo.worker_process import start_worker, stop_worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

    from demo.servers import Server


class Breakable(Protocol):
    """A process that may be killed and started again."""

    name: str

    @property
    def pid(self) -> int | None:
        """Its process id, or None while it does not run."""

    def start(self) -> None:
        """Start it, unless it runs."""

    def kill(self) -> None:
        """End it with SIGKILL, unless it is gone."""


class BreakableServer:
    """One of the embedded servers."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self._server = server

    @property
    def pid(self) -> int | None:
        """Its process id, or None while it does not run."""
        process = self._server.process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.pid is None:
            self._server.start()

    def kill(self) -> None:
        """End it with SIGKILL, unless it is gone."""
        self._server.kill()


class BreakableWorker:
    """A worker as a process of its own, from the start of the ``with`` block until its end."""

    name = "worker"

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell it to stop, as an operator would.

        Raises:
            WorkerFailedError: It did not exit with 0.
        """
        if self._process is not None and self._process.poll() is None:
            stop_worker(self._process, self._log)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        if self._process is None:
            raise RuntimeError("The worker was not started.")
        return self._process

    @property
    def pid(self) -> int | None:
        """Its process id, or None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.pid is None:
            self._process = start_worker(self._environment, self._log)

    def kill(self) -> None:
        """End it with SIGKILL, unless it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
