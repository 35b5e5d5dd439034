"""Worker processes as ops run them: the installed command, JSON logs in a file, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo.servers import die_with_parent
from demo.worker_process import SCORING, tail
from tests.databases import ROOT

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from pathlib import Path

# An end that takes longer is a hang: never reached by a test that passes, however slow the machine.
END_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerProcess:
    """One ``scoring worker``."""

    process: Process
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it logged so far, one mapping a line."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def logged(self, *words: str) -> bool:
        """Whether one line of its log has all of these words."""
        return any(all(word in record["event"] for word in words) for record in self.records)

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def killed(self) -> None:
        """End it so, and wait until it is gone."""
        self.kill()
        await self.process.wait()

    def told_to_stop(self) -> None:
        """Send what an orchestrator sends."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> dict[str, Any]:
        """Wait for the end of a worker that was told to stop.

        Returns:
            Its last line: what it did with how many answers.
        """
        async with asyncio.timeout(END_PATIENCE_SECONDS):
            exit_status = await self.process.wait()
        assert exit_status == 0, tail(self.log, 40)
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
        return self.records[-1]

    async def stopped(self) -> dict[str, Any]:
        """Tell it to stop, and wait for its end; returns as :meth:`ended`."""
        self.told_to_stop()
        return await self.ended()


async def start_process(
    environment: Mapping[str, str], log: Path, *, wrapper: tuple[str, ...] = ()
) -> WorkerProcess:
    """Start ``scoring worker``; whoever starts it ends it.

    Args:
        environment: Its variables, beside those of this process.
        log: Where its output goes.
        wrapper: A command that runs it.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(*wrapper, *SCORING, "worker"),
            cwd=ROOT,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )
    return WorkerProcess(process, log)
