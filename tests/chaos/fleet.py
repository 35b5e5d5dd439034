"""The workers: real processes, each behind proxies of its own, started anew when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from demo.worker_process import SCORING
from tests.chaos import processes
from tests.chaos.terms import WORKERS, worker_settings
from tests.producers.proxy import Proxy

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Mapping
    from pathlib import Path

# A supervisor is not in a hurry.
RESTART_SECONDS = 0.3
TIDY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """A worker process that ended."""

    pid: int
    at: float
    status: int
    # Whether the run ended it; else it ended by itself.
    ordered: bool

    @property
    def killed(self) -> bool:
        """Whether nothing of it could be saved."""
        return self.status == -signal.SIGKILL


@dataclass(slots=True)
class Place:
    """A worker's place in the fleet: the proxies stay, the processes behind them come and go."""

    number: int
    postgres: Proxy
    redis: Proxy
    model: Proxy
    process: Process | None = None
    log: Path | None = None
    ordered: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_ready(self) -> bool:
        """Whether the process that runs now has said that it works."""
        # A worker that just started has no more to say than this.
        return self.log is not None and b"The worker is ready" in self.log.read_bytes()[:20_000]


class Fleet:
    """All workers of a run, and the supervisor that starts them anew.

    Args:
        folder: Where logs go.
        environment: What every worker has in common.
        ports: Of PostgreSQL, Redis and the model server.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], ports: tuple[int, int, int]) -> None:
        self._folder = folder
        self._environment = environment
        self._ports = ports
        self._stack = AsyncExitStack()
        self._supervisors: list[asyncio.Task[None]] = []
        self.places: list[Place] = []
        self.endings: list[Ending] = []
        self.on_ending: Callable[[Ending], None] = lambda _: None

    @property
    def logs(self) -> list[Path]:
        """What workers logged, one file a process."""
        return sorted(self._folder.glob("worker-*.log"))

    async def open(self) -> None:
        """Start proxies and workers, and return when all workers are ready."""
        for number in range(WORKERS):
            proxies = [await self._stack.enter_async_context(Proxy(port)) for port in self._ports]
            self.places.append(Place(number, proxies[0], proxies[1], proxies[2]))
        self._supervisors = [asyncio.create_task(self._supervise(place)) for place in self.places]
        self._supervisors.append(asyncio.create_task(self._tidy()))
        for place in self.places:
            await self.ready(place)

    async def close(self) -> None:
        """End everything at once."""
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for place in self.places:
            if place.process is not None:
                await processes.kill(place.process)
        await self._stack.aclose()

    async def stop(self) -> list[str]:
        """Tell all workers to stop, for good.

        Returns:
            What went wrong.
        """
        for task in self._supervisors:
            task.cancel()
        running = [place.process for place in self.places if place.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        statuses = [await processes.ended(process) for process in running]
        return [f"a worker that was told to stop exited with {status}" for status in statuses if status]

    async def ready(self, place: Place, *, after: int | None = None) -> None:
        """Wait until a worker is ready, where given another process than ``after``."""
        while place.process is None or place.pid == after or not place.is_ready:  # noqa: ASYNC110 - see below
            await asyncio.sleep(0.05)  # a log and a process: nothing that could wake us

    def signal(self, place: Place, number: signal.Signals) -> int:
        """Send a signal to a worker; one that ends it is an order.

        Returns:
            The process that it went to.
        """
        if number in {signal.SIGKILL, signal.SIGTERM}:
            place.ordered.add(place.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(place.pid, number)
        return place.pid

    async def _supervise(self, place: Place) -> None:
        environment = dict(self._environment) | worker_settings()
        environment |= {
            "SCORING_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{place.postgres.port}/postgres",
            "SCORING_REDIS_URL": f"redis://127.0.0.1:{place.redis.port}/0",
            "SCORING_LLM_BASE_URL": f"http://127.0.0.1:{place.model.port}",
        }
        generation = 0
        while True:
            generation += 1
            log = self._folder / f"worker-{place.number}-{generation}.log"
            place.process = await processes.start((*SCORING[1:], "worker"), environment, log)
            place.log = log
            status = await place.process.wait()
            ending = Ending(place.pid, time.time(), status, place.pid in place.ordered)
            self.endings.append(ending)
            self.on_ending(ending)
            await asyncio.sleep(RESTART_SECONDS)

    async def _tidy(self) -> None:
        """Forget what went through the proxies: nobody here asks for it, and it adds up."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            for place in self.places:
                for proxy in (place.postgres, place.redis, place.model):
                    proxy.seen.clear()
