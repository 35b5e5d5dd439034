"""The announcer: nobody waits for Redis, and an outage costs one line in the log."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from producers.announcer import MAX_PENDING_IDS, Announcer
from producers.bell import Bell
from producers.contract import MAX_IDS, ClaimResponses, Payload, ScoreResponses
from tests.producers.waiting import eventually, settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

LOGGER = "producers.announcer"


class StubbedBell(Bell):
    """Records what is rung; fails and blocks on command."""

    def __init__(self) -> None:
        self.rung: list[Payload] = []
        self.rings = 0
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def ring(self, payloads: Sequence[Payload]) -> None:
        self.rings += 1
        await self.open.wait()
        if self.error:
            raise self.error
        self.rung.extend(payloads)

    @property
    def response_ids(self) -> list[int]:
        """All ids in the order in which they were rung."""
        return [
            n for payload in self.rung if isinstance(payload, ScoreResponses) for n in payload.response_ids
        ]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producers.announcer.RETRY_PAUSE_SECONDS", 0.0)


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of what the announcer logged."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == LOGGER]


async def test_what_gathers_during_a_ring_goes_into_the_next_one() -> None:
    """While one ring is in flight everything else waits together: two rings for a thousand calls."""
    bell = StubbedBell()
    bell.open.clear()
    announcer = Announcer(bell)

    announcer.responses([1])
    await eventually(lambda: bell.rings)
    for number in range(2, 402):
        announcer.responses([number])
    announcer.claims([5])
    bell.open.set()
    await announcer.close(10)

    assert bell.rings == 2
    assert bell.rung == [
        ScoreResponses(response_ids=(1,)),
        ScoreResponses(response_ids=tuple(range(2, 402))),
        ClaimResponses(claim_ids=(5,)),
    ]


async def test_no_message_grows_beyond_the_contract() -> None:
    """More ids than fit into one message become several, in one ring, with none lost."""
    bell = StubbedBell()
    announcer = Announcer(bell)

    announcer.responses(range(1, 2 * MAX_IDS + 11))
    await announcer.close(10)

    assert bell.rings == 1
    assert [len(p.response_ids) for p in bell.rung if isinstance(p, ScoreResponses)] == [MAX_IDS, MAX_IDS, 10]
    assert bell.response_ids == list(range(1, 2 * MAX_IDS + 11))


async def test_announcing_returns_at_once() -> None:
    """A Redis that does not answer keeps no caller: announcing is not even a coroutine."""
    bell = StubbedBell()
    bell.open.clear()
    announcer = Announcer(bell)

    announcer.responses([1])

    assert bell.rings == 0
    await announcer.close(0)


async def test_what_waits_is_bounded() -> None:
    """An outage cannot fill the memory of a web process: the oldest ids are left to the sweep."""
    bell = StubbedBell()
    bell.open.clear()
    announcer = Announcer(bell)
    announcer.responses([1])
    await eventually(lambda: bell.rings)

    for start in range(2, 3 * MAX_PENDING_IDS, 10_000):
        announcer.responses(range(start, start + 10_000))

    assert len(announcer._response_ids) == MAX_PENDING_IDS
    newest = announcer._response_ids[-1]
    bell.open.set()
    await announcer.close(10)
    assert bell.response_ids[-1] == newest


@pytest.mark.parametrize("error", [RedisConnectionError("canary"), OSError("canary"), TimeoutError("canary")])
async def test_an_outage_is_one_warning_and_one_info(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """However often Redis refuses: one warning, without the driver's text; one info when it is back."""
    caplog.set_level(logging.DEBUG)
    bell = StubbedBell()
    bell.error = error
    announcer = Announcer(bell)

    for number in range(1, 6):
        rings = bell.rings
        announcer.responses([number])
        await eventually(lambda rings=rings: bell.rings > rings)  # type: ignore[misc]
    bell.error = None
    announcer.responses([6])
    await eventually(lambda: 6 in bell.response_ids)
    announcer.responses([7])
    await eventually(lambda: 7 in bell.response_ids)
    await announcer.close(10)

    levels = [level for level, _ in messages(caplog)]
    assert levels == ["WARNING", "INFO"]
    assert "canary" not in caplog.text


async def test_a_second_outage_is_announced_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each outage has its own warning."""
    caplog.set_level(logging.DEBUG)
    bell = StubbedBell()
    announcer = Announcer(bell)

    for number, error in enumerate([OSError(), None, OSError(), None], 1):
        bell.error = error
        rings = bell.rings
        announcer.responses([number])
        await eventually(lambda rings=rings: bell.rings > rings)  # type: ignore[misc]
        await settled()
    await announcer.close(10)

    assert [level for level, _ in messages(caplog)] == ["WARNING", "INFO", "WARNING", "INFO"]


@pytest.mark.parametrize("bad", [0, -1, 2**63, "1", None, 1.5, True])
async def test_an_id_that_no_row_can_have_keeps_nothing_else(bad: Any) -> None:
    """A wrong id among others is dropped; it neither fails the caller nor stops later announcements."""
    bell = StubbedBell()
    announcer = Announcer(bell)

    announcer.responses([1, bad, 2])
    await eventually(lambda: bell.rings)
    announcer.responses([3])
    await announcer.close(10)

    assert bell.response_ids == [1, 2, 3]


async def test_nothing_to_announce_is_no_ring() -> None:
    """Announcing nothing starts nothing."""
    bell = StubbedBell()
    announcer = Announcer(bell)

    announcer.responses([])
    await announcer.close(10)

    assert bell.rings == 0


async def test_closing_gives_up_on_a_dead_redis() -> None:
    """A Redis that does not answer cannot keep a web process from stopping."""
    bell = StubbedBell()
    bell.open.clear()
    announcer = Announcer(bell)
    announcer.responses([1])
    await eventually(lambda: bell.rings)

    await announcer.close(0.01)

    assert announcer._task is not None
    assert announcer._task.done()


async def test_a_closed_announcer_starts_nothing() -> None:
    """What is announced after closing is left to the sweep: no task outlives the client that it would use."""
    bell = StubbedBell()
    announcer = Announcer(bell)
    await announcer.close(10)

    announcer.claims([1])

    assert announcer._task is None


@pytest.mark.commits
async def test_messages_reach_redis(redis: Redis) -> None:
    """With a real bell the announcement is in the queue when closing returns."""
    announcer = Announcer(Bell(redis))
    announcer.responses([1, 2])

    await announcer.close(10)

    assert await redis.zcard("scoring:v1") == 1
