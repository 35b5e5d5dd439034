"""Two transactions at the same time: one may wait for the other, and goes on when that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.errors import StorageUnavailableError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Handoff, Picture, Score

PATIENCE_SECONDS = 10


@dataclass(slots=True)
class Replay:
    """What a transaction that commits should have made of the rows, from what its statements reported."""

    before: Picture
    after: Picture
    handoffs: dict[int, Handoff]
    scores: set[Score] = field(default_factory=set)
    anonymous: set[int] = field(default_factory=set)
    moved: int = 0
    published: bool = False
    """A publication does not say how many it revived."""
    revived: int = 0
    reported_revived: int = 0
    erased: set[int] = field(default_factory=set)


Effect = Callable[[Replay], None]
Action = Callable[["AsyncConnection"], Awaitable[Effect]]


@dataclass(slots=True)
class Side:
    """One of the two: its connection, and what its transaction has reported so far."""

    name: str
    conn: AsyncConnection = field(repr=False)
    pid: int = field(repr=False)
    effects: list[Effect] = field(default_factory=list, repr=False)
    begun: bool = False
    task: asyncio.Task[Effect] | None = field(default=None, repr=False)

    @property
    def waits(self) -> bool:
        """Whether it waits for the other one."""
        return self.task is not None

    async def attempt(self, action: Action, *, observer: Any) -> str:
        """Run a statement until it is done or waits.

        Returns:
            ``done``, ``waits``, or what refused it and lost the transaction.
        """
        self.begun = True
        self.task = asyncio.ensure_future(action(self.conn))
        return await self.go_on(observer=observer)

    async def go_on(self, *, observer: Any) -> str:
        """See what became of the statement that waits; as :meth:`attempt`."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.task.done():
                if await observer.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", self.pid):
                    return "waits"
        task, self.task = self.task, None
        return await self._take(task)

    async def attempt_without_waiting(self, action: Action, *, observer: Any) -> str:
        """Run a statement unless it would have to wait; then nothing of it remains.

        Returns:
            ``done``, ``skipped``, or what refused it and lost the transaction.
        """
        self.begun = True
        savepoint = await self.conn.begin_nested()
        outcome = await self.attempt(action, observer=observer)
        if outcome == "waits":
            # The other one waits for us, so this wait has no end: the cancellation meets nothing else.
            assert self.task is not None
            await observer.fetchval("SELECT pg_cancel_backend($1)", self.pid)
            await asyncio.wait([self.task], timeout=PATIENCE_SECONDS)
            assert isinstance(self.task.exception(), StorageUnavailableError)
            self.task = None
            await savepoint.rollback()
            return "skipped"
        if outcome == "done":
            await savepoint.commit()
        return outcome

    async def _take(self, task: asyncio.Task[Effect]) -> str:
        try:
            self.effects.append(await task)
        except Exception as exc:  # noqa: BLE001 - as above
            await self.rollback()
            return type(exc).__name__
        return "done"

    async def commit(self) -> list[Effect]:
        """Commit, and forget what was reported."""
        await self.conn.commit()
        effects, self.effects, self.begun = self.effects, [], False
        return effects

    async def rollback(self) -> None:
        """Undo everything."""
        await self.conn.rollback()
        self.effects, self.begun = [], False
