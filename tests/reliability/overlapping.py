"""A machine of two transactions that overlap: begin, statements, waits, commits and rollbacks in any order.

What a statement reports must be what its transaction, when it commits, changes: no more, no less, whatever
the other one did before, meanwhile, or while this one waited for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import text

from storage import submit_responses
from tests.factories import submission
from tests.reliability import transitions
from tests.reliability.actions import FIRST, FURTHER, Surroundings
from tests.reliability.invariants import Ledger
from tests.reliability.machine import QUESTIONS, RUBRICS, TOKENS, World
from tests.reliability.picture import Handoff, When, differences, is_never
from tests.reliability.sides import Replay, Side

if TYPE_CHECKING:
    from tests.reliability.picture import Picture, Question
    from tests.reliability.sides import Effect

# Two who answered the same question, and may turn out to be one.
BOTH_TOKENS = tuple((token, QUESTIONS[0]) for token in TOKENS)
# What a statement may be refused with; it was somebody else's key, or the answer was erased meanwhile.
REFUSALS = {"SubmissionKeyConflictError", "IntegrityError", "StorageUnavailableError"}

# Let leases have run out, and pauses have ended, as far as nobody holds the rows.
_AGE = text("""
    UPDATE scoring_handoffs SET due_at = statement_timestamp() - interval '1 minute'
    WHERE handoff_id IN (
        SELECT handoff_id FROM scoring_handoffs WHERE response_id = ANY (:response_ids) AND due_at < 'infinity'
        ORDER BY handoff_id FOR UPDATE SKIP LOCKED
    )
    RETURNING response_id
""")
# Let handoffs have lost leases before.
_LOSE = text("UPDATE scoring_handoffs SET lease_losses = :losses WHERE response_id = ANY (:response_ids)")


class OverlappingMachine(RuleBasedStateMachine):
    """Two sides, and an observer of what is committed."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        self.ledger = Ledger()
        world.run(world.empty())
        self.before = world.run(world.look())
        self.surroundings = Surroundings(self.before)
        self.sides = tuple(world.run(self._side(name)) for name in ("A", "B"))

    async def _side(self, name: str) -> Side:
        conn = await self.world.engine.connect()
        pid = (await conn.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await conn.rollback()
        return Side(name, conn, pid)

    def teardown(self) -> None:
        """End both transactions, the one that nobody keeps waiting first."""
        self.world.run(self._end())

    async def _end(self) -> None:
        for side in sorted(self.sides, key=lambda side: side.waits):
            if side.task is not None:
                await side.go_on(observer=self.world.observer)
            await side.rollback()
            await side.conn.close()

    @initialize(
        published=st.sets(st.sampled_from(QUESTIONS), min_size=1),
        given=st.lists(
            st.tuples(st.sampled_from(TOKENS), st.sampled_from(QUESTIONS)), min_size=1, max_size=5
        ),
        leased=st.booleans(),
        losses=st.sampled_from((0, 0, transitions.SUSPECT_AFTER, transitions.BURIED_AFTER)),
        data=st.data(),
    )
    def begin(
        self,
        published: set[Question],
        given: list[tuple[str, Question]],
        leased: bool,  # noqa: FBT001
        losses: int,
        data: st.DataObject,
    ) -> None:
        """Begin with something to fight about."""

        async def fill() -> None:
            async with self.world.engine.begin() as conn:
                for question in sorted(published):
                    await self.surroundings.publishing(question, RUBRICS[0])(conn)
                rows = await submit_responses(
                    conn,
                    [
                        submission(anonymous_token=token, module_slug=question[0], question_id=question[1])
                        for token, question in (*BOTH_TOKENS, *given)
                    ],
                )
                lossy = [row["response_id"] for row in rows[::2]]
                await conn.execute(_LOSE, {"losses": losses, "response_ids": lossy})

        self.world.run(fill())
        self._look(self.world.run(self.world.look()))
        lease = self.surroundings.action("lease", data)
        if leased and lease is not None:
            side = self.sides[0]
            assert self.world.run(side.attempt(lease, observer=self.world.observer)) == "done"
            self._end_of(side, commits=True)

    def _look(self, after: Picture) -> None:
        said = self.ledger.broken(self.before, after)
        assert not said, "; ".join(said)
        self.before = self.surroundings.picture = after

    def _other(self, side: Side) -> Side:
        return self.sides[side is self.sides[0]]

    def _free(self) -> list[Side]:
        return [side for side in self.sides if not side.waits]

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """One of them that does not wait runs a statement."""
        self._act(data)

    @rule(data=st.data())
    def act_again(self, data: st.DataObject) -> None:
        """The same: more statements than ends of transactions."""
        self._act(data)

    def _act(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from(self._free()))
        name = data.draw(st.sampled_from(FURTHER if side.begun else FIRST))
        action = self.surroundings.action(name, data)
        if action is None:
            return
        if self._other(side).waits:
            outcome = self.world.run(side.attempt_without_waiting(action, observer=self.world.observer))
        else:
            outcome = self.world.run(side.attempt(action, observer=self.world.observer))
        self._accept(name, outcome)

    def _accept(self, name: str, outcome: str) -> None:
        assert outcome in {"done", "waits", "skipped"} | REFUSALS, f"{name}: {outcome}"
        self.world.did(f"{name}: {outcome}")

    @rule(data=st.data())
    def act_once_more(self, data: st.DataObject) -> None:
        """The same."""
        self._act(data)

    @precondition(lambda self: any(side.begun for side in self._free()))
    @rule(data=st.data(), commits=st.sampled_from((True, True, True, False)))
    def end(self, data: st.DataObject, commits: bool) -> None:  # noqa: FBT001
        """One commits or gives up; the database then shows what it reported, and the other one may go on."""
        side = data.draw(st.sampled_from([side for side in self._free() if side.begun]))
        self._end_of(side, commits=commits)

    def _end_of(self, side: Side, *, commits: bool) -> None:
        effects: list[Effect] = []
        if commits:
            effects = self.world.run(side.commit())
        else:
            self.world.run(side.rollback())
        after = self.world.run(self.world.look())
        self._compare(effects, after)
        self._look(after)
        self.world.did("commit" if commits else "roll back")
        self._go_on(side)

    def _go_on(self, side: Side) -> None:
        other = self._other(side)
        if other.waits:
            self._accept("went on", self.world.run(other.go_on(observer=self.world.observer)))
            assert not other.waits, "nobody is left to wait for"

    def _compare(self, effects: list[Effect], after: Picture) -> None:
        anonymous = {key for key, row in self.before.responses.items() if row.token is not None}
        replay = Replay(self.before, after, dict(self.before.handoffs), set(self.before.scores), anonymous)
        for effect in effects:
            effect(replay)
        assert replay.published or replay.revived == replay.reported_revived, (
            "as many as reported are revived"
        )
        gone = replay.erased
        replay.handoffs = {key: row for key, row in replay.handoffs.items() if key not in gone}
        scores = {score for score in replay.scores if score.response_id not in gone}
        assert set(after.scores) == scores, "scores are what was reported"
        said = differences(self._expected(replay, after), after)
        assert not said, "; ".join(said)
        moved = sum(
            key in after.responses and after.responses[key].user_id is not None for key in replay.anonymous
        )
        assert moved == replay.moved, f"claims reported {replay.moved}, but moved {moved}"

    @staticmethod
    def _expected(replay: Replay, after: Picture) -> Picture:
        return type(after)(
            now=after.now,
            responses=after.responses,
            handoffs=replay.handoffs,
            scores=after.scores,
            claims=after.claims,
            published=after.published,
        )

    def _timed(self) -> list[int]:
        """Those whose lease or pause has not ended."""
        now = self.before.now
        return [
            key
            for key, row in self.before.handoffs.items()
            if not isinstance(row.due, When) and not is_never(row.due) and row.due > now
        ]

    @precondition(lambda self: self._timed())
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """Leases run out, and pauses end."""
        ids = data.draw(st.lists(st.sampled_from(self._timed()), min_size=1, unique=True))

        async def age() -> list[int]:
            async with self.world.engine.begin() as conn:
                return list((await conn.execute(_AGE, {"response_ids": ids})).scalars())

        aged = self.world.run(age())

        def effect(replay: Replay) -> None:
            for response_id in aged:
                row: Handoff = replay.handoffs[response_id]
                fields: dict[str, Any] = {"due": When.NOW}
                replay.handoffs[response_id] = type(row)(
                    **{name: fields.get(name, getattr(row, name)) for name in row.__slots__}
                )

        after = self.world.run(self.world.look())
        self._compare([effect], after)
        self._look(after)
        self.world.did("time passes", len(aged))
