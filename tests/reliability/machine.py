"""What every machine over the real storage layer needs: a loop, a database, the picture before, the picture after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import delete, text

from storage.tables import OWN_TABLES, metadata
from storage.verification import verify_settlement
from tests.reliability.invariants import Ledger
from tests.reliability.picture import Handoff, differences, take_picture
from tests.reliability.transitions import is_due

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.reliability.picture import Picture, Question

T = TypeVar("T")

# A small world: whatever two steps touch, they often touch the same.
USERS = (1, 2, 3)
TOKENS = ("anonymous-a", "anonymous-b")
QUESTIONS: tuple[Question, ...] = (("biology", "light"), ("biology", "water"), ("physics", "light"))
RUBRICS = ("strict", "mild")
LANES = ("live", "bulk")
# Of a worker: suspects come in groups of one to all that there are.
SLOTS = (1, 8, 100, 1000)

OWNERS: tuple[dict[str, Any], ...] = (
    *({"user_id": user_id} for user_id in USERS),
    *({"anonymous_token": token} for token in TOKENS),
)

# Nothing that is meant for later comes due while a machine runs.
LATER_SECONDS = 3600.0
# The server has been up for longer than this: leases count as run out when they have.
SHORT_SECONDS = 0.05
# No server has been up for so long: it looks as if it had just been started.
LONG_SECONDS = 1e9

owners = st.sampled_from(OWNERS)
questions = st.sampled_from(QUESTIONS)
lanes = st.sampled_from(LANES)
# More often than not a server that has been up for a while.
just_started = st.sampled_from((False, False, True))


@dataclass(slots=True)
class World:
    """What outlives one example: the loop, the connections, and what was done so far."""

    runner: asyncio.Runner
    engine: AsyncEngine
    observer: Any
    """A driver's connection that only looks."""
    steps: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the machine's own loop."""
        return self.runner.run(work)

    async def look(self) -> Picture:
        """What is committed; what ``scoring verify --full`` would find is a failure."""
        async with self.engine.connect() as conn:
            found = await verify_settlement(conn, full=True)
            assert (found["orphans"], found["settled_twice"]) == ([], []), found
            await conn.rollback()
        return await take_picture(self.observer)

    def did(self, step: str, rows: int = 1) -> None:
        """Count a step, and what it touched."""
        self.steps[step] += 1
        self.rows[step] += rows

    async def empty(self) -> None:
        """Remove every row of ours; cheaper than TRUNCATE, which makes new files."""
        async with self.engine.begin() as conn:
            for table in reversed(metadata.sorted_tables):
                if table.name in OWN_TABLES:
                    await conn.execute(delete(table))


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as its worker remembers it, whether or not he still has it."""

    handoff_id: int
    created_at: datetime
    response_id: int
    token: UUID


def when_just_started(answer: bool) -> float:  # noqa: FBT001 - it is drawn
    """The length of a lease that makes PostgreSQL look just started, or not."""
    return LONG_SECONDS if answer else SHORT_SECONDS


async def keep_for_later(conn: AsyncConnection, token: UUID, *, lease_seconds: float) -> None:
    """Let a lease that had to be short last, so that it runs out in the step that says so, and in no other."""
    lasts = "h.due_at - h.leased_at = make_interval(secs => :seconds)"
    given = {"token": token, "seconds": lease_seconds, "later": LATER_SECONDS}
    wrong = text(f"SELECT count(*) FROM scoring_handoffs AS h WHERE h.lease_token = :token AND NOT {lasts}")
    assert (await conn.execute(wrong, given)).scalar_one() == 0, "a lease lasts as long as was asked for"
    await conn.execute(
        text(
            "UPDATE scoring_handoffs SET due_at = statement_timestamp() + make_interval(secs => :later) "
            "WHERE lease_token = :token"
        ),
        given,
    )


class Machine(RuleBasedStateMachine):
    """Every step runs storage functions in a committed transaction and says what it expects of the database."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        self.ledger = Ledger()
        self.leases: list[Held] = []
        self.messages: list[tuple[int, ...]] = []
        world.run(world.empty())
        self.before = world.run(world.look())
        self.expected = self.before

    def commit(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run something in a transaction of its own, and commit."""

        async def run() -> T:
            async with self.world.engine.begin() as conn:
                return await work(conn)

        return self.world.run(run())

    def did(self, step: str, rows: int = 1) -> None:
        """Count a step, and what it touched."""
        self.world.did(step, rows)

    def expect(
        self,
        *changed: Handoff | None,
        gone: Sequence[int] = (),
        **other: Any,
    ) -> None:
        """Say how the next picture differs: changed handoffs, the responses whose handoffs go, other tables."""
        handoffs: dict[int, Handoff] = {
            response_id: row for response_id, row in self.expected.handoffs.items() if response_id not in gone
        }
        handoffs.update({row.response_id: row for row in changed if row is not None})
        self.expected = replace(self.expected, handoffs=handoffs, **other)

    def ended(self) -> list[Handoff]:
        """What is dead or dismissed."""
        return [row for row in self.handoffs.values() if not row.is_open]

    @property
    def handoffs(self) -> Mapping[int, Handoff]:
        """The handoffs as they were before this step."""
        return self.before.handoffs

    def held(self, lease: Held) -> Handoff | None:
        """The handoff that this lease still holds."""
        row = self.handoffs.get(lease.response_id)
        if row is None or (row.handoff_id, row.token) != (lease.handoff_id, lease.token):
            return None
        return row

    def due(self, *, just_started: bool) -> list[Handoff]:
        """What may be leased now, in the order of identity."""
        rows = [
            row for row in self.handoffs.values() if is_due(row, self.before.now, just_started=just_started)
        ]
        return sorted(rows, key=lambda row: row.handoff_id or 0)

    @invariant()
    def holds(self) -> None:
        """Compare the database with what was expected, and check every invariant."""
        after = self.world.run(self.world.look())
        said = differences(self.expected, after)
        said += self.ledger.broken(self.before, after)
        assert not said, "; ".join(said)
        self.before = self.expected = after
