"""Reads the ids of one table so that none is skipped, in whatever order their transactions commit."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

# Ids that are remembered as missing. Each costs about 200 bytes, and an index lookup at every look.
MAX_GAPS = 2_000
# An id is drawn a moment before its transaction has a number of its own. Whoever was stopped just there is waited for
# so long, seconds; then the id counts as lost once no transaction of that time runs any more.
SETTLING_SECONDS = 10.0


class Scan:
    """How far a table has been read: everything up to ``high`` was seen, but for the ``gaps``.

    An id below the highest that is not visible belongs to a transaction that still runs, or was rolled back. It is
    looked for again until every transaction that could hold it is over.

    Args:
        high: Where to begin: ids above it are new.
        remembers_gaps: False for a table in which rows come and go, where what is missed does not matter.
    """

    def __init__(self, high: int, *, remembers_gaps: bool = True) -> None:
        self.high = high
        self._remembers_gaps = remembers_gaps
        self._gaps: dict[int, tuple[int, float]] = {}  # in the order in which they were noticed

    @property
    def gaps(self) -> list[int]:
        """Ids to look for again."""
        return list(self._gaps)

    def saw(self, ids: Collection[int], *, next_to_start: int, now: float) -> bool:
        """Note what one look has seen.

        Args:
            ids: Visible ones, above ``high`` or from the gaps.
            next_to_start: The transaction that starts next, as the look's snapshot has it.
            now: Seconds of a clock that never goes back.

        Returns:
            False where there were more gaps than can be remembered: then some ids are not looked for any more.
        """
        complete = True
        for new in sorted(ids):
            self._gaps.pop(new, None)
            if new <= self.high:
                continue
            if self._remembers_gaps:
                missing = range(self.high + 1, new)
                # Numbers may leap by thousands of millions: only the last of them are looked for.
                complete = complete and len(missing) <= MAX_GAPS
                self._gaps.update(dict.fromkeys(missing[-MAX_GAPS:], (next_to_start, now)))
            self.high = new
        if (excess := len(self._gaps) - MAX_GAPS) > 0:
            complete = False
            for oldest in list(islice(self._gaps, excess)):
                del self._gaps[oldest]
        return complete

    def forget(self, *, oldest_running: int, now: float) -> None:
        """Give up the gaps that nobody can fill any more.

        Args:
            oldest_running: The oldest transaction that runs, as the look's snapshot has it.
            now: Seconds of the same clock.
        """
        for gap, (started_before, noticed_at) in list(self._gaps.items()):
            if started_before > oldest_running or now - noticed_at < SETTLING_SECONDS:
                break  # those behind it were noticed later
            del self._gaps[gap]
