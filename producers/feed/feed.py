"""The feed of one process: one connection for all who listen, none while nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.errors import ProducerClosedError, TooManyListenersError
from producers.feed.listeners import Group, Listener, shown
from producers.feed.look import LineageChangedError, Looker, owner_of
from storage.errors import StorageError
from storage.feed import read_missed, read_requested_claims, read_states
from storage.translation import translated
from storage.validation import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from producers.feed.listeners import Cursor
    from producers.feed.look import Seen

logger = logging.getLogger(__name__)

# Owners that are told at one look what they have missed; a thousand who come back at once are told within a second,
# and nobody else waits for them.
TOLD_AT_ONCE = 100
# One look takes milliseconds. After so long its connection is given up, whatever time-outs the engine has.
LOOK_SECONDS = 10.0
# Who begins to listen is looked up at once, but together with those who come at the same moment.
GATHER_SECONDS = 0.02
MAX_PAUSE_SECONDS = 5.0
# From a millisecond it takes so many doublings to the longest pause.
MAX_DOUBLINGS = 13


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How the feed behaves.

    Args:
        look_seconds: From one look at the database to the next, seconds; also what an event may be late.
        newest: So many of the newest answers a new listener is told, beside all that are not scored.
        per_owner: Listeners of one owner.
        in_total: Listeners of this process.
    """

    look_seconds: float = 0.25
    newest: int = 50
    per_owner: int = 10
    in_total: int = 5_000


class Feed:
    """Tells listeners how their answers fare.

    It holds one connection of the engine while anybody listens. Behind PgBouncer in transaction mode that is one
    client, and a server connection for the milliseconds of a look. When PostgreSQL is away listeners wait; when it is
    back they are told what they missed.

    Args:
        engine: The web app's own; stays open.
        settings: See :class:`FeedSettings`.
    """

    def __init__(self, engine: AsyncEngine, settings: FeedSettings | None = None) -> None:
        self._engine = engine
        self._settings = settings or FeedSettings()
        self._groups: dict[Owner, Group] = {}
        self._listeners: set[Listener] = set()
        # Who is to be told what he has missed, in the order in which they came.
        self._waiting: dict[Listener, None] = {}
        self._called = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._failures = 0

    @property
    def is_blind(self) -> bool | None:
        """Whether it cannot look at the database just now; None while nobody listens."""
        return self._failures > 0 if self._listeners else None

    def listen(self, owner: Owner, cursor: Cursor | None = None) -> Listener:
        """Begin to listen; returns at once.

        Args:
            owner: Whose answers, as ``storage.validation.checked_owner`` gives it.
            cursor: Where the reader was interrupted; None: he is told how everything stands.

        Returns:
            The listener; give it back with :meth:`leave`.

        Raises:
            TooManyListenersError: This owner, or everybody together, has too many.
            ProducerClosedError: The feed was closed.
        """
        if self._closed:
            raise ProducerClosedError
        group = self._groups.get(owner)
        if group and len(group.listeners) >= self._settings.per_owner:
            raise TooManyListenersError(is_owners=True)
        if len(self._listeners) >= self._settings.in_total:
            raise TooManyListenersError(is_owners=False)
        listener = Listener(owner, cursor)
        self._groups.setdefault(owner, Group()).listeners.add(listener)
        self._listeners.add(listener)
        self._waiting[listener] = None
        self._called.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="assessment feed")
        return listener

    def leave(self, listener: Listener) -> None:
        """End listening. Leaving again does nothing."""
        self._listeners.discard(listener)
        self._waiting.pop(listener, None)
        group = self._groups.get(listener.owner)
        if group is not None:
            group.listeners.discard(listener)
            if not group.listeners:
                del self._groups[listener.owner]
        if not self._listeners:
            self._called.set()

    async def close(self) -> None:
        """End every listener and give the connection back."""
        self._closed = True
        for listener in self._listeners:
            listener.end()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while self._listeners:
            try:
                with translated():
                    await self._follow()
            except LineageChangedError:
                logger.info("The feed sees another database server.")
            except Exception as exc:  # noqa: BLE001 - a feed that ended would leave its streams silent for ever
                self._note_failure(exc)
                await asyncio.sleep(self._pause_seconds())
        # No await between the last look at who listens and this: who comes now starts another task.
        self._task = None

    def _pause_seconds(self) -> float:
        # An outage of hours must not count its pauses to a number that no float holds.
        doublings = min(self._failures, MAX_DOUBLINGS)
        return min(MAX_PAUSE_SECONDS, self._settings.look_seconds * 2.0**doublings)

    def _note_failure(self, exc: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            expected = isinstance(exc, (StorageError, TimeoutError))
            logger.warning(
                "The feed cannot look at the database, and tries again: %s",
                str(exc) if expected else type(exc).__name__,
                exc_info=None if expected else exc,
            )

    async def _follow(self) -> None:
        """Look again and again on one connection, until nobody listens."""
        async with self._engine.connect() as connected:
            try:
                conn = await connected.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                looker = Looker()
                self._start_again()
                while self._listeners:
                    self._called.clear()
                    async with asyncio.timeout(LOOK_SECONDS):
                        is_more = await self._look(conn, looker)
                    if self._failures:
                        logger.info("The feed sees the database again.")
                        self._failures = 0
                    await self._pause(is_more=is_more)
            except BaseException:
                # In whatever state it is, nobody else shall get it.
                await connected.invalidate()
                raise

    async def _pause(self, *, is_more: bool) -> None:
        if is_more or self._waiting:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(self._settings.look_seconds):
                await self._called.wait()
        except TimeoutError:
            return
        if self._listeners:
            await asyncio.sleep(min(GATHER_SECONDS, self._settings.look_seconds))

    def _start_again(self) -> None:
        """Everybody will be told what he missed since his own cursor."""
        for group in self._groups.values():
            group.watched.clear()
            group.claims.clear()
        for listener in self._listeners:
            self._miss(listener)

    def _miss(self, listener: Listener) -> None:
        listener.is_current = False
        self._waiting[listener] = None

    async def _look(self, conn: AsyncConnection, looker: Looker) -> bool:
        told = list(self._waiting)[:TOLD_AT_ONCE]
        known = {
            response_id: (owner, state)
            for owner, group in self._groups.items()
            for response_id, state in group.watched.items()
        }
        async with conn.begin():
            seen = await looker.look(
                conn,
                owners=self._groups,
                watched={response_id: state for response_id, (_, state) in known.items()},
                claims=[claim_id for group in self._groups.values() for claim_id in group.claims],
                now=time.monotonic(),
            )
            states = await read_states(conn, seen.changed) if seen.changed else []
            missed, requested = await self._missed(conn, told, seen)
        # The look is whole. From here to its end nobody else runs.
        self._note_claims(requested)
        self._forget_changed(seen.changed, states, known)
        for row in states:
            if (group := self._groups.get(owner_of(row))) is not None:
                self._tell(group, row, [one for one in group.listeners if one.is_current])
        for row in missed:
            listener = told[row["position"] - 1]
            if (group := self._groups.get(listener.owner)) is not None:
                self._tell(group, row, [listener])
        for listener in told:
            if listener in self._listeners:
                del self._waiting[listener]
                listener.is_current = True
                listener.advance(seen.cursor, wake=True)
        # Before the cursors move: who has missed something goes back to the cursor that he has.
        self._note_misses(seen, told)
        for listener in self._listeners:
            if listener.is_current:
                listener.advance(seen.cursor)
        return seen.is_more

    async def _missed(
        self, conn: AsyncConnection, told: list[Listener], seen: Seen
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        if not told:
            return [], []
        wanted = [(listener.owner, seen.since(listener.cursor)) for listener in told]
        users = [owner.user_id for owner, _ in wanted if owner.user_id is not None]
        return (
            await read_missed(conn, wanted, newest=self._settings.newest),
            await read_requested_claims(conn, users) if users else [],
        )

    @staticmethod
    def _tell(group: Group, row: dict[str, Any], listeners: Iterable[Listener]) -> None:
        if row["state"] == "scored":
            group.watched.pop(row["response_id"], None)
        else:
            group.watched[row["response_id"]] = row["state"]
        try:
            data = shown(row)
        except TypeError:
            # One that cannot be shown must not keep all the others from being told.
            logger.warning("A score cannot be shown.", extra={"response_id": row["response_id"]})
            return
        for listener in listeners:
            listener.offer(row["response_id"], data)

    def _forget_changed(
        self, changed: Iterable[int], states: Iterable[dict[str, Any]], known: dict[int, tuple[Owner, str]]
    ) -> None:
        """Watch no answer that was erased, or that has become somebody else's."""
        owners = {row["response_id"]: owner_of(row) for row in states}
        for response_id in changed:
            if response_id in known:
                owner = known[response_id][0]
                group = self._groups.get(owner)
                if group is not None and owners.get(response_id) != owner:
                    group.watched.pop(response_id, None)

    def _note_claims(self, requested: Iterable[dict[str, Any]]) -> None:
        for claim in requested:
            if (group := self._groups.get(Owner(claim["user_id"], None))) is not None:
                group.claims.add(claim["claim_id"])

    def _note_misses(self, seen: Seen, told: Iterable[Listener]) -> None:
        """Let those be told what they missed of whom something has come that is not found by its id."""
        missing: set[Listener] = set(self._listeners) if seen.is_certain else set()
        for claim_id, user_id, is_applied in seen.claims:
            if (group := self._groups.get(Owner(user_id, None))) is None:
                continue
            if is_applied:
                group.claims.discard(claim_id)
                missing |= group.listeners
            else:
                group.claims.add(claim_id)
        # Whom this look has told everything has missed nothing.
        for listener in missing.difference(told):
            self._miss(listener)
