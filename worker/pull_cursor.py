"""Where in a lane the next pull begins."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

# A pull starts at the lane's beginning at least so often: what became due late, because its transaction was long, waits
# no longer than this.
RESTART_SECONDS = 0.5


class PullCursor:
    """Remembers up to where a lane has been pulled, so that the next pull need not walk over what is gone.

    What was leased or settled stays in the index until the next vacuum. Under a load of thousands a second that is a
    hundred thousand entries, all of them before the first that is due: reading past them took longer than the lease.

    Args:
        clock: Seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_at: datetime | None = None
        self._restarted_at = 0.0

    @property
    def after(self) -> datetime | None:
        """Where the next pull begins; None for the beginning."""
        if self._due_at is not None and self._clock() - self._restarted_at >= RESTART_SECONDS:
            self._due_at = None
        return self._due_at

    def pulled(self, leases: Sequence[dict[str, Any]], asked: int) -> bool:
        """Tell what a pull from here returned.

        Args:
            leases: Its rows, in any order.
            asked: How many it asked for; 0 where it was not sent.

        Returns:
            Whether the lane may hold more.
        """
        began_in_the_middle = self._due_at is not None
        if not asked:
            return True
        if len(leases) < asked:
            self._due_at = None
            return began_in_the_middle  # there may be some before
        if not began_in_the_middle:
            self._restarted_at = self._clock()
        self._due_at = max(lease["was_due_at"] for lease in leases)
        return True
