"""One look at the database: what is new in it, and for whom. Its state belongs to one connection.

Why nobody misses anything, whatever order transactions commit in
-----------------------------------------------------------------
All of a look is read in one snapshot. A reader's cursor is the ``xmin`` of a look's snapshot: every transaction below it
was over then, so that the snapshot saw all that it committed. Who comes back with a cursor is given each of his answers,
and each current score, whose row was written by that transaction or a later one, and everything that is not scored. So a
transaction that ran at that look, or began after it, is covered, whatever ids it drew, when and in whatever process. An
answer that was claimed is a row written anew, and is covered by the same rule. (That his events were *sent* is what the
stream guarantees: the cursor goes out with the last event of those that belong to it.)

Between two looks:

- An answer that is not scored is watched by its id: its next state is seen by the next look, whatever else happens.
- New answers and new scores are found by id: all above the highest seen, and all *gaps* below it. While a transaction
  that may fill a gap runs, ``xmin``, and so every cursor, stays at or below it. A gap is given up when all that ran when
  it was noticed are over, and ten seconds have passed: an id is drawn a moment before its transaction gets a number.
- What is missing below the first look's highest ids nobody knows, and gaps may be too many to remember. That is a
  *doubt*: the cursor stays where it was when it arose, until all transactions of that time are over; then everybody is
  given what he missed since, as if he came back with that cursor.
- A claim that is applied to somebody who listens, a lost connection, a new process: the same again, each reader from
  his own cursor.

A server that goes on with another line of transaction ids (after a fail-over to a standby that had not got everything,
for example) may have given ids anew: to a cursor of another line, something below it may be unknown. Who comes with one
is told what the last ``LOST_TRANSACTIONS`` before it have done, and whoever listens while the line changes is too.

Handoffs are looked at too, so that a new scoring of an old answer shows while it is under way. That is the one thing
that may be missed: one which commits out of order. Its score is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.feed.listeners import Cursor, lineage_of
from producers.feed.scan import SETTLING_SECONDS, Scan
from storage.feed import NEWS_LIMIT, read_lineage, read_marks, read_news
from storage.validation import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

# So far back the first look reads ids, to know most gaps at once. The others are found when the first doubt ends.
LOOK_BACK_IDS = 1_000
# So many transactions a standby may lack when it takes over, and readers are still told everything: minutes of a busy
# server. More would only cost more events, each of which says what a page may know already.
LOST_TRANSACTIONS = 1_000_000
_WITHOUT_GAPS = frozenset({"handoff"})


@dataclass(slots=True)
class _Doubt:
    """Something may have been missed of what transactions from ``since`` on have done.

    It ends when all that had begun before ``until`` are over.
    """

    since: int
    until: int
    noticed_at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look has found.

    Args:
        changed: Answers of those who listen, by id.
        claims: What has become of claims: claim, user, whether it is applied.
        is_certain: True when a doubt has ended: everybody is to be told what he missed.
        is_more: Whether more is to be read at once.
        cursor: Up to where everything has been seen.
        next_to_start: The transaction that starts next.
    """

    changed: list[int]
    claims: list[tuple[int, int, bool]]
    is_certain: bool
    is_more: bool
    cursor: Cursor
    next_to_start: int

    def since(self, cursor: Cursor | None) -> int | None:
        """From which transaction on a reader is to be told what came, or None: how everything stands."""
        if cursor is None or cursor.lineage == self.cursor.lineage:
            return None if cursor is None else cursor.transaction
        return max(0, min(cursor.transaction, self.next_to_start) - LOST_TRANSACTIONS)


class LineageChangedError(Exception):
    """Behind the same connection is another server: what was read before says nothing about it."""


class Looker:
    """Looks again and again, and each time finds what has come since."""

    def __init__(self) -> None:
        self._scans: dict[str, Scan] = {}
        self._doubts: list[_Doubt] = []
        self._told: str | None = None

    async def _lineage(self, conn: AsyncConnection, *, is_first: bool) -> int:
        # A server that does not say at first is not asked again.
        if is_first:
            self._told = await read_lineage(conn)
        elif self._told is not None and await read_lineage(conn, has_told=True) != self._told:
            # Behind a pooler no connection was lost.
            raise LineageChangedError
        return lineage_of(self._told)

    async def look(
        self,
        conn: AsyncConnection,
        *,
        owners: Mapping[Owner, object],
        watched: Mapping[int, str],
        claims: Iterable[int],
        now: float,
    ) -> Seen:
        """Look once, in the caller's transaction.

        Args:
            conn: The caller's connection.
            owners: Who listens.
            watched: Answers that are not scored, each with its state.
            claims: Those that were requested and not applied.
            now: Seconds of a clock that never goes back.

        Returns:
            What was found; valid only if the transaction is not lost.

        Raises:
            LineageChangedError: This is another server than before; look with another looker.
        """
        is_first = not self._scans
        lineage = await self._lineage(conn, is_first=is_first)
        if is_first:
            marks = await read_marks(conn)
            self._scans = {
                kind: Scan(max(0, high - LOOK_BACK_IDS), remembers_gaps=kind not in _WITHOUT_GAPS)
                for kind, high in marks.items()
            }
        gaps = {kind: scan.gaps for kind, scan in self._scans.items()}
        gaps["claim"] = [*{*gaps["claim"], *claims}]
        oldest_running, next_to_start, rows = await read_news(
            conn,
            marks={kind: scan.high for kind, scan in self._scans.items()},
            gaps=gaps,
            watched=watched,
        )
        ids: dict[str, list[int]] = {kind: [] for kind in (*self._scans, "watched")}
        changed: dict[int, None] = dict.fromkeys(
            row["id"] for row in rows if row["kind"] == "watched"
        )  # also what was erased or claimed away
        for row in rows:
            ids[row["kind"]].append(row["id"])
            if owner_of(row) in owners:
                changed[row["response_id"]] = None
        complete = [
            scan.saw(ids[kind], next_to_start=next_to_start, now=now) for kind, scan in self._scans.items()
        ]
        if is_first or not all(complete):
            self._notice(_Doubt(oldest_running, next_to_start, now))
        for scan in self._scans.values():
            scan.forget(oldest_running=oldest_running, now=now)
        # Nothing that is told at this look may carry a later cursor than the doubt that ends with it.
        cursor = self._doubts[0].since if self._doubts else oldest_running
        return Seen(
            changed=list(changed),
            claims=[
                (row["id"], row["claimed_by"], row["is_applied"]) for row in rows if row["kind"] == "claim"
            ],
            is_certain=self._ended_doubt(oldest_running, now),
            is_more=any(len(ids[kind]) >= NEWS_LIMIT for kind in self._scans),
            cursor=Cursor(cursor, lineage),
            next_to_start=next_to_start,
        )

    def _notice(self, doubt: _Doubt) -> None:
        # One that is to end soon must not be put off for ever by those that come after it: they are the next one.
        if len(self._doubts) > 1:
            self._doubts[-1].until, self._doubts[-1].noticed_at = doubt.until, doubt.noticed_at
        else:
            self._doubts.append(doubt)

    def _ended_doubt(self, oldest_running: int, now: float) -> bool:
        if not self._doubts:
            return False
        doubt = self._doubts[0]
        if doubt.until > oldest_running or now - doubt.noticed_at < SETTLING_SECONDS:
            return False
        del self._doubts[0]
        return True


def owner_of(row: Mapping[str, Any]) -> Owner:
    """Whose a row is; one without an owner belongs to nobody who could listen."""
    return Owner(row["user_id"], row["anonymous_token"])
