"""Rate limits of the provider: so many requests and tokens a minute, for the whole fleet."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError, ResponseError

from worker.outage import Outage
from worker.provider_report import RateLimitReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from worker.scorers.protocol import Usage

# A minute's worth is given out in parts, so that the first seconds of a rush do not use it up and leave a live answer
# waiting for the rest of the minute. Limits of less than one a second have no use for that.
WINDOW_SECONDS, LONG_WINDOW_SECONDS = 10, 60
_MINUTE = 60
# Of every window so much is kept from the bulk lane, for live answers that come meanwhile.
LIVE_SHARE = 0.2
# With nothing left, look again after so long.
RETRY_SECONDS = 0.25
# Without Redis each worker lives on its own share for so long before it asks again.
ALONE_SECONDS = 2.0
# How much of the newest reply goes into what the next one is expected to cost.
_NEWEST = 0.1
_PREFIX = "scoring:rate"
# No answer costs so many requests or tokens.
_MOST = 100_000_000


@dataclass(slots=True)
class _Limit:
    """One limit. What a reply cost beyond its estimate is owed, and paid before anything new is granted.

    Less than nothing is owed where more was paid than used: saved for an answer that costs more than was left.
    """

    name: str
    per_minute: int
    owed: float = 0.0

    def item(self, fleet: int = 1) -> RateLimitItemPerSecond:
        """What the limiter counts: this limit, or its fair share of one in a fleet."""
        share = max(1, self.per_minute // fleet)
        if share < LONG_WINDOW_SECONDS:
            return RateLimitItemPerSecond(share, LONG_WINDOW_SECONDS, namespace=_PREFIX)
        return RateLimitItemPerSecond(share * WINDOW_SECONDS // _MINUTE, WINDOW_SECONDS, namespace=_PREFIX)


class RateLimits:
    """Permits to ask the provider. Answers are leased only with a permit, so that none waits in a worker's hands.

    Counted in Redis, by Redis's clock, for the whole fleet. While Redis is away every worker lives on a fair share:
    the limit divided by the number of workers.

    What a request costs in tokens is known only afterwards. A permit is charged at what the latest replies cost on
    average, and the difference later.

    Args:
        redis: A client with short time-outs; stays the caller's.
        provider: Whose limits; all workers that share them say the same.
        requests_per_minute: None where there is no limit.
        tokens_per_minute: Input and output together; None where there is no limit.
        expected_tokens: What one request costs, until the first reply tells.
        fleet: How many workers there are.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        provider: str,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        expected_tokens: int,
        fleet: Callable[[], int],
    ) -> None:
        self._provider = provider
        self._requests = _Limit("requests", requests_per_minute) if requests_per_minute else None
        self._tokens = _Limit("tokens", tokens_per_minute) if tokens_per_minute else None
        self._expected_tokens = float(expected_tokens)
        self._fleet = fleet
        # Through our own pool: with its time-outs, and where Sentinel says that the primary is.
        options: dict[str, Any] = {"connection_pool": redis.connection_pool}
        storage = RedisStorage("async+redis://", implementation="redispy", key_prefix=_PREFIX, **options)
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._alone_until = 0.0
        self._kept = 0
        self._kept_until = 0.0
        self._appetite = 1
        self._exhausted_until = {"live": 0.0, "bulk": 0.0}
        self._left: dict[str, int] = {}
        # What was charged for each answer that is with the scorer.
        self._charged: dict[int, float] = {}
        self._outage = Outage("Redis", "Each worker keeps to its share of the provider's rate limits.")

    @property
    def _unlimited(self) -> bool:
        return self._requests is None and self._tokens is None

    def pause_seconds(self, lane: str) -> float:
        """How long a lane will get no permit, because there was none a moment ago; 0 where it may ask now."""
        return max(0.0, self._exhausted_until[lane] - time.monotonic())

    async def acquire(self, wanted: int, *, lane: str, certain: bool) -> int:
        """Ask for permits.

        Args:
            wanted: How many, at least one.
            lane: ``bulk`` leaves a fifth of every window to live answers.
            certain: Whether all of them will be used. If not, only as many are taken as were used lately,
                twice as many each time: a permit that is not used is lost to the fleet.

        Returns:
            How many were granted, 0 to ``wanted``.
        """
        if self._unlimited:
            return wanted
        if self.pause_seconds(lane):
            return 0
        if not certain:
            wanted = min(wanted, self._appetite)
        kept = min(wanted, self._kept if time.monotonic() < self._kept_until else 0)
        self._kept -= kept
        granted = kept
        if wanted > kept:
            granted += await self._ask(wanted - kept, lane)
        if granted == 0:
            self._exhausted_until[lane] = time.monotonic() + RETRY_SECONDS
        return granted

    def used(self, granted: int, used: int, *, certain: bool) -> None:
        """Tell what became of permits; those that were not used serve the next answers for some seconds."""
        if self._unlimited or not granted:
            return
        if not certain:
            self._appetite = max(1, 2 * used if used == granted else used)
        if unused := granted - used:
            now = time.monotonic()
            self._kept = unused + (self._kept if now < self._kept_until else 0)
            self._kept_until = now + WINDOW_SECONDS

    def began(self, handoff_id: int) -> None:
        """Tell that a permit is used for this answer."""
        if not self._unlimited:
            self._charged[handoff_id] = self._expected_tokens

    def ended(self, handoff_id: int, usage: Usage | None) -> None:
        """Tell what an answer cost, to be charged with the next permits; None where nobody knows."""
        charged = self._charged.pop(handoff_id, None)
        if usage is None or charged is None:
            return
        # A scorer of somebody's own may say anything: what is no number, below nothing or beyond all bounds would spoil
        # the account for ever.
        if self._requests is not None and 1 < usage.requests < _MOST:
            self._requests.owed += usage.requests - 1
        if self._tokens is not None and 0 < (tokens := usage.input_tokens + usage.output_tokens) < _MOST:
            self._tokens.owed += tokens - charged
            self._expected_tokens += _NEWEST * (tokens - self._expected_tokens)

    def report(self) -> RateLimitReport | None:
        """The limits, for people; None where there are none."""
        limits = [limit for limit in (self._requests, self._tokens) if limit is not None]
        if not limits:
            return None
        figures: dict[str, int] = {f"{limit.name}_per_minute": limit.per_minute for limit in limits}
        figures |= {f"{name}_left_in_window": left for name, left in self._left.items()}
        return RateLimitReport(shared=time.monotonic() >= self._alone_until, **figures)

    async def _ask(self, wanted: int, lane: str) -> int:
        if time.monotonic() >= self._alone_until:
            try:
                granted = await self._grant(self._shared, wanted, lane, fleet=1)
            except (RedisError, OSError, TimeoutError, ValueError, OverflowError) as exc:
                foreign = isinstance(exc, (ValueError, OverflowError))
                self._outage.met(
                    ResponseError("It counts with something that is no number.") if foreign else exc
                )
                self._alone_until = time.monotonic() + ALONE_SECONDS
            else:
                self._outage.over()
                return granted
        return await self._grant(self._alone, wanted, lane, fleet=max(1, self._fleet()))

    async def _grant(
        self, limiter: SlidingWindowCounterRateLimiter, wanted: int, lane: str, *, fleet: int
    ) -> int:
        granted = wanted
        if self._requests is not None:
            granted = await self._grant_of(limiter, self._requests, granted, 1.0, lane, fleet=fleet)
        if self._tokens is not None and granted:
            requests = granted
            granted = await self._grant_of(
                limiter, self._tokens, granted, self._expected_tokens, lane, fleet=fleet
            )
            if requests > granted:
                # Their requests are counted, their tokens are not: they are owed less.
                self._credit(requests - granted)
        return granted

    def _credit(self, requests: int) -> None:
        if self._requests is not None:
            self._requests.owed -= requests

    async def _grant_of(
        self,
        limiter: SlidingWindowCounterRateLimiter,
        limit: _Limit,
        wanted: int,
        cost: float,
        lane: str,
        *,
        fleet: int,
    ) -> int:
        """Take as much of one limit as there is, up to what is wanted."""
        item = limit.item(fleet)
        left = (await limiter.get_window_stats(item, self._provider, limit.name)).remaining
        self._left[limit.name] = left
        if lane == "bulk":
            left -= int(item.amount * LIVE_SHARE)
        granted = min(wanted, int((left - limit.owed) // cost))
        # Where there is not enough for one, it is saved for: what is owed becomes less than nothing, by one answer's
        # cost at most. An answer may cost more than a whole window holds.
        payment = math.ceil(max(0.0, limit.owed + max(1, granted) * cost))
        payment = min(payment, left)
        if payment > 0:
            if not await limiter.hit(item, self._provider, limit.name, cost=payment):
                return 0  # another worker was quicker
            limit.owed -= payment
        if granted < 1:
            return 0
        limit.owed += granted * cost
        return granted
