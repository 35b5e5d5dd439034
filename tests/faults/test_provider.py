"""The provider is down for long, or allows only so much: three worker processes, a model server over real HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from storage.workers import list_workers
from tests.factories import submission
from tests.fake_model import FakeModel
from tests.producers.waiting import eventually
from worker.breaker import FIRST_PAUSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

WORKERS = 3
SLOTS = 10
ANSWERS = 120
PATIENCE_SECONDS = 90
TROUBLES = ("error_500", "rate_limited_silently", "rate_limited_fraction", "hang", "drop")
# A pause is shortened by chance, at most by this.
LEAST_PAUSE_SECONDS = 0.75 * FIRST_PAUSE_SECONDS


async def start_fleet(start: Start, model: FakeModel, **variables: object) -> None:
    given = {
        "scorer": "llm",
        "llm_model": "a-model",
        "llm_base_url": model.openai_url,
        "llm_timeout_seconds": 1.5,
        "slots": SLOTS,
    }
    for _ in range(WORKERS):  # one after the other: the model libraries take seconds to load
        await start(**{name.upper(): value for name, value in (given | variables).items()})


async def submit(producer: Producer, number: int) -> list[int]:
    rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(number)))
    return [row["response_id"] for row in rows]


async def asked(model: FakeModel, times: int) -> None:
    """Wait until the model was asked so often in all."""
    await eventually(lambda: len(model.requests) >= times, patience_seconds=PATIENCE_SECONDS)


async def all_scored(site: Site, ids: list[int]) -> None:
    await eventually(lambda: site.scored(ids), patience_seconds=PATIENCE_SECONDS)


async def breakers(site: Site) -> list[dict[str, Any]]:
    async with site.engine.connect() as conn:
        return [worker["provider"] for worker in await list_workers(conn)]


async def test_a_provider_that_is_down_gets_probes_only(
    start: Start, site: Site, producer: Producer, measured: Callable[[str], None]
) -> None:
    """One breaker for the fleet: all know why, one probes at a time, nothing is dead and no attempt is used."""
    ids: list[int] = []
    async with FakeModel("well") as model:
        await start_fleet(start, model)
        for trouble in TROUBLES:
            model.default = trouble
            ids += await submit(producer, ANSWERS)
            await eventually(lambda: open_for_all(site), patience_seconds=PATIENCE_SECONDS)
            assert all(each["reason"] for each in await breakers(site))
            before, since = len(model.requests), time.monotonic()

            await asked(model, before + 4)

            # Calls that were in flight when it opened have arrived before: what comes now are probes.
            most = 1 + (time.monotonic() - since) / LEAST_PAUSE_SECONDS
            assert len(model.requests) - before <= most
            model.default, recovered = "well", time.monotonic()
            await asked(model, len(model.requests) + WORKERS * SLOTS)
            seconds = time.monotonic() - recovered
            measured(f"provider ({trouble}): all slots busy {seconds:.1f} s after its recovery")
            await all_scored(site, ids)
            # Reports are seconds old: the next trouble must not be seen in those of this one.
            await eventually(lambda: closed_for_all(site), patience_seconds=PATIENCE_SECONDS)

    counted = await site.counters()
    assert (counted["attempts"], counted["lease_losses"]) == (0, 0)
    await site.assert_nothing_lost(ids)


async def open_for_all(site: Site) -> bool:
    seen = await breakers(site)
    return len(seen) == WORKERS and all(each["breaker"] == "open" and each["shared"] for each in seen)


async def closed_for_all(site: Site) -> bool:
    return all(each["breaker"] == "closed" for each in await breakers(site))


async def test_a_hanging_provider_is_probed_again_and_again(
    start: Start, site: Site, producer: Producer
) -> None:
    """A probe that is never answered does not keep the next one waiting for its whole time-out."""
    async with FakeModel("error_503") as model:
        await start_fleet(start, model, llm_timeout_seconds=120, answer_seconds=300)
        ids = await submit(producer, ANSWERS)

        await eventually(lambda: open_for_all(site), patience_seconds=PATIENCE_SECONDS)
        model.default = "hang"
        hanging = len(model.requests)
        await asked(model, hanging + 2)
        model.default = "well"
        # Whoever hangs goes on hanging; the next probe finds out.
        hung = len(model.requests) - hanging
        await asked(model, hanging + hung + ANSWERS - WORKERS * SLOTS)

        async def nearly_all() -> bool:
            [[scored]] = await site.sql("SELECT count(*) FROM assessment_scores")
            return int(scored) >= ANSWERS - hung

        await eventually(nearly_all, patience_seconds=PATIENCE_SECONDS)
    # The server is gone, and with it what hung: postponed, and found again by another one on the same port.
    async with FakeModel("well", port=int(model.openai_url.split(":")[2].split("/")[0])):
        await all_scored(site, ids)
    assert hung <= WORKERS
    assert (await site.counters())["attempts"] == 0
    await site.assert_nothing_lost(ids)


async def test_a_fleet_keeps_to_one_limit(start: Start, site: Site, producer: Producer) -> None:
    """600 requests a minute, 100 in ten seconds, for three workers together."""
    async with FakeModel("well") as model:
        await start_fleet(start, model, requests_per_minute=600)
        began = time.monotonic()
        ids = await submit(producer, 170)

        async def done() -> bool:
            allowed = 100 * (1 + (time.monotonic() - began) / 10)
            assert len(model.requests) <= allowed
            return await site.scored(ids)

        await eventually(done, patience_seconds=PATIENCE_SECONDS)
    assert len(model.requests) == 170
    reported = [each["rate_limits"] for each in await breakers(site)]
    assert {each["requests_per_minute"] for each in reported} == {600}
    assert (await site.counters())["postponements"] == 0
    await site.assert_nothing_lost(ids)
