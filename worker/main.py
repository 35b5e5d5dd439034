"""The worker process, as ``scoring worker`` and as ``arq worker.main.WorkerSettings``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from arq.connections import RedisSettings

from producers.sentinel import is_sentinel_url, parse_sentinel_url
from worker.arq_loop import ArqLoop, connect_arq
from worker.arq_worker import arq_options
from worker.ending import end
from worker.errors import WorkerBrokenError
from worker.runtime import Runtime
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.scorers.protocol import Scorer

logger = logging.getLogger(__name__)


async def run_worker(settings: ScoringSettings, *, scorer: Scorer | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT; a second signal ends the grace time.

    Args:
        settings: What ops set.
        scorer: In place of the one that the settings name, for tests and benchmarks.

    Returns:
        How many scorers still run although they were cancelled; everything else is over.

    Raises:
        InvalidSettingsError: The scorer cannot be made from the settings.
        StorageError: PostgreSQL is away, refuses the login or is not migrated.
        WorkerBrokenError: A loop ended by itself; everything was handed back.
    """
    runtime = Runtime(settings, scorer=scorer)
    stop = asyncio.Event()
    failed = asyncio.Event()

    def stop_or_hurry() -> None:
        if stop.is_set():
            runtime.hurry.set()
        stop.set()

    def fail() -> None:
        failed.set()
        runtime.hurry.set()
        stop.set()

    def polling_ended(_: asyncio.Task[None]) -> None:
        # Without it the worker would look alive, sweep, and never read what it rings for.
        if not stop.is_set():
            logger.critical("The arq loop has ended; the worker stops.")
            fail()

    runtime.on_failure = fail
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop_or_hurry)
    try:
        await _run(runtime, settings, stop, polling_ended)
    finally:
        # Whoever signals again, to a process that does not end, shall end it.
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signal_number)
    if failed.is_set():
        raise WorkerBrokenError
    return runtime.pool.stuck


def run_process(settings: ScoringSettings) -> None:
    """Run a worker as this process; arguments and errors as :func:`run_worker`.

    A scorer that ignores its cancellation cannot keep the process alive: its answer was handed back.
    """
    with asyncio.Runner() as runner:
        try:
            stuck = runner.run(run_worker(settings))
        except WorkerBrokenError as exc:
            logger.critical(str(exc))
            logging.shutdown()
            os._exit(exc.exit_status)
        if stuck:
            # Closing the event loop would wait for them, for ever.
            logger.warning(
                "Scorers ignore that they were cancelled; the process ends without them.",
                extra={"scorers": stuck},
            )
            logging.shutdown()
            os._exit(0)


async def _run(
    runtime: Runtime,
    settings: ScoringSettings,
    stop: asyncio.Event,
    polling_ended: Callable[[asyncio.Task[None]], None],
) -> None:
    try:
        await runtime.start()
    except BaseException:
        await runtime.close()
        raise
    polling = asyncio.create_task(ArqLoop(runtime, settings).run(), name="arq")
    polling.add_done_callback(polling_ended)
    logger.info(
        "The worker is ready.", extra={"slots": settings.slots, "worker_id": str(runtime.heartbeat.worker_id)}
    )
    await stop.wait()
    logger.info("The worker stops.", extra={"grace_seconds": settings.grace_seconds})
    await asyncio.gather(runtime.stop(), end([polling]), return_exceptions=True)


async def _start(ctx: dict[str, Any]) -> None:
    runtime = ctx["runtime"] = Runtime(ScoringSettings.from_environment())
    # arq stops at this signal, as it would for an operator.
    runtime.on_failure = partial(signal.raise_signal, signal.SIGTERM)
    await runtime.start()


async def _stop(ctx: dict[str, Any]) -> None:
    if "runtime" in ctx:
        await ctx["runtime"].stop()


def _redis_options(settings: ScoringSettings) -> dict[str, Any]:
    """How arq reaches Redis: for its worker, and (``redis_settings`` alone) for ``arq --check``."""
    url = settings.redis_url.get_secret_value()
    if not is_sentinel_url(url):
        return {"redis_settings": RedisSettings.from_dsn(url)}
    # arq's own settings know neither a login for the sentinels nor any time-out: its worker gets our client.
    address = parse_sentinel_url(url)
    return {
        "redis_settings": RedisSettings(
            host=list(address.hosts),
            sentinel=True,
            sentinel_master=address.service,
            database=address.options["db"],
            username=address.options.get("username"),
            password=address.options.get("password"),
            ssl=address.options.get("ssl", False),
        ),
        "redis_pool": connect_arq(settings),
    }


def __getattr__(name: str) -> Any:
    """Make ``WorkerSettings`` when arq asks for it, and not at import: it reads the environment."""
    if name != "WorkerSettings":
        raise AttributeError(name)
    settings = ScoringSettings.from_environment()
    options = arq_options() | {
        **_redis_options(settings),
        "poll_delay": settings.poll_seconds,
        "on_startup": _start,
        "on_shutdown": _stop,
    }
    return type("WorkerSettings", (), options)
