"""Processes of our own, started by the fork server and told apart from all others."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.databases import ROOT

if TYPE_CHECKING:
    from asyncio.subprocess import Process as Subprocess
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

# A fresh interpreter that imports everything, on a machine with better things to do.
START_SECONDS = 60.0


class Process:
    """One forked process."""

    def __init__(self, send: Callable[[dict[str, Any]], None], number: int) -> None:
        self._send = send
        self._number = number
        self.pid = 0
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, signal_number: signal.Signals) -> None:
        """Send it a signal; nothing happens where it has ended."""
        self._send({"process": self._number, "signal": signal_number})

    def kill(self) -> None:
        """End it as an out-of-memory killer would."""
        self.signal(signal.SIGKILL)

    def heard(self, report: dict[str, int]) -> None:
        """Note what the fork server reports about it."""
        self.pid = report.get("pid", self.pid)
        if "exit_status" in report:
            self.ended.set_result(report["exit_status"])


class Forks:
    """The fork server, from outside."""

    def __init__(self, server: Subprocess) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._processes: dict[int, Process] = {}

    def start(self, role: str, **given: Any) -> Process:
        """Start a process; returns at once.

        Args:
            role: One of ``tests.crashes.roles.ROLES``.
            given: Its arguments, and ``log``, the file for its output.
        """
        number = next(self._numbers)
        process = self._processes[number] = Process(self._send, number)
        self._send({"process": number, "role": role, "given": given})
        return process

    async def listen(self) -> None:
        """Pass reports on until the fork server ends; then nothing lives any more that it had forked."""
        assert self._server.stdout is not None
        async for line in self._server.stdout:
            report = json.loads(line)
            self._processes[report["process"]].heard(report)
            if "exit_status" in report:
                del self._processes[report["process"]]

    def _send(self, request: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")


@asynccontextmanager
async def fork_server(log: Path) -> AsyncIterator[Forks]:
    """Run a fork server until the block ends.

    Args:
        log: Where its own errors go.

    Yields:
        What starts processes.
    """
    # Coverage's tracer would follow every child and double the time that this takes; none of them could report.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COV", "SCORING_"))
    }
    with log.open("wb") as errors:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.crashes.fork_server"),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    assert server.stdin is not None
    assert server.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        ready = await server.stdout.readline()
    assert ready, f"the fork server did not start, see {log}"
    forks = Forks(server)
    listening = asyncio.create_task(forks.listen())
    try:
        yield forks
    finally:
        server.stdin.close()
        await listening
        await server.wait()
