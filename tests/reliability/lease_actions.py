"""What workers do in one of two overlapping transactions, and what it makes of the rows that it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from hypothesis import strategies as st

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
    LANES,
    LATER_SECONDS,
    SHORT_SECONDS,
    SLOTS,
    Held,
    keep_for_later,
)
from tests.reliability.picture import Handoff, Score

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.reliability.picture import Picture
    from tests.reliability.sides import Action, Effect, Replay

RELEASING: dict[str, Any] = {
    "postpone": postpone_handoffs,
    "fail": fail_handoffs,
    "bury": bury_handoffs,
    "hand back": hand_back_handoffs,
}
_REASON = "The scorer failed."


def nothing(replay: Replay) -> None:
    """The effect of what only looks."""
    del replay


def each(response_ids: Iterable[int], change: Callable[[Handoff], Handoff]) -> Effect:
    ids = list(response_ids)

    def effect(replay: Replay) -> None:
        for response_id in ids:
            assert response_id in replay.handoffs, f"{response_id} was reported and has no handoff"
            replay.handoffs[response_id] = change(replay.handoffs[response_id])

    return effect


class Leases:
    """What is committed, and the leases that were ever granted, also by transactions that were undone."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.leases: list[Held] = []
        self.models = 0

    def some_responses(self, data: st.DataObject) -> list[int]:
        """Responses, in any order."""
        ids = list(self.picture.responses) or [0]
        return data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=4, unique=True))

    def some_leases(self, data: st.DataObject) -> list[Held]:
        """Leases, whoever has them now, at most one for each handoff."""
        alive = [lease for lease in self.leases if self.picture.with_id(lease.handoff_id) is not None]
        one = st.sampled_from([pool for pool in (alive, self.leases) if pool]).flatmap(st.sampled_from)
        return data.draw(st.lists(one, min_size=1, max_size=4, unique_by=lambda lease: lease.handoff_id))

    def _leasing(self, leasing: Callable[[AsyncConnection, UUID], Awaitable[list[dict[str, Any]]]]) -> Action:
        token = uuid4()

        async def lease(conn: AsyncConnection) -> Effect:
            rows = await leasing(conn, token)
            await keep_for_later(conn, token, lease_seconds=SHORT_SECONDS)
            self.leases += [
                Held(row["handoff_id"], row["created_at"], row["response_id"], token) for row in rows
            ]
            return each((row["response_id"] for row in rows), lambda row: transitions.leased(row, token))

        return lease

    def _lease(self, data: st.DataObject) -> Action:
        ids = self.some_responses(data)
        return self._leasing(
            lambda conn, token: lease_handoffs(
                conn, response_ids=ids, lease_token=token, lease_seconds=SHORT_SECONDS, limit=3
            )
        )

    def _pull(self, data: st.DataObject) -> Action:
        lane = data.draw(st.sampled_from(LANES))
        return self._leasing(
            lambda conn, token: pull_handoffs(
                conn, lane=lane, lease_token=token, lease_seconds=SHORT_SECONDS, limit=3
            )
        )

    def _suspect(self, data: st.DataObject) -> Action:
        slots = data.draw(st.sampled_from(SLOTS))

        async def group(conn: AsyncConnection, token: UUID) -> list[dict[str, Any]]:
            rows = await pull_suspects(
                conn, slots=slots, lease_token=token, lease_seconds=SHORT_SECONDS, limit=3
            )
            losses = {row["lease_losses"] for row in rows}
            assert len(losses) <= 1, "one group has lost as many leases"
            assert len(rows) <= max([1, *(slots // int(4 ** (lost - 2)) for lost in losses)])
            return rows

        return self._leasing(group)

    def _bury_lost(self, data: st.DataObject) -> Action:
        del data

        async def bury(conn: AsyncConnection) -> Effect:
            rows = await bury_lost(conn, lease_seconds=SHORT_SECONDS)
            return each(
                (row["response_id"] for row in rows),
                lambda row: transitions.buried_as_lost(row, reason=transitions.LOST_REASON),
            )

        return bury

    def _renew(self, data: st.DataObject) -> Action | None:
        if not self.leases:
            return None
        leases = self.some_leases(data)

        async def renew(conn: AsyncConnection) -> Effect:
            pairs = [(lease.handoff_id, lease.token) for lease in leases]
            done = await renew_leases(conn, pairs, lease_seconds=LATER_SECONDS)
            return each(
                (lease.response_id for lease in leases if lease.handoff_id in done), transitions.renewed
            )

        return renew

    def _settle(self, data: st.DataObject) -> Action | None:
        if not self.leases:
            return None
        leases = self.some_leases(data)
        self.models += 1
        model = f"model {self.models}"

        async def settle(conn: AsyncConnection) -> Effect:
            done = await settle_handoffs(conn, [settlement(lease, model_id=model) for lease in leases])

            def effect(replay: Replay) -> None:
                for found in done:
                    row = replay.handoffs.pop(found["response_id"])
                    assert row.handoff_id == found["handoff_id"]
                    assert row.digest is not None
                    replay.scores.add(Score(row.response_id, found["handoff_id"], row.digest, model))

            return effect

        return settle

    def _releasing(self, name: str, data: st.DataObject) -> Action | None:
        if not self.leases:
            return None
        leases = self.some_leases(data)
        changed: Callable[[Handoff], Handoff] = {
            "postpone": lambda row: transitions.postponed(
                row, delay_seconds=0.0, reason=_REASON, suspicious=False
            ),
            "fail": lambda row: transitions.failed(row, delay_seconds=0.0, reason=_REASON),
            "bury": lambda row: transitions.buried(row, reason=_REASON),
            "hand back": lambda row: transitions.handed_back(row, delay_seconds=0.0, reason=_REASON),
        }[name]

        async def release(conn: AsyncConnection) -> Effect:
            given = [Release(lease.handoff_id, lease.token, 0.0, _REASON) for lease in leases]
            done = await RELEASING[name](conn, given)
            tokens = {lease.response_id: lease.token for lease in leases if lease.handoff_id in done}

            def checked(row: Handoff) -> Handoff:
                assert row.token == tokens[row.response_id], "who lost the lease has no say"
                return changed(row)

            return each(tokens, checked)

        return release
