"""The model server as the run sees it: a process to start, and orders to give."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from demo.servers import free_port
from tests.chaos import processes

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from pathlib import Path

# A score is committed within milliseconds of its call, unless PostgreSQL is away.
COMMIT_SECONDS = 2.0


class Provider:
    """Starts the model server and talks to it, past the proxies.

    Args:
        folder: Where ledger and log go.
        environment: Its variables.
        seed: Of the calls' durations.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], seed: int) -> None:
        self._environment = environment
        self._log = folder / "model.log"
        self._seed = seed
        self._process: Process | None = None
        self.ledger = folder / "calls.jsonl"
        self.port = free_port()

    async def open(self) -> None:
        """Start it, and return when it listens."""
        words = ("--port", str(self.port), "--ledger", str(self.ledger), "--seed", str(self._seed))
        self._process = await processes.start(
            ("-m", "tests.chaos.model", *words), self._environment, self._log
        )
        while True:
            try:
                await self._ask("/held", {})
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return

    async def close(self) -> None:
        """End it at once."""
        if self._process is not None:
            await processes.kill(self._process)

    async def behave(self, mode: str) -> None:
        """Have all calls end as one of the model server's modes says."""
        await self._ask("/mode", {"mode": mode})

    async def heal(self, poison: str) -> None:
        """Have a kind of poisoned answers scored like any other."""
        await self._ask("/heal", {"poison": poison})

    async def in_calls(self, pid: int) -> int:
        """How many calls of a worker are open."""
        return len((await self._ask("/held", {"pid": pid}))["open"])

    async def held_by(self, pid: int) -> list[int]:
        """The responses that a worker has in its hands: with the model, or not committed yet."""
        held = await self._ask("/held", {"pid": pid, "since": time.time() - COMMIT_SECONDS})
        return [*held["open"], *held["ended"]]

    async def serves(self, pid: int, *, since: float) -> bool:
        """Whether a worker has asked and got a full reply since then."""
        return bool((await self._ask("/held", {"pid": pid, "since": since}))["served"])

    async def _ask(self, path: str, order: Mapping[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            body = json.dumps(order).encode()
            writer.write(f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
            answer: dict[str, Any] = json.loads(await reader.readexactly(length))
            return answer
        finally:
            writer.transport.abort()
