"""The provider's limit, as :mod:`worker.rate_limits` keeps it: one window for the fleet, an appetite for each worker."""

from __future__ import annotations

from worker.rate_limits import LONG_WINDOW_SECONDS, RETRY_SECONDS, WINDOW_SECONDS

_MINUTE = 60


class Provider:
    """The window that Redis keeps for the fleet: what counts is this window and what is left of the last one.

    Weighted count = count of the last window * share of it that the sliding window still covers + count of this one
    (the "sliding window counter" of the library limits).

    Args:
        per_minute: None where there is no limit.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.limited = per_minute is not None
        per_minute = per_minute or 0
        if per_minute < LONG_WINDOW_SECONDS:
            self.amount, self.window_seconds = per_minute, float(LONG_WINDOW_SECONDS)
        else:
            self.amount, self.window_seconds = per_minute * WINDOW_SECONDS // _MINUTE, float(WINDOW_SECONDS)
        self.granted = 0
        self._window = 0
        self._last = self._this = 0

    def take(self, now: float, wanted: int) -> int:
        """Grant as much as there is, up to what is wanted."""
        window = int(now // self.window_seconds)
        if window != self._window:
            self._last = self._this if window == self._window + 1 else 0
            self._this = 0
            self._window = window
        covered = 1.0 - (now - window * self.window_seconds) / self.window_seconds
        granted = max(0, min(wanted, self.amount - int(self._last * covered) - self._this))
        self._this += granted
        self.granted += granted
        return granted


class Permits:
    """What one worker knows of the limit: how many it used lately, what it kept, and when to ask again."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._kept = 0
        self._kept_until = 0.0
        self._appetite = 1
        self.pause_until = 0.0

    def acquire(self, now: float, wanted: int, *, certain: bool) -> int:
        """Ask for permits, as :meth:`worker.rate_limits.RateLimits.acquire` does."""
        if not self._provider.limited:
            return wanted
        if now < self.pause_until:
            return 0
        if not certain:
            wanted = min(wanted, self._appetite)
        kept = min(wanted, self._kept if now < self._kept_until else 0)
        self._kept -= kept
        granted = kept + (self._provider.take(now, wanted - kept) if wanted > kept else 0)
        if not granted:
            self.pause_until = now + RETRY_SECONDS
        return granted

    def used(self, now: float, granted: int, used: int, *, certain: bool) -> None:
        """Tell what became of them; those that were not used serve the next answers for some seconds."""
        if not self._provider.limited:
            return
        if not certain:
            self._appetite = max(1, 2 * used if used == granted else used)
        if unused := granted - used:
            self._kept = unused + (self._kept if now < self._kept_until else 0)
            self._kept_until = now + WINDOW_SECONDS
