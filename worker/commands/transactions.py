"""A command's own engine, and transactions that are tried again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from producers.settings import DatabaseSettings
from storage.errors import StorageUnavailableError
from storage.translation import translated
from worker.commands.stopping import InterruptedCommandError, pause, stoppable
from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")

# A deadlock's victim goes on at once; a server that restarts has half a minute.
_PAUSES_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class HaltedCommandError(WorkerError):
    """PostgreSQL stayed away; the message says how to go on."""


@asynccontextmanager
async def own_engine() -> AsyncIterator[AsyncEngine]:
    """An engine of the command's own."""
    engine = DatabaseSettings.from_environment().engine()
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def working() -> AsyncIterator[tuple[AsyncEngine, asyncio.Event]]:
    """An engine of the command's own, and the event that asks for its end."""
    async with own_engine() as engine, stoppable() as stop:
        yield engine, stop


async def persistently(
    engine: AsyncEngine,
    stop: asyncio.Event,
    work: Callable[[AsyncConnection], Awaitable[T]],
    *,
    how_to_go_on: str,
) -> T:
    """Do something in a transaction, and again where PostgreSQL was away or somebody else was quicker.

    Args:
        engine: Where.
        stop: Asks for the end; heard while PostgreSQL is away.
        work: What; must bear to be done again after a commit whose acknowledgement was lost.
        how_to_go_on: What a person is told, should it not get through.

    Raises:
        HaltedCommandError: It did not get through within half a minute.
        InterruptedCommandError: The end was asked for while it did not get through.
    """
    for seconds in (*_PAUSES_SECONDS, None):
        try:
            with translated():
                async with engine.begin() as conn:
                    return await work(conn)
        except StorageUnavailableError as exc:
            if seconds is None:
                raise HaltedCommandError(f"{exc} {how_to_go_on}") from exc
            await pause(stop, seconds)
            if stop.is_set():
                raise InterruptedCommandError(f"Stopped. {how_to_go_on}") from exc
    raise AssertionError  # the last round returns or raises
