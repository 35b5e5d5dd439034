"""Child processes of a run: all of them end with it, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import TYPE_CHECKING

from demo.servers import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 20.0


async def start(
    command: tuple[str, ...], environment: Mapping[str, str], log: Path, *, orders: bool = False
) -> Process:
    """Start a program of this checkout.

    Args:
        command: What Python is given.
        environment: All its variables.
        log: Where its output is appended.
        orders: Whether its standard input is ours to write to.

    Returns:
        The process.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            cwd=ROOT,
            env=dict(environment),
            stdin=PIPE if orders else DEVNULL,
            stdout=output,
            stderr=output,
            # SIGKILL, because one that is stopped just then would never hear of anything milder.
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )


async def kill(process: Process) -> None:
    """End a process at once, stopped or not."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def ended(process: Process, *, patience_seconds: float = STOP_SECONDS) -> int:
    """Wait for a process that was told to end; kill it where it does not.

    Returns:
        Its exit status, negative where a signal ended it.
    """
    try:
        return await asyncio.wait_for(process.wait(), patience_seconds)
    except TimeoutError:
        await kill(process)
        return await process.wait()


def children(parent: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name may contain anything; state and parent come after it.
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found
