"""What workers do, those who hold their lease and those who lost it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from storage.leases import bury_lost, lease_handoffs, pull_handoffs, pull_suspects, renew_leases
from storage.settlements import (
    Release,
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from tests.factories import settlement
from tests.reliability import transitions
from tests.reliability.machine import (
    LATER_SECONDS,
    SLOTS,
    Held,
    Machine,
    just_started,
    keep_for_later,
    when_just_started,
)
from tests.reliability.picture import Score

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Handoff

    Releasing = Callable[[AsyncConnection, Sequence[Release]], Awaitable[frozenset[int]]]

limits = st.integers(min_value=1, max_value=4)
delays = st.sampled_from((0.0, LATER_SECONDS))
reasons = st.sampled_from(("The scorer failed.", "The provider is away."))


class Workers(Machine):
    """Leasing, by message and by pull, and what ends a lease."""

    def _take(
        self,
        leasing: Callable[[AsyncConnection, UUID], Awaitable[list[dict[str, Any]]]],
        wanted: list[Handoff],
        *,
        fresh: bool,
    ) -> None:
        """Lease in a transaction, and expect just these rows to be leased."""
        token = uuid4()
        if fresh:
            spared = len(self.due(just_started=False)) - len(self.due(just_started=True))
            self.did("spare leases after a start", spared)

        async def take(conn: AsyncConnection) -> list[dict[str, Any]]:
            rows = await leasing(conn, token)
            await keep_for_later(conn, token, lease_seconds=when_just_started(fresh))
            return rows

        rows = self.commit(take)
        assert {row["handoff_id"] for row in rows} == {row.handoff_id for row in wanted}
        for row in rows:
            before = self.handoffs[row["response_id"]]
            assert row["lease_losses"] == transitions.losses_when_leased(before)
            assert row["question_digest"] == before.digest
            assert row["answer_text"] == self.before.responses[row["response_id"]].answer
            self.leases.append(Held(row["handoff_id"], row["created_at"], row["response_id"], token))
        self.expect(*(transitions.leased(row, token) for row in wanted))

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), limit=limits, doubled=st.booleans(), fresh=just_started)
    def receive(self, data: st.DataObject, limit: int, doubled: bool, fresh: bool) -> None:  # noqa: FBT001
        """A message arrives: for the first time, once more, or late, when all it names is long scored."""
        message = data.draw(st.sampled_from(self.messages))
        if not doubled:
            self.messages.remove(message)
        wanted = [
            row
            for row in self.due(just_started=fresh)
            if row.response_id in message and transitions.is_ordinary(row)
        ][:limit]

        async def by_ids(conn: AsyncConnection, token: UUID) -> list[dict[str, Any]]:
            return await lease_handoffs(
                conn,
                response_ids=message,
                lease_token=token,
                lease_seconds=when_just_started(fresh),
                limit=limit,
            )

        self._take(by_ids, wanted, fresh=fresh)
        self.did("receive a message", len(wanted))

    @precondition(lambda self: self.handoffs)
    @rule(limit=limits, fresh=just_started)
    def pull_live(self, limit: int, fresh: bool) -> None:  # noqa: FBT001
        """Take the oldest answers that students wait for."""
        self.pull("live", limit=limit, fresh=fresh)

    @precondition(lambda self: any(row.lane == "bulk" and row.is_open for row in self.handoffs.values()))
    @rule(limit=limits, fresh=just_started)
    def pull_bulk(self, limit: int, fresh: bool) -> None:  # noqa: FBT001
        """Take the oldest answers that nobody waits for."""
        self.pull("bulk", limit=limit, fresh=fresh)

    def pull(self, lane: str, *, limit: int, fresh: bool) -> None:
        """Take the oldest of a lane."""
        rows = [
            row for row in self.due(just_started=fresh) if row.lane == lane and transitions.is_ordinary(row)
        ]
        wanted = sorted(rows, key=lambda row: (row.due, row.handoff_id))[:limit]

        async def by_lane(conn: AsyncConnection, token: UUID) -> list[dict[str, Any]]:
            return await pull_handoffs(
                conn, lane=lane, lease_token=token, lease_seconds=when_just_started(fresh), limit=limit
            )

        self._take(by_lane, wanted, fresh=fresh)
        self.did(f"pull {lane}", len(wanted))

    @precondition(lambda self: self._lossy(transitions.SUSPECT_AFTER))
    @rule(slots=st.sampled_from(SLOTS), limit=limits, fresh=just_started)
    def pull_suspects(self, slots: int, limit: int, fresh: bool) -> None:  # noqa: FBT001
        """Take a group of those that may kill their workers."""
        rows = [row for row in self.due(just_started=fresh) if transitions.is_suspect(row)]
        oldest_first = sorted(rows, key=lambda row: (row.due, row.handoff_id))
        wanted = transitions.group_of(oldest_first, slots=slots)[:limit]

        async def group(conn: AsyncConnection, token: UUID) -> list[dict[str, Any]]:
            return await pull_suspects(
                conn, slots=slots, lease_token=token, lease_seconds=when_just_started(fresh), limit=limit
            )

        self._take(group, wanted, fresh=fresh)
        self.did("pull suspects", len(wanted))
        if len(wanted) > 1:
            self.did("pull several suspects", len(wanted))

    @precondition(lambda self: self._lossy(transitions.BURIED_AFTER - 1))
    @rule(fresh=just_started)
    def bury_lost(self, fresh: bool) -> None:  # noqa: FBT001
        """Bury what killed its workers too often."""
        wanted = [row for row in self.due(just_started=fresh) if transitions.is_lost(row)]
        rows = self.commit(lambda conn: bury_lost(conn, lease_seconds=when_just_started(fresh)))
        assert {row["handoff_id"] for row in rows} == {row.handoff_id for row in wanted}
        self.expect(*(transitions.buried_as_lost(row, reason=transitions.LOST_REASON) for row in wanted))
        self.did("bury the lost", len(wanted))

    def _lossy(self, losses: int) -> list[Handoff]:
        return [row for row in self.handoffs.values() if transitions.losses_when_leased(row) >= losses]

    def _some_leases(self, data: st.DataObject) -> list[Held]:
        """Leases, each as likely held as lost, at most one for each handoff, in any order."""
        held = [lease for lease in self.leases if self.held(lease) is not None]
        lost = [lease for lease in self.leases if self.held(lease) is None]
        pools = [pool for pool in (held, held, lost) if pool]
        one = st.sampled_from(pools).flatmap(st.sampled_from)
        return data.draw(st.lists(one, min_size=1, max_size=4, unique_by=lambda lease: lease.handoff_id))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """Ask for more time."""
        leases = self._some_leases(data)
        rows = [row for lease in leases if (row := self.held(lease)) is not None]
        pairs = [(lease.handoff_id, lease.token) for lease in leases]
        done = self.commit(lambda conn: renew_leases(conn, pairs, lease_seconds=LATER_SECONDS))
        assert done == {row.handoff_id for row in rows}
        self.expect(*(transitions.renewed(row) for row in rows))
        self.did("renew", len(rows))
        self.did("renew what is lost", len(leases) - len(rows))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Bring scores, for what is leased, was lost or is long scored."""
        self.settle_all(self._some_leases(data))

    @precondition(lambda self: any(self.held(lease) is None for lease in self.leases))
    @rule(data=st.data())
    def settle_late(self, data: st.DataObject) -> None:
        """Bring a score after the lease was lost: it counts unless somebody was faster."""
        self.settle_all(
            [data.draw(st.sampled_from([lease for lease in self.leases if self.held(lease) is None]))]
        )

    def settle_all(self, leases: list[Held]) -> None:
        """Bring a score for each of these."""
        leases = list({lease.handoff_id: lease for lease in leases}.values())
        scores = {lease.handoff_id: f"model {len(self.ledger.settled)}.{n}" for n, lease in enumerate(leases)}
        rows = [row for lease in leases if (row := self.before.with_id(lease.handoff_id)) is not None]
        rows = sorted((row for row in rows if row.digest is not None), key=lambda row: row.handoff_id or 0)
        done = self.commit(
            lambda conn: settle_handoffs(
                conn, [settlement(lease, model_id=scores[lease.handoff_id]) for lease in leases]
            )
        )
        assert {row["handoff_id"] for row in done} == {row.handoff_id for row in rows}
        brought = [
            Score(row.response_id, row.handoff_id, row.digest, scores[row.handoff_id])
            for row in rows
            if row.handoff_id is not None and row.digest is not None
        ]
        self.expect(gone=[row.response_id for row in rows], scores=(*self.before.scores, *brought))
        self.did("settle", len(rows))
        self.did("settle too late", len(leases) - len(rows))
        alive = {row.handoff_id for row in rows}
        self.did(
            "settle after the lease was lost",
            sum(lease.handoff_id in alive and self.held(lease) is None for lease in leases),
        )

    def _release(
        self,
        step: str,
        data: st.DataObject,
        releasing: Releasing,
        changed: Callable[[Handoff, Release], Handoff],
        *,
        reason: str | None,
        suspicious: bool = False,
    ) -> None:
        leases = self._some_leases(data)
        releases = [
            Release(lease.handoff_id, lease.token, data.draw(delays), reason, suspicious) for lease in leases
        ]
        rows = [
            (row, release)
            for lease, release in zip(leases, releases, strict=True)
            if (row := self.held(lease)) is not None
        ]
        done = self.commit(lambda conn: releasing(conn, releases))
        assert done == {row.handoff_id for row, _ in rows}
        self.expect(*(changed(row, release) for row, release in rows))
        self.did(step, len(rows))
        self.did(f"{step}: lease was lost", len(leases) - len(rows))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reason=st.none() | reasons, suspicious=st.booleans())
    def postpone(self, data: st.DataObject, reason: str | None, suspicious: bool) -> None:  # noqa: FBT001
        """The provider failed."""
        self._release(
            "postpone",
            data,
            postpone_handoffs,
            lambda row, release: transitions.postponed(
                row, delay_seconds=release.delay_seconds, reason=reason, suspicious=suspicious
            ),
            reason=reason,
            suspicious=suspicious,
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reason=st.none() | reasons)
    def fail(self, data: st.DataObject, reason: str | None) -> None:
        """The scorer failed."""
        self._release(
            "fail",
            data,
            fail_handoffs,
            lambda row, release: transitions.failed(row, delay_seconds=release.delay_seconds, reason=reason),
            reason=reason,
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reason=reasons)
    def bury(self, data: st.DataObject, reason: str) -> None:
        """The scorer gives up."""
        self._release(
            "bury", data, bury_handoffs, lambda row, _: transitions.buried(row, reason=reason), reason=reason
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        """The worker stops."""
        self._release(
            "hand back",
            data,
            hand_back_handoffs,
            lambda row, release: transitions.handed_back(
                row, delay_seconds=release.delay_seconds, reason=None
            ),
            reason=None,
        )
