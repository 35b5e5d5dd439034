"""Announce what was committed, without anybody waiting for Redis."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from producers.contract import MAX_IDS, ClaimResponses, Payload, ScoreResponses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from producers.bell import Bell

logger = logging.getLogger(__name__)

# Ids that wait for Redis. What exceeds it is dropped: it is due in PostgreSQL, and the sweep finds it.
MAX_PENDING_IDS = 50_000
# After a failure, the next try waits so long; an outage must cost a web process nothing.
RETRY_PAUSE_SECONDS = 0.5


def _is_id(value: object) -> bool:
    # A single one that cannot be written would refuse a whole message, and every one after it.
    return type(value) is int and 0 < value < 2**63


def _chunks(ids: list[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(ids), MAX_IDS):
        yield tuple(ids[start : start + MAX_IDS])


class Announcer:
    """Rings for ids in the background; whatever gathers while one ring is in flight goes into the next."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._response_ids: list[int] = []
        self._claim_ids: list[int] = []
        self._task: asyncio.Task[None] | None = None
        self._failing: bool | None = None
        self._closed = False

    @property
    def is_failing(self) -> bool | None:
        """Whether Redis did not take the last announcement; None where none has been tried."""
        return self._failing

    def responses(self, response_ids: Iterable[int]) -> None:
        """Announce stored responses; returns at once."""
        self._add(self._response_ids, response_ids)

    def claims(self, claim_ids: Iterable[int]) -> None:
        """Announce stored claims; returns at once."""
        self._add(self._claim_ids, claim_ids)

    def _add(self, pending: list[int], ids: Iterable[int]) -> None:
        if self._closed:
            return  # the sweep finds them; a task of ours would outlive the Redis client
        pending.extend(filter(_is_id, ids))
        del pending[:-MAX_PENDING_IDS]
        if pending and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="scoring-announcer")

    def _take(self) -> list[Payload]:
        payloads: list[Payload] = [ScoreResponses(response_ids=ids) for ids in _chunks(self._response_ids)]
        payloads += [ClaimResponses(claim_ids=ids) for ids in _chunks(self._claim_ids)]
        self._response_ids.clear()
        self._claim_ids.clear()
        return payloads

    async def _run(self) -> None:
        while self._response_ids or self._claim_ids:
            try:
                await self._bell.ring(self._take())
            except (RedisError, OSError, TimeoutError) as exc:
                if not self._failing:
                    # Once per outage, and not the exception's text: it may quote the URL.
                    logger.warning(
                        "Redis does not take announcements; answers stay safe in PostgreSQL and the sweep finds them.",
                        extra={"error": type(exc).__name__},
                    )
                self._failing = True
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            else:
                if self._failing:
                    logger.info("Redis takes announcements again.")
                self._failing = False

    async def close(self, timeout_seconds: float) -> None:
        """Announce what is pending, but give up after a while: the sweep finds the rest.

        Args:
            timeout_seconds: Longest wait, seconds.
        """
        self._closed = True
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=timeout_seconds)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task})
