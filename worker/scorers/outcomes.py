"""The ways in which scoring one answer can end without a score.

A scorer raises one of these; anything else it raises counts as :class:`AttemptFailed`. The classes decide
what becomes of the handoff, so a scorer of your own only has to choose the right one.
"""

from __future__ import annotations


class ScoringError(Exception):
    """Scoring this answer did not produce a score.

    Args:
        reason: One sentence for the person who reads ``scoring dead list``. It must not contain answer
            text, keys or tokens: reasons are stored and logged.
    """

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason or (self.__doc__ or type(self).__name__).strip().partition("\n")[0]
        super().__init__(self.reason)


class AttemptFailed(ScoringError):  # noqa: N818 - an outcome, named as operators call it
    """The scorer could not score this answer this time.

    Uses up one attempt; the handoff is tried again with growing pauses and is dead after the last attempt.
    """


class ProviderTrouble(ScoringError):  # noqa: N818
    """The provider or the way to it failed; this says nothing about the answer.

    This will not use up an attempt: the handoff is postponed, however often that happens.

    Args:
        reason: As for every outcome.
        retry_after_seconds: How long the provider asked us to wait, if it did.
    """

    def __init__(self, reason: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Hopeless(ScoringError):  # noqa: N818
    """Trying this answer again unchanged cannot succeed.

    The handoff is dead at once, with the reason, until a person retries or dismisses it.
    """


class Refused(Hopeless):
    """The model refused to score this answer."""


class Misconfigured(Hopeless):
    """The provider rejects our configuration (key, model name, base URL), whatever the answer is.

    Several in a row from different answers open the breaker, so that a wrong key does not bury a backlog.
    """
