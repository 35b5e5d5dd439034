"""Ending tasks for certain, and finishing what must be finished."""

from __future__ import annotations

import asyncio

import pytest

from worker.ending import end, undisturbed


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    """One that swallows its first cancellation is cancelled again."""
    swallowed = asyncio.Event()

    async def careless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(careless())
    await asyncio.sleep(0)

    await end([task], patience_seconds=0.01)

    assert swallowed.is_set()
    assert task.cancelled()


async def test_cleaning_up_survives_any_number_of_cancellations() -> None:
    """Whoever is cancelled while it cleans up cleans up, and is cancelled afterwards."""
    release = asyncio.Event()
    steps: list[str] = []

    async def clean_up() -> None:
        await release.wait()
        steps.append("cleaned up")

    task = asyncio.create_task(undisturbed(clean_up()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert steps == []
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleaned up"]


async def test_an_error_while_cleaning_up_is_raised() -> None:
    """What the work raises reaches whoever waits for it."""

    async def broken() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await undisturbed(broken())
