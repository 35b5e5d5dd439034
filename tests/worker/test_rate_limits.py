"""Rate limits: no more than the provider allows, for the whole fleet, and live answers before bulk ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from producers.bell import connect_redis
from tests.producers.waiting import eventually
from worker.provider_report import RateLimitReport
from worker.rate_limits import LIVE_SHARE, LONG_WINDOW_SECONDS, WINDOW_SECONDS, RateLimits
from worker.scorers.protocol import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from demo.servers import Servers

    Make = Callable[..., RateLimits]

pytestmark = pytest.mark.commits

# Ten permits in a window of ten seconds.
REQUESTS = 60
IN_WINDOW = REQUESTS * WINDOW_SECONDS // 60


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect_redis(redis_url, timeout_seconds=10)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def _one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that no test outlives, however slow the machine."""
    monkeypatch.setattr("worker.rate_limits.WINDOW_SECONDS", 10 * 3600)
    monkeypatch.setattr("worker.rate_limits._MINUTE", 3600 * 60)
    monkeypatch.setattr("worker.rate_limits.RETRY_SECONDS", 0.0)


def limits(redis: Redis, **changes: Any) -> RateLimits:
    given: dict[str, Any] = {
        "provider": "models.example/a-model",
        "requests_per_minute": REQUESTS,
        "tokens_per_minute": None,
        "expected_tokens": 100,
        "fleet": lambda: 1,
    }
    return RateLimits(redis, **given | changes)


async def take(rates: RateLimits, wanted: int, *, lane: str = "live") -> int:
    """Take permits and use all of them, for answers that are numbered from 0."""
    granted = await rates.acquire(wanted, lane=lane, certain=True)
    rates.used(granted, granted, certain=True)
    for handoff_id in range(granted):
        rates.began(handoff_id)
    return granted


async def test_no_limits_no_question(redis: Redis) -> None:
    """Where nothing is set, everything is granted and Redis is not asked."""
    rates = limits(redis, requests_per_minute=None)

    assert await take(rates, 1000) == 1000
    rates.ended(0, Usage(requests=1, input_tokens=5))
    assert rates.report() is None
    assert await redis.dbsize() == 0


async def test_a_window_is_not_exceeded(redis: Redis) -> None:
    """What there is, and then nothing."""
    rates = limits(redis)

    assert [await take(rates, 4) for _ in range(4)] == [4, 4, 2, 0]


async def test_the_fleet_shares_one_limit(redis: Redis) -> None:
    """Three workers together get what one would."""
    fleet = [limits(redis) for _ in range(3)]

    granted = [await take(rates, 4) for rates in fleet]

    assert granted == [4, 4, 2]


async def test_other_providers_have_other_limits(redis: Redis) -> None:
    """Workers that ask another model do not count."""
    assert await take(limits(redis), 100) == IN_WINDOW
    assert await take(limits(redis, provider="models.example/another"), 100) == IN_WINDOW


async def test_bulk_leaves_a_share_to_live(redis: Redis) -> None:
    """A rescore of a hundred thousand answers never takes the last permits."""
    rates = limits(redis)

    bulk = await take(rates, 100, lane="bulk")

    assert bulk == IN_WINDOW - int(IN_WINDOW * LIVE_SHARE)
    assert await take(rates, 1, lane="bulk") == 0
    assert await take(rates, 100) == IN_WINDOW - bulk


async def test_a_refused_lane_pauses_alone(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bulk is refused must not keep a live answer waiting."""
    monkeypatch.setattr("worker.rate_limits.RETRY_SECONDS", 3600.0)
    rates = limits(redis)
    await take(rates, 100, lane="bulk")
    await take(rates, 100, lane="bulk")

    assert rates.pause_seconds("bulk") > 0
    assert rates.pause_seconds("live") == 0
    assert await take(rates, 1) == 1


async def test_tokens_are_charged_at_what_they_are_expected_to_cost(redis: Redis) -> None:
    """600 tokens a minute, 100 in a window, 30 a request: three."""
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=600, expected_tokens=30)

    assert await take(rates, 100) == 3
    assert rates.report() == RateLimitReport(shared=True, tokens_per_minute=600, tokens_left_in_window=100)


async def test_what_a_reply_cost_beyond_is_owed(redis: Redis) -> None:
    """The first reply costs 60 more than was expected: for that much less is granted next."""
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=1200, expected_tokens=20)
    assert await take(rates, 1) == 1
    rates.ended(0, Usage(requests=1, input_tokens=60, output_tokens=20))

    # 200 in a window, 20 charged, 60 owed; replies are expected to cost 26 from now on.
    assert await take(rates, 100) == 4


async def test_a_repair_is_a_request_too(redis: Redis) -> None:
    """A score that took two requests owes one."""
    rates = limits(redis)
    assert await take(rates, 4) == 4
    rates.ended(0, Usage(requests=2))

    assert await take(rates, 100) == IN_WINDOW - 4 - 1


async def test_what_nobody_knows_is_charged_as_expected(redis: Redis) -> None:
    """A call that failed may have cost something: its permit stays charged, and nothing is owed."""
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=1200, expected_tokens=20)
    assert await take(rates, 4) == 4
    rates.ended(0, None)

    assert await take(rates, 100) == 6


@pytest.mark.parametrize("tokens", [float("nan"), -5])
async def test_a_count_of_tokens_that_makes_no_sense_is_not_charged(redis: Redis, tokens: Any) -> None:
    """A scorer of somebody's own may say anything; what cannot be owed must not spoil the account."""
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=1200, expected_tokens=20)
    assert await take(rates, 4) == 4
    rates.ended(0, Usage.model_construct(requests=1, input_tokens=tokens, output_tokens=0))

    assert await take(rates, 100) == 6


async def test_each_answer_is_charged_what_its_own_permit_was_not(redis: Redis) -> None:
    """A rush that was let through at a low estimate owes all of the rest, whatever is expected by now."""
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=12_000, expected_tokens=20)
    assert await take(rates, 100) == 100
    for handoff_id in range(100):
        rates.ended(handoff_id, Usage(requests=1, input_tokens=100))

    assert rates._tokens is not None
    assert rates._tokens.owed == pytest.approx(100 * (100 - 20))


@pytest.mark.parametrize("remainder", [0.0, 0.6, 0.999])
@pytest.mark.parametrize("lane", ["live", "bulk"])
async def test_an_answer_that_costs_more_than_a_window_is_saved_for(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, remainder: float, lane: str
) -> None:
    """Several windows pay for it; no remainder and no reserve may keep it waiting for ever."""
    monkeypatch.setattr("worker.rate_limits.WINDOW_SECONDS", 1)
    monkeypatch.setattr("worker.rate_limits._MINUTE", 6)
    rates = limits(redis, requests_per_minute=None, tokens_per_minute=600, expected_tokens=150)
    assert rates._tokens is not None
    rates._tokens.owed = remainder

    for _ in range(2):

        async def granted() -> bool:
            assert rates._tokens is not None
            assert rates._tokens.owed >= -150
            return await take(rates, 1, lane=lane) == 1

        await eventually(granted)


@pytest.mark.parametrize("forged", ["abc", "1e400", "", "9" * 400])
async def test_nonsense_in_redis_does_not_stop_it(
    redis: Redis, forged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to Redis can spoil the count; each worker then lives on its share."""
    rates = limits(redis)
    await take(rates, 1)
    for key in await redis.keys("*rate*"):
        await redis.set(key, forged)

    assert 0 <= await take(rates, 100) <= IN_WINDOW
    assert await take(limits(redis, provider="another"), 1) == 1
    assert "Traceback" not in caplog.text


async def test_both_limits_count(redis: Redis) -> None:
    """What tokens refuse is not lost for requests."""
    rates = limits(redis, tokens_per_minute=600, expected_tokens=50)

    assert await take(rates, 8) == 2
    assert await take(limits(redis), 100) == IN_WINDOW - 8
    rates._tokens = None
    assert rates._requests is not None
    assert rates._requests.owed == -6


async def test_permits_that_were_not_used_serve_the_next(redis: Redis) -> None:
    """A pull that finds less than it asked for gives nothing away."""
    rates = limits(redis)
    granted = await rates.acquire(6, lane="live", certain=True)
    rates.used(granted, 1, certain=True)

    assert await take(rates, 100) == IN_WINDOW - 1


async def test_who_does_not_know_asks_for_little(redis: Redis) -> None:
    """A sweep that finds one answer must not take a hundred permits from the fleet; a backlog soon gets them all."""
    rates = limits(redis, requests_per_minute=60_000)
    asked = []
    for _ in range(5):
        granted = await rates.acquire(100, lane="live", certain=False)
        asked.append(granted)
        rates.used(granted, granted, certain=False)
    granted = await rates.acquire(100, lane="live", certain=False)
    rates.used(granted, 0, certain=False)

    assert asked == [1, 2, 4, 8, 16]
    assert await rates.acquire(100, lane="live", certain=False) == 1


async def test_without_redis_each_has_its_share(breakable: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Ten in a window for five workers: two each; back again, they share what Redis counts."""
    client = connect_redis(breakable.redis_url, timeout_seconds=1)
    fleet = [limits(client, fleet=lambda: 5, requests_per_minute=5 * REQUESTS) for _ in range(2)]
    breakable.redis.kill()

    assert [await take(rates, 100) for rates in fleet] == [IN_WINDOW, IN_WINDOW]
    assert await take(fleet[0], 100) == 0
    report = fleet[0].report()
    assert report is not None
    assert report.shared is False

    breakable.redis.start()
    for rates in fleet:
        rates._alone_until = 0.0
    assert await take(fleet[0], 30) == 30
    assert await take(fleet[1], 100) == 20
    await client.aclose()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


async def test_a_window_ends(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Redis's clock alone: what was used up comes back."""
    monkeypatch.setattr("worker.rate_limits.WINDOW_SECONDS", 1)
    monkeypatch.setattr("worker.rate_limits._MINUTE", 6)
    rates = limits(redis)
    assert await take(rates, 100) == IN_WINDOW

    async def again() -> bool:
        return await take(rates, 1) == 1

    await eventually(again)


@pytest.mark.parametrize(
    ("per_minute", "fleet", "amount", "seconds"),
    [
        (10_000, 1, 1666, WINDOW_SECONDS),
        (60, 1, 10, WINDOW_SECONDS),
        (59, 1, 59, LONG_WINDOW_SECONDS),
        (3, 1, 3, LONG_WINDOW_SECONDS),
        (10_000, 10, 166, WINDOW_SECONDS),
        (3, 10, 1, LONG_WINDOW_SECONDS),
    ],
)
def test_windows(
    monkeypatch: pytest.MonkeyPatch, per_minute: int, fleet: int, amount: int, seconds: int
) -> None:
    """A minute is given out in parts, unless there is too little to part; everybody has at least one."""
    from worker.rate_limits import _Limit  # noqa: PLC0415 - what is asked about

    monkeypatch.undo()

    item = _Limit("requests", per_minute).item(fleet)

    assert (item.amount, item.get_expiry()) == (amount, seconds)
