"""Runs the peers of ``benchmarks.peers``, each in processes of its own, on servers of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import INTERPRETERS
from benchmarks.peers.environment import ROOT, python_of
from demo.servers import embedded_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from benchmarks.peers.settings import StackName

BY_HAND = ("by_hand", "by_hand_batched")
QUEUES = tuple(name for name in INTERPRETERS if name not in BY_HAND)
TITLES = {
    "arq": "arq, as it comes",
    "arq_tuned": "arq, tuned",
    "saq": "SAQ",
    "taskiq": "taskiq, Redis streams",
    "streaq": "streaq",
    "dramatiq": "dramatiq",
    "procrastinate": "Procrastinate",
    "pgqueuer": "PgQueuer",
    "by_hand": "both inserts by hand, two commits, no queue",
    "by_hand_batched": "both inserts by hand, 500 rows a commit",
}
TIMEOUT_SECONDS = 180
READY_SECONDS = 30


@dataclass(frozen=True)
class Contender:
    """A peer whose worker runs."""

    name: str
    environment: Mapping[str, str]

    async def run(self, action: str, answers: int) -> dict[str, Any]:
        """Run its producer: ``throughput``, ``submit`` or ``pickup``, with so many answers; what it printed."""
        process = await asyncio.create_subprocess_exec(
            *_command(self.name, action, str(answers)),
            env=dict(self.environment),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, f"{self.name} {action}")
        printed: dict[str, Any] = json.loads(output.splitlines()[-1])
        return printed


def _command(name: str, *words: str) -> tuple[str, ...]:
    return (str(python_of(name)), "-m", "benchmarks.peers", name, *words)


@asynccontextmanager
async def contender(
    name: str, *, scorer_seconds: float = 0.0, slots: int | None = None, stack: StackName = "sqlalchemy"
) -> AsyncIterator[Contender]:
    """Start servers and a peer's worker.

    Args:
        name: One of ``INTERPRETERS``.
        scorer_seconds: How long its job takes before it stores the score.
        slots: Jobs at the same time; by default as the peer recommends.
        stack: How it reaches PostgreSQL, see ``benchmarks.peers.stacks``.
    """
    with embedded_servers() as servers, tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "BENCH_DATABASE_URL": servers.database_url,
            "BENCH_REDIS_URL": servers.redis_url,
            "BENCH_SCORER_SECONDS": str(scorer_seconds),
            "BENCH_STARTS": str(Path(folder) / "starts"),
            "BENCH_STACK": stack,
            **({"BENCH_SLOTS": str(slots)} if slots else {}),
        }
        subprocess.run(_command(name, "prepare"), env=environment, cwd=ROOT, check=True)  # noqa: ASYNC221
        if name in BY_HAND:
            yield Contender(name, environment)
            return
        worker = await asyncio.create_subprocess_exec(
            *_command(name, "worker"), env=environment, cwd=ROOT, stdout=subprocess.PIPE
        )
        try:
            if worker.stdout is None or not await asyncio.wait_for(worker.stdout.readline(), READY_SECONDS):
                raise subprocess.CalledProcessError(1, f"{name} worker")
            yield Contender(name, environment)
        finally:
            if worker.returncode is None:
                worker.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(worker.wait(), READY_SECONDS)
                except TimeoutError:
                    worker.kill()
                    await worker.wait()
