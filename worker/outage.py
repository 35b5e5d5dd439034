"""One log line when trouble begins and one when it ends, however often it is met in between."""

from __future__ import annotations

import logging
import time

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from storage.errors import StorageError, StorageUnavailableError

logger = logging.getLogger(__name__)

_AWAY = (StorageUnavailableError, RedisError, OSError, TimeoutError)


def _is_refusal(exc: BaseException) -> bool:
    """Whether Redis is there and says no: out of memory, a key of another type, no permission. A fail-over passes."""
    return isinstance(exc, ResponseError) and not isinstance(exc, ReadOnlyError)


class Outage:
    """Remembers whether something is away.

    Args:
        what: What may be away, as the start of a sentence: "PostgreSQL", "Redis".
        consequence: What that means meanwhile, as a whole sentence.
    """

    def __init__(self, what: str, consequence: str) -> None:
        self._what = what
        self._consequence = consequence
        self._since: float | None = None

    @property
    def ongoing(self) -> bool:
        """Whether it is away now."""
        return self._since is not None

    def met(self, exc: BaseException) -> None:
        """It failed. Logged the first time only; never with a driver's message, which may quote secrets."""
        if self._since is not None:
            return
        self._since = time.monotonic()
        detail = {"error": str(exc) if isinstance(exc, StorageError) else type(exc).__name__}
        if isinstance(exc, _AWAY) and not _is_refusal(exc):
            logger.warning("%s is away. %s", self._what, self._consequence, extra=detail)
        elif isinstance(exc, (StorageError, ResponseError)):
            # It is there and says no: that does not end by itself, a person must act.
            logger.error("%s refuses us. %s", self._what, self._consequence, extra=detail)
        else:
            logger.error("This was not foreseen. %s", self._consequence, extra=detail, exc_info=exc)

    def over(self) -> None:
        """It works."""
        if self._since is not None:
            logger.info(
                "%s is back.", self._what, extra={"seconds": round(time.monotonic() - self._since, 1)}
            )
            self._since = None
