"""One breaker for the fleet: what one worker finds out, all of them know, and one at a time probes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from producers.bell import connect_redis
from tests.producers.waiting import eventually, settled
from tests.worker.scripted import in_background
from worker.breaker import OPENS_AFTER_ANSWERS, PROBE_PATIENCE_SECONDS, RETRY_AFTER_CAP_SECONDS, Breaker
from worker.shared_breaker import SharedBreaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from demo.servers import Servers

pytestmark = pytest.mark.commits

PROVIDER = "models.example/a-model"
STATE_KEY = f"scoring:breaker:{PROVIDER}"


class Clock:
    """Goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Member:
    """A worker, as far as it has a breaker."""

    def __init__(self, redis: Redis) -> None:
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.has_room = True
        self.changes = 0
        self.shared = SharedBreaker(
            redis,
            self.breaker,
            provider=PROVIDER,
            has_room=lambda: self.has_room,
            on_change=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    def meet_trouble(self, **trouble: Any) -> None:
        for handoff_id in range(OPENS_AFTER_ANSWERS):
            self.breaker.failed(handoff_id, "HTTP 503", **trouble)

    async def exchange(self) -> None:
        await self.shared.exchange()

    async def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.exchange()

    @property
    def allowance(self) -> int:
        return self.breaker.allowance(100)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect_redis(redis_url, timeout_seconds=10)
    yield client
    await client.aclose()


@pytest.fixture
def fleet(redis: Redis) -> list[Member]:
    return [Member(redis) for _ in range(3)]


async def pause_over(redis: Redis) -> None:
    """What Redis does by itself after the pause between two probes."""
    await redis.delete(f"{STATE_KEY}:probe")


async def open_all(fleet: list[Member], **trouble: Any) -> None:
    fleet[0].meet_trouble(**trouble)
    for member in fleet:
        await member.exchange()


async def test_trouble_of_one_stops_all(fleet: list[Member]) -> None:
    """The others stop without finding out by themselves, and know why."""
    await open_all(fleet)

    assert [member.allowance for member in fleet] == [0, 0, 0]
    assert {member.breaker.reason for member in fleet} == {"HTTP 503"}
    assert fleet[1].changes > 0


async def test_one_worker_probes_at_a_time(fleet: list[Member], redis: Redis) -> None:
    """After the pause one of them gets leave; the next one only when the probe has failed or is not heard of."""
    await open_all(fleet)
    for member in fleet:
        await member.wait(1.0)
    assert [member.allowance for member in fleet] == [0, 0, 0], "the pause is Redis's to end"

    await pause_over(redis)
    for member in fleet:
        await member.exchange()

    assert sorted(member.allowance for member in fleet) == [0, 0, 1]


async def test_a_failed_probe_keeps_all_waiting_for_longer(fleet: list[Member], redis: Redis) -> None:
    """The pause doubles for the fleet, not for each of its members."""
    await open_all(fleet)
    await pause_over(redis)
    await fleet[1].exchange()
    fleet[1].breaker.started(99)
    fleet[1].breaker.failed(99, "HTTP 500")
    await fleet[1].exchange()

    for member in fleet:
        await member.wait(0)

    assert [member.allowance for member in fleet] == [0, 0, 0]
    assert {member.breaker.pause_seconds for member in fleet} == {2.0}
    assert 1000 < await redis.pttl(f"{STATE_KEY}:probe") <= 2000


async def test_a_success_of_one_lets_all_go(fleet: list[Member], redis: Redis) -> None:
    """Full speed for the whole fleet, within one exchange of news."""
    await open_all(fleet)
    await pause_over(redis)
    await fleet[2].exchange()
    fleet[2].breaker.started(99)
    fleet[2].breaker.succeeded(99)
    for member in reversed(fleet):
        await member.exchange()

    assert [member.allowance for member in fleet] == [100, 100, 100]


async def test_trouble_that_one_worker_has_alone_stays_its_own(fleet: list[Member]) -> None:
    """While another worker is served, a worker whose own way to the provider is broken stops alone."""
    fleet[1].breaker.succeeded(1)
    await fleet[1].exchange()

    await open_all(fleet)

    assert [member.allowance for member in fleet] == [0, 100, 100]
    assert fleet[0].breaker.seconds_until_probe()
    fleet[0].clock.now += 1.0
    await fleet[0].exchange()
    assert fleet[0].allowance == 1, "it probes by itself"


async def test_when_nobody_is_served_any_more_it_is_everybody_s(fleet: list[Member], redis: Redis) -> None:
    """The sign of the last success fades within seconds."""
    fleet[1].breaker.succeeded(1)
    await fleet[1].exchange()
    await open_all(fleet)
    assert 0 < await redis.pttl(f"{STATE_KEY}:served") <= 3000
    await redis.delete(f"{STATE_KEY}:served")

    for member in fleet:
        await member.exchange()

    assert [member.allowance for member in fleet] == [0, 0, 0]


async def test_an_asked_for_pause_is_everybody_s(fleet: list[Member], redis: Redis) -> None:
    """A provider that says when to come back says it to the account, even while it still serves others."""
    fleet[1].breaker.succeeded(1)
    await fleet[1].exchange()
    await open_all(fleet, retry_after_seconds=20)
    fleet[1].breaker.succeeded(2)
    fleet[2].breaker.succeeded(3)

    for member in fleet:
        await member.exchange()

    assert [member.allowance for member in fleet] == [0, 0, 0]
    assert 18_000 < await redis.pttl(f"{STATE_KEY}:probe") <= 20_000


async def test_a_newcomer_stops_before_it_takes_anything(fleet: list[Member], redis: Redis) -> None:
    """Who starts during an outage does not have to find out by himself."""
    await open_all(fleet)
    newcomer = Member(redis)

    await newcomer.exchange()

    assert newcomer.allowance == 0


async def test_a_redis_that_forgot_does_not_close_it(fleet: list[Member], redis: Redis) -> None:
    """Empty is not "closed": whoever knows better says it again."""
    await open_all(fleet)
    await redis.flushdb()

    for member in fleet:
        await member.exchange()

    assert [member.allowance for member in fleet] == [0, 0, 0]
    assert json.loads(await redis.get(STATE_KEY))["open"] is True


async def test_old_news_closes_nothing(fleet: list[Member], redis: Redis) -> None:
    """That the provider worked before this outage says nothing about this outage."""
    await open_all(fleet)
    fleet[0].breaker.succeeded(1)
    for member in fleet:
        await member.exchange()
    await redis.delete(f"{STATE_KEY}:served")
    fleet[1].meet_trouble()
    fleet[1].breaker.failed(5, "HTTP 503")

    await fleet[1].exchange()
    await fleet[0].exchange()

    await fleet[1].exchange()
    assert [member.allowance for member in fleet[:2]] == [0, 0]


async def test_who_has_no_room_leaves_the_probe_to_others(fleet: list[Member], redis: Redis) -> None:
    """A worker whose slots are all with a provider that hangs cannot send a probe."""
    await open_all(fleet)
    await pause_over(redis)
    fleet[0].has_room = False

    for member in fleet:
        await member.exchange()

    assert [member.allowance for member in fleet] == [0, 1, 0]


@pytest.mark.parametrize(
    "forged",
    [
        b"\x80\x05K\x01.",
        b"{}",
        b'{"open": true, "news": "x", "reason": "r", "pause_seconds": 1e9}',
        b'{"open": true, "news": "x", "reason": "r", "pause_seconds": NaN}',
        b'{"open": true, "news": "x", "code": "import os"}',
        b"[" * 10_000,
        json.dumps({"open": True, "news": "x", "reason": "r" * 301}).encode(),
    ],
)
async def test_forged_news_is_no_news(fleet: list[Member], redis: Redis, forged: bytes) -> None:
    """What is not of our form is not believed, and not in the way of what is."""
    await redis.set(STATE_KEY, forged)
    await fleet[1].exchange()
    assert fleet[1].allowance == 100

    await open_all(fleet)

    assert [member.allowance for member in fleet] == [0, 0, 0]


async def test_a_forged_reason_cannot_forge_a_log_line(fleet: list[Member], redis: Redis) -> None:
    """Reasons are shown to people: no line breaks and no control characters."""
    await redis.set(STATE_KEY, json.dumps({"open": True, "news": "x", "reason": "a\nERROR b\x1b[31m"}))

    await fleet[0].exchange()

    assert fleet[0].breaker.reason == "a?ERROR b?[31m"


async def test_a_forged_outage_cannot_last_for_ever(fleet: list[Member], redis: Redis) -> None:
    """Whoever can write to Redis may keep the leave; one answer is tried all the same, and its success counts."""
    await redis.set(STATE_KEY, json.dumps({"open": True, "news": "x", "reason": "forged"}))
    await redis.set(f"{STATE_KEY}:probe", "forged")
    await fleet[0].exchange()

    await fleet[0].wait(RETRY_AFTER_CAP_SECONDS)

    assert fleet[0].allowance == 1
    fleet[0].breaker.started(1)
    fleet[0].breaker.succeeded(1)
    await fleet[0].exchange()
    assert json.loads(await redis.get(STATE_KEY))["open"] is False


async def test_without_redis_each_is_on_its_own(
    breakable: Servers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis goes away in the middle of an outage: each probes by itself; back again, they share it again."""
    monkeypatch.setattr("worker.shared_breaker.OPEN_PERIOD_SECONDS", 0.01)
    client = connect_redis(breakable.redis_url, timeout_seconds=1)
    one, other = Member(client), Member(client)
    one.meet_trouble()
    async with in_background(one.shared.run(), other.shared.run()):
        await eventually(lambda: other.breaker.is_shared)
        breakable.redis.kill()
        await eventually(lambda: not (one.breaker.is_shared or other.breaker.is_shared))
        one.clock.now = other.clock.now = 1000 + PROBE_PATIENCE_SECONDS
        assert (one.allowance, other.allowance) == (1, 1)

        breakable.redis.start()
        await eventually(lambda: one.breaker.is_shared and other.breaker.is_shared)
        one.breaker.succeeded()
        await eventually(lambda: other.allowance == 100)
    await client.aclose()
    said = [record.message for record in caplog.records if record.name == "worker.outage"]
    assert len(said) == 2, "each says it once, not at every exchange"


async def test_own_trouble_is_told_at_once(
    fleet: list[Member], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a period later: meanwhile the others would pay for finding out."""
    monkeypatch.setattr("worker.shared_breaker.CLOSED_PERIOD_SECONDS", 3600)
    fleet[0].breaker.succeeded()
    async with in_background(fleet[0].shared.run()):

        async def waits_for_news() -> bool:
            return bool(await redis.exists(f"{STATE_KEY}:served"))

        await eventually(waits_for_news)
        fleet[0].meet_trouble()
        fleet[0].shared.changed()

        await eventually(lambda: fleet[0].breaker.is_shared)

    assert await redis.exists(STATE_KEY)


async def test_while_redis_is_away_no_answer_asks_for_it(
    fleet: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be told stays to be told, and every answer that ends says that something changed."""
    monkeypatch.setattr("worker.shared_breaker.CLOSED_PERIOD_SECONDS", 3600)
    member, tries = fleet[0], 0

    async def refuse() -> None:
        nonlocal tries
        tries += 1
        raise RedisConnectionError

    monkeypatch.setattr(member.shared, "exchange", refuse)
    member.meet_trouble()
    member.breaker.succeeded()
    async with in_background(member.shared.run()):
        await eventually(lambda: tries)
        for _ in range(5):
            member.shared.changed()
            await settled()
        assert tries == 1


async def test_news_that_cannot_be_told_are_not_told_without_a_pause(
    fleet: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Redis away and trouble to tell, one try a period: not as many as the processor can make."""
    monkeypatch.setattr("worker.shared_breaker.CLOSED_PERIOD_SECONDS", 3600)
    member, tries = fleet[0], 0

    async def refuse() -> None:
        nonlocal tries
        tries += 1
        raise RedisConnectionError

    monkeypatch.setattr(member.shared, "exchange", refuse)
    monkeypatch.setattr(member.shared, "_on_change", member.shared.changed)
    member.meet_trouble()
    async with in_background(member.shared.run()):
        await eventually(lambda: tries)
        for _ in range(5):
            await settled()
        assert tries == 1
