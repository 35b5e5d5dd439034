"""Pacing: work that can wait leaves processor time to work that cannot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# However busy the process is with other work, a piece of this one gets its turn after so long.
LONGEST_PAUSE_SECONDS = 1.0


class Pace:
    """Spaces pieces of work so that the event loop's thread is idle for a share of the time.

    An event loop that is never idle makes everybody wait at every ``await``, and a live answer on its way from the bell
    to the scorer has a dozen of them. Where a model does the work there is little to space: a piece costs milliseconds
    of our time and seconds of the model's.

    Args:
        share: The thread's processor time, of all time, above which the next piece waits; 0 to 1.
        clock: Seconds, never going back.
        cpu: Seconds of processor time that this thread used.
    """

    def __init__(
        self,
        share: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._clock = clock
        self._cpu = cpu
        self._began_at = -LONGEST_PAUSE_SECONDS
        self._cpu_then = 0.0

    def pause_seconds(self) -> float:
        """How long the next piece of work should wait; 0 where it may begin."""
        elapsed = self._clock() - self._began_at
        used = self._cpu() - self._cpu_then
        return max(0.0, min(LONGEST_PAUSE_SECONDS, used / self._share) - elapsed)

    def begin(self) -> None:
        """A piece of work begins."""
        self._began_at = self._clock()
        self._cpu_then = self._cpu()
