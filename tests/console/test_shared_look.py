from __future__ import annotations

import asyncio

import pytest

from worker.http.shared_look import SharedLook


class Looking:
    """A look that ends when it is told to."""

    def __init__(self) -> None:
        self.looks = 0
        self.may_end = asyncio.Event()
        self.fails = False

    async def __call__(self) -> int:
        self.looks += 1
        await self.may_end.wait()
        if self.fails:
            raise OSError
        return self.looks


async def test_who_asks_at_the_same_time_gets_the_same() -> None:
    """One look for a hundred, also when the one who asked first goes away in the middle of it."""
    looking = Looking()
    shared = SharedLook(looking, keep_seconds=600)
    first = asyncio.create_task(shared.get())
    others = [asyncio.create_task(shared.get()) for _ in range(100)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    looking.may_end.set()

    assert await asyncio.gather(*others) == [1] * 100
    assert await shared.get() == 1
    assert looking.looks == 1


async def test_what_is_too_old_is_looked_at_anew() -> None:
    """And so is what somebody has just changed."""
    looking = Looking()
    looking.may_end.set()
    stale, kept = SharedLook(looking, keep_seconds=-1), SharedLook(looking, keep_seconds=600)

    assert [await stale.get(), await stale.get()] == [1, 2]
    assert [await kept.get(), await kept.get()] == [3, 3]
    kept.forget()
    assert await kept.get() == 4


async def test_a_look_that_began_before_a_change_does_not_count_after_it() -> None:
    """Whoever has acted sees what came of it, though a look was under way meanwhile."""
    looking = Looking()
    shared = SharedLook(looking, keep_seconds=600)
    early = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    shared.forget()
    late = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    looking.may_end.set()

    assert await early is not None
    assert await late == 2


async def test_a_failure_is_told_and_not_kept() -> None:
    """The next one looks again."""
    looking = Looking()
    looking.may_end.set()
    looking.fails = True
    shared = SharedLook(looking, keep_seconds=600)
    with pytest.raises(OSError, match=r"^$"):
        await shared.get()
    looking.fails = False

    assert await shared.get() == 2


async def test_a_look_under_way_is_ended_with_the_port() -> None:
    """Nothing goes on after the end."""
    shared = SharedLook(Looking(), keep_seconds=600)
    asked = asyncio.create_task(shared.get())
    await asyncio.sleep(0)

    await shared.close()

    with pytest.raises(asyncio.CancelledError):
        await asked
    await shared.close()
