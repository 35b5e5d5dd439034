"""The circuit breaker: while the provider is in trouble, only single probes are sent to it."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# So many different answers in a row, with no success in between: one answer never opens the breaker.
OPENS_AFTER_ANSWERS = 5
# The first probe goes out after a second; the pause doubles to 8 s, so that full speed is back within ten
# seconds of the provider's recovery.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 8.0
# A provider may ask for more time, but not for hours.
RETRY_AFTER_CAP_SECONDS = 300.0


class Breaker:
    """Counts trouble and says how many answers may be taken now.

    Closed: as many as there are slots. Open: none, until the pause is over; then one, the probe. The first
    success closes it, whoever brings it.

    Args:
        clock: Seconds from any start, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._troubled: set[int] = set()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._probe_at: float | None = None
        self._probe: int | None = None
        self.reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the provider is considered to be in trouble."""
        return self._probe_at is not None

    def allowance(self, free_slots: int) -> int:
        """How many answers may be taken now: at most ``free_slots``."""
        if self._probe_at is None:
            return free_slots
        if self._probe is not None or self._clock() < self._probe_at:
            return 0
        return min(1, free_slots)

    def seconds_until_probe(self) -> float | None:
        """How long until a probe may go out; None where nothing but an event can change the allowance."""
        if self._probe_at is None or self._probe is not None:
            return None
        return max(0.0, self._probe_at - self._clock())

    def started(self, handoff_id: int) -> None:
        """An answer goes to the scorer; while the breaker is open it is the probe."""
        if self._probe_at is not None and self._probe is None and self._clock() >= self._probe_at:
            self._probe = handoff_id

    def succeeded(self) -> None:
        """The provider answered, well or badly: it works."""
        if self._probe_at is not None:
            logger.info("The provider answers again; the breaker is closed.")
        self._troubled.clear()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._probe_at = self._probe = self.reason = None

    def abandoned(self, handoff_id: int) -> None:
        """An answer was given up before the provider said anything."""
        if self._probe == handoff_id:
            self._probe = None

    def failed(self, handoff_id: int, reason: str, *, retry_after_seconds: float | None = None) -> None:
        """The provider failed on an answer, for a reason that has nothing to do with it."""
        self._troubled.add(handoff_id)
        if self._probe_at is None:
            if len(self._troubled) >= OPENS_AFTER_ANSWERS:
                logger.warning("The provider is in trouble; the breaker is open.", extra={"reason": reason})
                self._open(reason, retry_after_seconds)
        elif self._probe == handoff_id:
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2)
            self._open(reason, retry_after_seconds)

    def _open(self, reason: str, retry_after_seconds: float | None) -> None:
        asked = min(retry_after_seconds or 0.0, RETRY_AFTER_CAP_SECONDS)
        # Workers that saw the same outage must not probe in step.
        jitter = 0.75 + random.random() / 4  # noqa: S311 - no secret
        self._probe_at = self._clock() + max(asked, self._pause_seconds * jitter)
        self._probe = None
        self.reason = reason
