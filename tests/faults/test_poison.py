"""One answer among a thousand breaks whatever scores it: it alone is dead in the end, for a reason that says so."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from storage import submit_responses
from storage.leases import BURY_AFTER_LOSSES, GROUPS_SHRINK_BY, SUSPECT_AFTER_LOSSES
from storage.workers import list_workers
from tests.factories import submission
from tests.fake_model import FakeModel
from tests.faults.poisonous import FAILS, KILLS, NAME, RAISES, Diary
from tests.faults.routing import Router
from tests.faults.supervisor import Death, supervised
from tests.producers.waiting import eventually
from worker.decisions import SUSPICIONS_PER_ATTEMPT
from worker.verification import verify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

NEIGHBOURS = 1200
MANY = 1000
SLOTS = 256
WORKERS = 2
ATTEMPTS = 2
PATIENCE_SECONDS = 180.0
# So many answers keep a worker of ten slots busy.
FEW = 20
FAILS_PROVIDER = "This answer makes the provider fail."
STALLS_PROVIDER = "This answer makes the provider stall."


@pytest.fixture
def report(measured: Callable[[str], None]) -> Callable[[str], None]:
    """Notes what was measured, for a person to read."""
    return lambda line: measured(f"poison: {line.strip()}")


async def submit(site: Site, *poison: str, neighbours: int = NEIGHBOURS) -> tuple[list[int], list[int]]:
    """Store answers with poison in their midst; nobody is told.

    Returns:
        The responses that are poison, and the others.
    """
    half = neighbours // 2
    texts: list[str | None] = [*[None] * half, *poison, *[None] * (neighbours - half)]
    given = [submission() if text is None else submission(answer_text=text) for text in texts]
    async with site.engine.begin() as conn:
        ids = [int(row["response_id"]) for row in await submit_responses(conn, given)]
    bad = ids[half : half + len(poison)]
    return bad, [response_id for response_id in ids if response_id not in bad]


async def dead(site: Site) -> dict[int, dict[str, Any]]:
    """What is dead, by response."""
    rows = await site.sql("SELECT * FROM scoring_handoffs WHERE state = 'dead'")
    return {row.response_id: dict(row._mapping) for row in rows}


async def assert_only_these_died(site: Site, poison: Sequence[int], neighbours: Sequence[int]) -> None:
    """Each neighbour has exactly one score and used up no attempt, and nothing but poison is left."""
    scores = [row[0] for row in await site.sql("SELECT response_id FROM assessment_scores")]
    assert sorted(scores) == sorted(neighbours)
    assert sorted(await dead(site)) == sorted(poison)
    left = await site.sql("SELECT response_id FROM scoring_handoffs")
    assert sorted(row[0] for row in left) == sorted(poison)
    assert (await site.counters(neighbours))["attempts"] == 0
    findings = await verify(site.engine, site.settings(), full=True)
    assert [finding for finding in findings if finding.holds is not True] == []


async def test_what_always_fails_its_scorer_is_dead_after_its_last_attempt(start: Start, site: Site) -> None:
    """A verdict as well as an error that nobody foresaw uses up attempts, of that answer alone."""
    poison, neighbours = await submit(site, FAILS, RAISES)
    for _ in range(WORKERS):
        await start(scorer_seconds=0.05, SCORER=NAME, MAX_ATTEMPTS=ATTEMPTS)

    async def both_dead() -> bool:
        return len(await dead(site)) == 2

    await eventually(both_dead, patience_seconds=PATIENCE_SECONDS)
    await eventually(lambda: site.scored(neighbours), patience_seconds=PATIENCE_SECONDS)

    found = await dead(site)
    assert [found[response_id]["last_error"] for response_id in poison] == [
        f"There is nothing to score. That was attempt {ATTEMPTS} of {ATTEMPTS}.",
        f"The scorer raised RuntimeError. That was attempt {ATTEMPTS} of {ATTEMPTS}.",
    ]
    assert {row["attempts"] for row in found.values()} == {ATTEMPTS}
    await assert_only_these_died(site, poison, neighbours)


def environment_of(site: Site, diary: Diary, *, scorer_seconds: float) -> dict[str, str]:
    """The variables of a worker that is started again whenever it dies."""
    settings: dict[str, object] = {
        "DATABASE_URL": site.database_url,
        "REDIS_URL": site.redis_url,
        "SCORER": NAME,
        "SLOTS": SLOTS,
        "LEASE_SECONDS": 1,
        "SWEEP_SECONDS": 0.2,
        "LOG_FORMAT": "json",
    }
    return {f"SCORING_{name}": str(value) for name, value in settings.items()} | {
        **diary.variables(scorer_seconds=scorer_seconds)
    }


def group_size(losses: int) -> int:
    """How many answers a worker holds at most, of those that lost so many leases."""
    suspect_for = losses - SUSPECT_AFTER_LOSSES
    return SLOTS if suspect_for < 0 else max(1, SLOTS // int(GROUPS_SHRINK_BY ** (suspect_for + 1)))


async def test_what_kills_its_worker_is_found_out_and_takes_nobody_with_it(
    site: Site, tmp_path: Path, report: Callable[[str], None]
) -> None:
    """Ten processes die of it, fewer answers with it in hand each time; the last dies of it alone."""
    [poison], neighbours = await submit(site, KILLS)
    diary = Diary(tmp_path)
    seconds = 0.3
    environment = environment_of(site, diary, scorer_seconds=seconds)

    async with supervised(environment, tmp_path, workers=WORKERS) as deaths:

        async def buried() -> bool:
            return poison in await dead(site)

        await eventually(buried, patience_seconds=PATIENCE_SECONDS)
        await eventually(lambda: site.scored(neighbours), patience_seconds=PATIENCE_SECONDS)

    scored_at = {
        row.response_id: float(row.at)
        for row in await site.sql(
            "SELECT response_id, extract(epoch FROM created_at) AS at FROM assessment_scores"
        )
    }
    assert len(deaths) == BURY_AFTER_LOSSES
    assert {death.exit_status for death in deaths} == {-signal.SIGKILL}
    report(
        f"\n{NEIGHBOURS} neighbours, {WORKERS} workers with {SLOTS} slots, {seconds} s a score, leases of 1 s"
    )
    for losses, death in enumerate(deaths):
        lost = in_hand(diary, death, scored_at)
        assert poison in lost
        assert len(lost) <= group_size(losses)
        waited = [scored_at[response_id] - death.at for response_id in lost if response_id != poison]
        slowest = f", the last of them scored {max(waited):.1f} s later" if waited else ""
        report(f"  death {losses + 1}: {len(waited)} neighbours in hand{slowest}")
    assert in_hand(diary, deaths[-1], scored_at) == {poison}
    row = (await dead(site))[poison]
    assert (row["lease_losses"], row["attempts"]) == (BURY_AFTER_LOSSES, 0)
    assert f"{BURY_AFTER_LOSSES} times" in row["last_error"]
    assert "the last time with no other answer in hand" in row["last_error"]
    await assert_only_these_died(site, [poison], neighbours)


def in_hand(diary: Diary, death: Death, scored_at: dict[int, float]) -> set[int]:
    """What a process had begun with and not settled when it died."""
    begun = diary.begun_by(death.pid)
    return {response_id for response_id in begun if scored_at.get(response_id, death.at + 1) > death.at}


async def test_answers_that_draw_provider_trouble_open_no_breaker(
    start: Start, site: Site, producer: Producer, report: Callable[[str], None]
) -> None:
    """They are suspected each time, because others are scored meanwhile; the fifth time they are dead, at one attempt."""
    poison, neighbours = await submit(site, FAILS_PROVIDER, STALLS_PROVIDER, neighbours=5 * FEW)
    notes: set[str | None] = set()

    async with AsyncExitStack() as stack:
        # A reply takes so long that others come in while a call is under way.
        model = await stack.enter_async_context(FakeModel(delay_seconds=0.1))
        failing = await stack.enter_async_context(FakeModel("error_500", delay_seconds=1.0))
        stalling = await stack.enter_async_context(FakeModel("hang"))
        ports = {FAILS_PROVIDER: port_of(failing), STALLS_PROVIDER: port_of(stalling)}
        router = await stack.enter_async_context(Router(port_of(model), ports))
        worker = await start(
            SCORER="llm",
            LLM_MODEL="a-model",
            LLM_BASE_URL=router.url,
            LLM_TIMEOUT_SECONDS=5,
            MAX_ATTEMPTS=1,
            SLOTS=10,
            LEASE_SECONDS=10,
        )

        async def both_dead() -> bool:
            async with site.engine.connect() as conn:
                notes.update(row["note"] for row in await list_workers(conn))
            [[waiting]] = await site.sql("SELECT count(*) FROM scoring_handoffs WHERE state = 'open'")
            if waiting < FEW:  # there is always something that goes well
                rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(FEW)))
                neighbours.extend(row["response_id"] for row in rows)
            return len(await dead(site)) == len(poison) and len(neighbours) >= MANY

        await eventually(both_dead, patience_seconds=PATIENCE_SECONDS)
        await eventually(lambda: site.scored(neighbours), patience_seconds=PATIENCE_SECONDS)
        await worker.stopped()

    rows = [(await dead(site))[response_id] for response_id in poison]
    report(f"\n{len(neighbours)} neighbours scored; dead: {', '.join(row['last_error'] for row in rows)}")
    times = f"This happened {SUSPICIONS_PER_ATTEMPT} times while other answers were scored. That was attempt 1 of 1."
    assert [row["last_error"] for row in rows] == [
        f"The provider failed (HTTP 500). {times}",
        f"The provider did not reply in time. {times}",
    ]
    for row, bad in zip(rows, (failing, stalling), strict=True):
        assert (row["attempts"], row["postponements"]) == (1, SUSPICIONS_PER_ATTEMPT - 1)
        assert len(bad.requests) == SUSPICIONS_PER_ATTEMPT
    assert notes == {None}
    assert not worker.logged("breaker")
    assert len(model.requests) == len(neighbours)
    assert sum((await site.counters(neighbours)).values()) == 0
    await assert_only_these_died(site, poison, neighbours)


def port_of(model: FakeModel) -> int:
    port = urlsplit(model.openai_url).port
    assert port is not None
    return port
