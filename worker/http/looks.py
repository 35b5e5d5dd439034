"""What the console reads: a few looks at PostgreSQL, each shared by all who watch, each bounded."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from storage.activity import last_hour
from storage.dead import list_dead
from storage.dead_kinds import count_of_kind, dead_kinds, list_dead_of_kind
from storage.errors import StorageError, StorageUnavailableError
from storage.reading import reading
from storage.statistics import handoff_statistics
from storage.translation import translated
from storage.workers import list_workers
from worker.http.shared_look import SharedLook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# A page that is refreshed every two seconds is as fresh as that; the hour changes slowly and costs more.
STATUS_KEEP_SECONDS, DEAD_KEEP_SECONDS, HOUR_KEEP_SECONDS = 1.5, 3.0, 10.0
# PostgreSQL ends what takes longer, and the page says so.
STATEMENT_SECONDS = 2.0
# Whoever waits longer for those who look before him is told so: while PostgreSQL is slow, pages that are asked for again
# and again would make a queue without an end, which outlives those who asked. Longer than all looks of a page together
# while PostgreSQL is away.
TURN_SECONDS = 10.0
# Dead answers on the first page, and on a page of their own.
FIRST_DEAD, PAGE = 10, 50


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look found.

    ``value`` is what was seen the last time that it worked, None where it never did; ``at`` is when; ``problem`` says
    why it does not work now.
    """

    value: dict[str, Any] | None
    at: datetime | None
    problem: str | None = None


class Looks:
    """Reads what the console shows, with the worker's own login.

    Args:
        engine: Whose connections are used; not those that score.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._last: dict[str, Seen] = {}
        # One after the other, on one connection: the other one is there for probes.
        self._turn = asyncio.Lock()
        self.status = self._shared("status", _status, STATUS_KEEP_SECONDS)
        self.dead = self._shared("dead", _dead, DEAD_KEEP_SECONDS)
        self.hour = self._shared("hour", last_hour, HOUR_KEEP_SECONDS)

    def every(self) -> list[SharedLook[Seen]]:
        """All of them."""
        return [self.status, self.dead, self.hour]

    def changed(self) -> None:
        """Somebody has just acted: what was seen before is not true any more."""
        self.status.forget()
        self.dead.forget()

    async def page_of_dead(self, *, kind: str | None, after_handoff_id: int) -> list[dict[str, Any]]:
        """Read one page of dead answers, of one kind or of all.

        Raises:
            StorageError: PostgreSQL is away, or takes too long.
        """
        with translated():
            async with self._reading() as conn:
                if kind is None:
                    return await list_dead(conn, after_handoff_id=after_handoff_id, limit=PAGE)
                return await list_dead_of_kind(conn, kind=kind, after_handoff_id=after_handoff_id, limit=PAGE)

    async def of_kind(self, kind: str, until_handoff_id: int) -> tuple[int, dict[str, Any] | None]:
        """Count the dead of one kind up to the last one that was seen, and read the oldest.

        Raises:
            StorageError: PostgreSQL is away, or takes too long.
        """
        with translated():
            async with self._reading() as conn:
                number = await count_of_kind(conn, kind=kind, until_handoff_id=until_handoff_id)
                oldest = await list_dead_of_kind(conn, kind=kind, limit=1) if number else []
        return number, next(iter(oldest), None)

    async def one_dead(self, response_id: int) -> dict[str, Any] | None:
        """Read what is known of one dead or dismissed answer; None where it is neither.

        Raises:
            StorageError: PostgreSQL is away, or takes too long.
        """
        with translated():
            async with self._reading() as conn:
                rows = await list_dead(conn, response_id=response_id, include_dismissed=True, limit=1)
        return rows[0] if rows else None

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise StorageUnavailableError("Too many look at the same time, or PostgreSQL is slow.") from None
        try:
            async with reading(self._engine, timeout_seconds=STATEMENT_SECONDS) as conn:
                yield conn
        finally:
            self._turn.release()

    def _shared(
        self, name: str, read: Callable[[AsyncConnection], Awaitable[dict[str, Any]]], keep_seconds: float
    ) -> SharedLook[Seen]:
        async def look() -> Seen:
            before = self._last.get(name, Seen(None, None))
            try:
                with translated():
                    async with self._reading() as conn:
                        seen = Seen(await read(conn), datetime.now(tz=UTC))
            except StorageError as exc:
                seen = Seen(before.value, before.at, str(exc))
            self._last[name] = seen
            return seen

        return SharedLook(look, keep_seconds=keep_seconds)


async def _status(conn: AsyncConnection) -> dict[str, Any]:
    return await handoff_statistics(conn) | {"workers": await list_workers(conn)}


async def _dead(conn: AsyncConnection) -> dict[str, Any]:
    return {"kinds": await dead_kinds(conn), "oldest": await list_dead(conn, limit=FIRST_DEAD)}
