"""Load: students who submit all the time, and a web app that repeats what PostgreSQL could not take."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from storage.errors import StorageUnavailableError
from tests.factories import submission
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from producers import Producer

STUDENTS = 8
# Between two answers of one student.
PAUSE_SECONDS = 0.02
# Before an answer that was refused is submitted again.
REFUSED_PAUSE_SECONDS = 0.02


class Students:
    """Submit through one producer until they are told to stop.

    An answer that is refused for want of PostgreSQL is submitted again under its key until it is stored; every other
    refusal fails the test.
    """

    def __init__(self, producer: Producer, pause_seconds: float, changes: dict[str, Any]) -> None:
        self._producer = producer
        self._pause_seconds = pause_seconds
        self._changes = changes
        self.stored: dict[UUID, int] = {}
        self.refusals = 0
        self.stop = asyncio.Event()

    @property
    def response_ids(self) -> list[int]:
        """What was acknowledged."""
        return list(self.stored.values())

    async def stored_again(self, answers: int) -> None:
        """Wait until more than so many answers were stored from now on."""
        known = len(self.stored)
        await eventually(lambda: len(self.stored) > known + answers)

    async def refused_again(self) -> None:
        """Wait until an answer was refused from now on."""
        known = self.refusals
        await eventually(lambda: self.refusals > known)

    async def run(self) -> None:
        """One student."""
        while not self.stop.is_set():
            key = uuid4()
            row = await self._submit(key)
            assert row["submission_key"] == key
            self.stored[key] = row["response_id"]
            await asyncio.sleep(self._pause_seconds)

    async def _submit(self, key: UUID) -> dict[str, Any]:
        while True:
            try:
                return await self._producer.submit(**submission(submission_key=key, **self._changes))
            except StorageUnavailableError:
                self.refusals += 1
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)


@asynccontextmanager
async def submitting(
    producer: Producer, students: int = STUDENTS, *, pause_seconds: float = PAUSE_SECONDS, **changes: Any
) -> AsyncIterator[Students]:
    """Let students submit while the block lasts; afterwards everything they submitted is stored.

    Args:
        producer: Through which.
        students: How many at the same time.
        pause_seconds: Between two answers of one student.
        changes: What their submissions have in place of the usual.
    """
    load = Students(producer, pause_seconds, changes)
    async with asyncio.TaskGroup() as group:
        for _ in range(students):
            group.create_task(load.run())
        try:
            yield load
        finally:
            load.stop.set()
