"""What people, the sweep and time do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy import text

from storage.dead import dismiss_dead, list_dead, rescore_responses, retry_dead
from storage.sweeps import overdue, revive_missed
from storage.verification import verify_timeliness
from tests.reliability import transitions
from tests.reliability.machine import Machine, lanes, when_just_started
from tests.reliability.picture import When, is_never

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Handoff

OVERDUE_SECONDS = 30

# Around the numbers at which something changes.
LOSSES = (
    transitions.BURIED_AFTER,
    transitions.SUSPECT_AFTER - 1,
    transitions.SUSPECT_AFTER,
    transitions.SUSPECT_AFTER + 1,
    transitions.BURIED_AFTER - 1,
)

# Let a time stamp of a handoff have come a while ago.
_AGE = text("""
    UPDATE scoring_handoffs SET due_at = statement_timestamp() - make_interval(secs => :seconds)
    WHERE response_id = :response_id
""")
# Let a handoff have lost leases before.
_LOSE = text("UPDATE scoring_handoffs SET lease_losses = :losses WHERE response_id = :response_id")
# Leave a handoff as a submit leaves it that did not see the publication of the same moment.
_MISS = text("""
    UPDATE scoring_handoffs SET question_digest = NULL, due_at = 'infinity' WHERE response_id = :response_id
""")


class Operators(Machine):
    """Time passes, the sweep looks, people act."""

    def _some_responses(self, data: st.DataObject, likely: list[Handoff]) -> list[int]:
        """Responses, in any order; one that does not exist may be among them."""
        pools = [pool for pool in ([row.response_id for row in likely], [*self.before.responses, 0]) if pool]
        one = st.sampled_from(pools).flatmap(st.sampled_from)
        return data.draw(st.lists(one, min_size=1, max_size=4, unique=True))

    def _timed(self) -> list[Handoff]:
        return [row for row in self.handoffs.values() if not is_never(row.due)]

    @precondition(lambda self: self._timed())
    @rule(data=st.data(), seconds=st.integers(min_value=0, max_value=2 * OVERDUE_SECONDS))
    def time_passes(self, data: st.DataObject, seconds: int) -> None:
        """A lease runs out, or a pause ends, or something waits for longer."""
        rows = self._timed()
        leased = [row for row in rows if row.token is not None] or rows
        row = data.draw(st.sampled_from((leased, rows)).flatmap(st.sampled_from))
        given = {"response_id": row.response_id, "seconds": float(seconds)}
        self.commit(lambda conn: conn.execute(_AGE, given))
        self.expect(replace(row, due=When.NOW))
        self.did("a lease runs out" if row.token is not None else "a pause ends")

    @precondition(lambda self: any(row.token is not None for row in self.handoffs.values()))
    @rule()
    def leases_run_out(self) -> None:
        """All leases have run out: the workers stood still, or the network did."""
        rows = [row for row in self.handoffs.values() if row.token is not None]

        async def age(conn: AsyncConnection) -> None:
            for row in rows:
                await conn.execute(_AGE, {"response_id": row.response_id, "seconds": 1.0})

        self.commit(age)
        self.expect(*(replace(row, due=When.NOW) for row in rows))
        self.did("all leases run out", len(rows))

    def _may_die(self) -> list[Handoff]:
        return [row for row in self.handoffs.values() if row.is_open and row.digest is not None]

    @precondition(lambda self: self._may_die())
    @rule(data=st.data(), losses=st.sampled_from(LOSSES))
    def workers_died(self, data: st.DataObject, losses: int) -> None:
        """Workers died with these answers in hand, and they are due again."""
        some = st.lists(st.sampled_from(self._may_die()), min_size=1, max_size=4, unique=True)
        rows = {row: max(row.losses, losses) for row in data.draw(some)}

        async def die(conn: AsyncConnection) -> None:
            for row, lost in rows.items():
                await conn.execute(_LOSE, {"response_id": row.response_id, "losses": lost})
                await conn.execute(_AGE, {"response_id": row.response_id, "seconds": 1.0})

        self.commit(die)
        self.expect(*(replace(row, losses=lost, due=When.NOW) for row, lost in rows.items()))
        self.did("workers died", len(rows))

    @precondition(lambda self: self.ended())
    @rule(data=st.data(), wanted=st.sampled_from(("these", "these", "all", "reason")))
    def retry(self, data: st.DataObject, wanted: str) -> None:
        """Give what is dead a new life."""
        ids = self._some_responses(data, self.ended()) if wanted == "these" else None
        reason = "provider" if wanted == "reason" else None
        rows = [
            row
            for row in self.handoffs.values()
            if (row.state == "dead" if ids is None else not row.is_open and row.response_id in ids)
            and (reason is None or reason in (row.error or ""))
        ]
        done = self.commit(lambda conn: retry_dead(conn, response_ids=ids, reason=reason))
        assert sorted(done) == sorted(row.response_id for row in rows)
        self.expect(*(transitions.retried(row) for row in rows))
        self.did("retry", len(rows))

    @precondition(lambda self: self.ended())
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        """Give up what is dead."""
        ids = self._some_responses(data, self.ended())
        rows = [row for row in self.handoffs.values() if row.state == "dead" and row.response_id in ids]
        done = self.commit(lambda conn: dismiss_dead(conn, response_ids=ids, dismissed_by="ops"))
        assert sorted(done) == sorted(row.response_id for row in rows)
        self.expect(*(transitions.dismissed(row, by="ops") for row in rows))
        self.did("dismiss", len(rows))

    def look_at_the_dead(self, *, include_dismissed: bool) -> None:
        """Whoever looks sees all that is dead."""
        states = {"dead", "dismissed"} if include_dismissed else {"dead"}
        rows = self.commit(lambda conn: list_dead(conn, include_dismissed=include_dismissed))
        assert {row["handoff_id"] for row in rows} == {
            row.handoff_id for row in self.handoffs.values() if row.state in states
        }
        self.did("look at the dead", len(rows))

    @precondition(lambda self: self.before.responses)
    @rule(data=st.data(), lane=lanes)
    def rescore(self, data: st.DataObject, lane: str) -> None:
        """Ask for another score, whatever became of the first one."""
        ids = self._some_responses(data, list(self.handoffs.values()))
        self.rescore_all(ids, lane)

    def rescore_all(self, ids: list[int], lane: str) -> None:
        """Ask for another score of these."""
        rows: dict[int, Handoff] = {}
        for response_id in ids:
            response = self.before.responses.get(response_id)
            if response is None:
                continue
            digest = self.before.published.get(response.question) or response.digest
            if digest is not None:
                before = self.handoffs.get(response_id)
                rows[response_id] = transitions.rescored(before, response_id, digest, lane)
        new = {response_id: row for response_id, row in rows.items() if row.handoff_id is None}
        self._count_rescored(new, lane)
        done = self.commit(lambda conn: rescore_responses(conn, response_ids=ids, lane=lane))
        assert sorted(done) == sorted(new)
        self.expect(*new.values())

    def _count_rescored(self, new: Mapping[int, Handoff], lane: str) -> None:
        self.did(f"rescore {lane}", len(new))
        for response_id, row in new.items():
            before = self.handoffs.get(response_id)
            if before is None:
                self.did("rescore what was scored")
            elif not before.is_open:
                self.did("rescore what was dead")
            else:
                self.did("rescore what was leased" if before.token else "rescore what was waiting")
            if row.lane != lane:
                self.did("rescore in a better lane than asked for")

    def sweep(self, *, fresh: bool, waited: int) -> None:
        """The sweep asks which lanes are overdue, and finds every one."""
        rows = [
            row
            for row in self.due(just_started=fresh)
            if not isinstance(row.due, When) and (self.before.now - row.due).total_seconds() >= waited
        ]
        wanted = {row.lane for row in rows if transitions.is_ordinary(row)}
        wanted |= {"suspect" for row in rows if transitions.is_suspect(row)}
        wanted |= {"lost" for row in rows if transitions.is_lost(row)}
        lease_seconds = when_just_started(fresh)
        found = self.commit(lambda conn: overdue(conn, lease_seconds=lease_seconds, overdue_seconds=waited))
        assert wanted <= found
        # What was nearly overdue at the last look may be so a moment later.
        assert found == wanted or self._nearly_overdue(fresh=fresh, waited=waited)
        self.did("sweep", len(found))

    def _nearly_overdue(self, *, fresh: bool, waited: int) -> list[Handoff]:
        return [
            row
            for row in self.due(just_started=fresh)
            if not isinstance(row.due, When)
            and -2 <= (self.before.now - row.due).total_seconds() - waited < 0
        ]

    @precondition(
        lambda self: any(row.digest and not row.token and row.is_open for row in self.handoffs.values())
    )
    @rule(data=st.data())
    def publication_was_missed(self, data: st.DataObject) -> None:
        """A submit and a publication of the same moment did not see each other."""
        rows = [row for row in self.handoffs.values() if row.digest and not row.token and row.is_open]
        row = data.draw(st.sampled_from(rows))
        self.commit(lambda conn: conn.execute(_MISS, {"response_id": row.response_id}))
        self.ledger.digests.pop(row.handoff_id or 0)
        before = replace(row, digest=None, due=When.NEVER)
        # As if it had always been so.
        self.before = replace(self.before, handoffs={**self.handoffs, row.response_id: before})
        self.expect(before)
        self.did("publication was missed")

    @precondition(lambda self: any(row.digest is None for row in self.handoffs.values()))
    @rule(limit=st.integers(min_value=1, max_value=3))
    def revive_missed(self, limit: int) -> None:
        """The sweep revives what waits although its question exists, a few at a time, until it is through."""
        waiting = sorted(
            (row for row in self.handoffs.values() if row.is_open and row.digest is None),
            key=lambda row: row.handoff_id or 0,
        )
        published = self.before.published
        rows = {
            row: digest
            for row in waiting
            if (digest := published.get(self.before.responses[row.response_id].question)) is not None
        }

        async def whole(conn: AsyncConnection) -> int:
            revived, after = await revive_missed(conn, limit=limit)
            total = revived
            while after:
                revived, after = await revive_missed(conn, after_handoff_id=after, limit=limit)
                total += revived
            missed = await verify_timeliness(conn, lease_seconds=1.0, sweep_seconds=0.0)
            assert missed["missed_publication"] == []
            return total

        assert self.commit(whole) == len(rows)
        self.expect(*(transitions.revived(row, digest) for row, digest in rows.items()))
        self.did("revive what was missed", len(rows))
