"""The circuit breaker: while the provider is in trouble, only single probes are sent to it."""

from __future__ import annotations

import logging
import math
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# So many different answers in a row, with no success in between: one answer never opens the breaker.
OPENS_AFTER_ANSWERS = 5
# The first probe goes out after a second; the pause doubles to 6 s. With what a sweep and a model call add, full speed
# is back within ten seconds of the provider's recovery.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 6.0
# A provider that hangs keeps a probe for as long as a call may take. So long it is waited for, then the next one goes.
PROBE_PATIENCE_SECONDS = LONGEST_PAUSE_SECONDS
# A provider may ask for more time, but not for hours.
RETRY_AFTER_CAP_SECONDS = 300.0


class Breaker:
    """Counts trouble and says how many answers may be taken now.

    Closed: as many as there are slots. Open: none, until the pause is over; then one, the probe, and another one
    whenever the last is not heard of for a while. The first success closes it, whoever brings it.

    One process's view. Where several share one breaker, :class:`worker.shared_breaker.SharedBreaker` tells it what the
    others know, and gives leave to each probe.

    Args:
        clock: Seconds from any start, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._troubled: set[int] = set()
        self._probes: set[int] = set()
        self._probe_at = 0.0
        self._opened_at: float | None = None
        self._leave_until = 0.0
        self.reason: str | None = None
        self.pause_seconds = FIRST_PAUSE_SECONDS
        # For those who share it: whether it is open for all of them, whether the provider itself asked for a pause,
        # how often trouble opened it or kept it open, and how often the provider served.
        self.is_shared = False
        self.asked_to_wait = False
        self.setbacks = 0
        self.successes = 0

    @property
    def is_open(self) -> bool:
        """Whether the provider is considered to be in trouble."""
        return self._opened_at is not None

    @property
    def open_seconds(self) -> float | None:
        """For how long it has been open; None where it is closed."""
        return None if self._opened_at is None else self._clock() - self._opened_at

    @property
    def awaits_leave(self) -> bool:
        """Whether the next probe is due and waits for the leave of those who share this breaker."""
        return self.is_open and self.is_shared and self._clock() >= max(self._probe_at, self._leave_until)

    def allowance(self, free_slots: int) -> int:
        """How many answers may be taken now: at most ``free_slots``."""
        if not self.is_open:
            return free_slots
        return min(1, free_slots) if self._may_probe else 0

    @property
    def _may_probe(self) -> bool:
        now = self._clock()
        if not self.is_shared or now < self._leave_until:
            return now >= self._probe_at
        # Whoever can write to Redis could keep the leave from everybody; not for ever.
        return now >= self._probe_at + RETRY_AFTER_CAP_SECONDS

    def seconds_until_probe(self) -> float | None:
        """How long until a probe may go out; None where the breaker is closed."""
        return max(0.0, self._probe_at - self._clock()) if self.is_open else None

    def started(self, handoff_id: int) -> None:
        """An answer goes to the scorer; while the breaker is open it is the probe."""
        if self.is_open and self._may_probe:
            self._probes.add(handoff_id)
            self._probe_at = self._clock() + PROBE_PATIENCE_SECONDS
            self._leave_until = 0.0

    def succeeded(self, handoff_id: int | None = None) -> None:
        """The provider answered, well or badly: it works.

        Where it had asked for a pause, only a probe tells that the pause is over; others were with it before.
        """
        self.successes += 1
        if self.is_open:
            if self.asked_to_wait and handoff_id not in self._probes:
                return
            logger.info("The provider answers again; the breaker is closed.")
        self._close()

    def abandoned(self, handoff_id: int) -> None:
        """An answer was given up before the provider said anything."""
        if handoff_id in self._probes:
            self._probes.discard(handoff_id)
            self._probe_at = self._clock()

    def failed(self, handoff_id: int, reason: str, *, retry_after_seconds: float | None = None) -> None:
        """The provider failed on an answer, for a reason that has nothing to do with it."""
        self._troubled.add(handoff_id)
        if not self.is_open:
            if len(self._troubled) >= OPENS_AFTER_ANSWERS:
                logger.warning("The provider is in trouble; the breaker is open.", extra={"reason": reason})
                self._opened_at = self._clock()
                self._wait(reason, retry_after_seconds)
        elif handoff_id in self._probes:
            self._probes.discard(handoff_id)
            self.pause_seconds = min(LONGEST_PAUSE_SECONDS, self.pause_seconds * 2)
            self._wait(reason, retry_after_seconds)

    def _wait(self, reason: str, retry_after_seconds: float | None) -> None:
        asked = min(retry_after_seconds or 0.0, RETRY_AFTER_CAP_SECONDS)
        if math.isnan(asked):  # a scorer's of somebody's own; no pause would ever be over
            asked = 0.0
        # Workers that saw the same outage must not probe in step.
        jitter = 0.75 + random.random() / 4  # noqa: S311 - no secret
        self._probe_at = self._clock() + max(asked, self.pause_seconds * jitter)
        self.asked_to_wait = asked > 0
        self.reason = reason
        self.setbacks += 1

    def _close(self) -> None:
        self._troubled.clear()
        self._probes.clear()
        self._opened_at = self.reason = None
        self._leave_until = 0.0
        self.is_shared = self.asked_to_wait = False
        self.pause_seconds = FIRST_PAUSE_SECONDS

    def share(self, reason: str, pause_seconds: float, *, asked_to_wait: bool) -> None:
        """It is open for all who share it: stop as well, and probe only with their leave.

        Args:
            reason: What they found, for people.
            pause_seconds: Their present pause between two probes.
            asked_to_wait: Whether the provider itself asked for a pause.
        """
        if not self.is_open:
            logger.warning(
                "Another worker found the provider in trouble; the breaker is open.", extra={"reason": reason}
            )
            self._opened_at = self._probe_at = self._clock()
            self.reason = reason
        self.pause_seconds = min(LONGEST_PAUSE_SECONDS, max(self.pause_seconds, pause_seconds))
        self.asked_to_wait = self.asked_to_wait or asked_to_wait
        self.is_shared = True

    def give_leave(self) -> None:
        """The others let this one send the next probe, if it does so soon."""
        self._leave_until = self._clock() + PROBE_PATIENCE_SECONDS

    def go_alone(self) -> None:
        """The others cannot be asked: probe as if there were none."""
        self.is_shared = False

    def close_with_others(self) -> None:
        """Another worker was served."""
        if self.is_open:
            logger.info("The provider answers another worker again; the breaker is closed.")
        self._close()
