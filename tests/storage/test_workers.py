from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from storage.workers import ALIVE_SECONDS, list_workers, remove_worker, report_worker
from tests.factories import count

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


async def report(conn: AsyncConnection, **changes: Any) -> UUID:
    given: dict[str, Any] = {
        "worker_id": uuid4(),
        "host": "here",
        "pid": 1,
        "version": "0.1.0",
        "slots": 100,
        "free_slots": 100,
        "note": None,
        "provider": None,
    } | changes
    await report_worker(conn, **given)
    return UUID(str(given["worker_id"]))


async def silence(conn: AsyncConnection, worker_id: UUID, seconds: float) -> None:
    await conn.execute(
        text(
            "UPDATE scoring_workers SET seen_at = statement_timestamp() - make_interval(secs => :seconds)"
            " WHERE worker_id = :worker_id"
        ),
        {"seconds": seconds, "worker_id": worker_id},
    )


async def test_a_worker_reports_that_it_runs(conn: AsyncConnection) -> None:
    """What it reports can be read, with the time since."""
    provider = {"name": "openai/a-model", "breaker": "closed"}
    worker_id = await report(conn, free_slots=40, note="the breaker is open", provider=provider)

    [listed] = await list_workers(conn)

    assert 0 <= listed.pop("silent_seconds") < ALIVE_SECONDS
    assert listed.pop("started_at") is not None
    assert listed == {
        "worker_id": worker_id,
        "host": "here",
        "pid": 1,
        "version": "0.1.0",
        "slots": 100,
        "free_slots": 40,
        "note": "the breaker is open",
        "provider": provider,
    }


async def test_a_report_tells_how_many_share_the_provider(conn: AsyncConnection) -> None:
    """Counted are those that run and ask the same provider, the reporting one included."""
    mine = {"name": "openai/a-model"}
    silent = await report(conn, provider=mine)
    await silence(conn, silent, ALIVE_SECONDS + 1)
    await report(conn, provider={"name": "anthropic/another"})
    await report(conn, provider=None)
    worker_id = await report(conn, provider=mine)

    given: dict[str, Any] = {
        "host": "here",
        "pid": 1,
        "version": "1",
        "slots": 1,
        "free_slots": 1,
        "note": None,
    }
    assert await report_worker(conn, worker_id=uuid4(), provider=mine, **given) == 2
    assert await report_worker(conn, worker_id=worker_id, provider=mine, **given) == 2
    assert await report_worker(conn, worker_id=uuid4(), provider=None, **given) == 1


async def test_the_next_report_replaces_the_last(conn: AsyncConnection) -> None:
    """A worker has one row: what it takes now, and since when it runs."""
    worker_id = await report(conn, note="starting")
    [before] = await list_workers(conn)
    await silence(conn, worker_id, 10)

    await report(conn, worker_id=worker_id, free_slots=3)

    [after] = await list_workers(conn)
    assert (after["free_slots"], after["note"]) == (3, None)
    assert after["started_at"] == before["started_at"]
    assert after["silent_seconds"] < 10


async def test_who_is_silent_does_not_run(conn: AsyncConnection) -> None:
    """A worker that was killed is gone from the list within seconds, and back with its next report."""
    killed, alive = await report(conn, pid=1), await report(conn, pid=2)
    await silence(conn, killed, ALIVE_SECONDS + 1)

    assert [row["worker_id"] for row in await list_workers(conn)] == [alive]
    await report(conn, worker_id=killed, pid=1)
    assert [row["worker_id"] for row in await list_workers(conn)] == [killed, alive]


async def test_who_is_silent_for_an_hour_is_forgotten(conn: AsyncConnection) -> None:
    """Anybody's report clears them away; a worker that comes back clears nothing of itself."""
    forgotten, recent, back = [await report(conn) for _ in range(3)]
    await silence(conn, forgotten, 3601)
    await silence(conn, recent, 3000)
    await silence(conn, back, 3601)

    await report(conn, worker_id=back)

    rows = await conn.execute(text("SELECT worker_id FROM scoring_workers"))
    assert set(rows.scalars()) == {recent, back}


async def test_a_worker_that_stops_leaves(conn: AsyncConnection) -> None:
    """Its row goes at once; leaving twice is no error."""
    leaving, staying = await report(conn), await report(conn)

    await remove_worker(conn, worker_id=leaving)
    await remove_worker(conn, worker_id=leaving)

    assert [row["worker_id"] for row in await list_workers(conn)] == [staying]


async def test_the_workers_of_one_machine(conn: AsyncConnection) -> None:
    """A health check asks for its own host alone; the list is in order of host and process."""
    there = await report(conn, host="there", pid=1)
    second = await report(conn, host="here", pid=2)
    first = await report(conn, host="here", pid=1)

    assert [row["worker_id"] for row in await list_workers(conn)] == [first, second, there]
    assert [row["worker_id"] for row in await list_workers(conn, host="there")] == [there]
    assert await list_workers(conn, host="nowhere") == []


@pytest.mark.parametrize("again", [False, True], ids=["first", "next"])
async def test_a_report_does_not_wait_for_the_disk(conn: AsyncConnection, again: bool) -> None:  # noqa: FBT001
    """It comes every few seconds from every worker, and nothing depends on it."""
    worker_id = await report(conn) if again else uuid4()

    await report(conn, worker_id=worker_id)

    assert (await conn.execute(text("SHOW synchronous_commit"))).scalar_one() == "off"
    assert await count(conn, "scoring_workers") == 1
