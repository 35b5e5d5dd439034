"""A run's cursor moves with the work, by one person at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.actions import latest_actions
from storage.backfilling import backfill_step
from storage.dead import rescore_responses
from storage.errors import InvalidInputError
from storage.purging import purge_step
from storage.rescoring import rescore_step
from storage.runs import (
    Step,
    advance_run,
    get_run,
    horizon,
    latest_runs,
    record_resumption,
    start_run,
    unscored_of,
    window_end,
)
from storage.settlements import settle_handoffs
from tests.factories import bury, lease, publish, settlement, submit
from tests.races import blocked, committed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def start(conn: AsyncConnection, **changes: Any) -> int:
    given: dict[str, Any] = {
        "kind": "rescore",
        "filters": {"module_slug": "biology"},
        "started_by": "Ada",
        "until_response_id": 100,
        "expected": 7,
    }
    return await start_run(conn, **given | changes)


async def ten_further(_: AsyncConnection, run: Mapping[str, Any]) -> Step:
    return Step(run["last_response_id"] + 10, 3)


advance = partial(advance_run, kind="rescore", actor="Bea", work=ten_further)


async def test_steps_move_the_cursor_and_the_last_one_finishes(conn: AsyncConnection) -> None:
    """Each adds what it changed; who began and who finished is recorded; a finished run does no more."""
    run_id = await start(conn, until_response_id=20)

    first = await advance(conn, run_id)
    await record_resumption(conn, first, actor="Cleo")
    second = await advance(conn, run_id)
    third = await advance(conn, run_id)

    assert (first["last_response_id"], first["changed"], first["finished_at"]) == (10, 3, None)
    assert (second["last_response_id"], second["changed"]) == (20, 6)
    assert second["finished_at"] is not None
    assert third == second == await get_run(conn, run_id)
    recorded = [
        (row["actor"], row["action"], row["affected"], row["details"]["step"])
        for row in await latest_actions(conn)
    ]
    assert recorded == [
        ("Bea", "rescore", 6, "finished"),
        ("Cleo", "rescore", 0, "resumed"),
        ("Ada", "rescore", 0, "started"),
    ]


@pytest.mark.parametrize(
    ("step", "filters"),
    [
        (rescore_step, {"module_slug": "biology", "until_score_id": 9, "after_handoff_id": 9}),
        (backfill_step, {"after_handoff_id": 9}),
        (purge_step, {"older_than_days": 30, "cutoff": "2026-01-01T00:00:00+00:00"}),
    ],
)
async def test_a_filter_of_a_newer_version_is_not_passed_over(
    conn: AsyncConnection, step: Any, filters: dict[str, Any]
) -> None:
    """A version that does not know it would choose more than was asked for; it refuses, and names it."""
    kind = step.__name__.removesuffix("_step")
    known = await start(conn, kind=kind, filters=filters)
    newer = await start(conn, kind=kind, filters=filters | {"only_locale": "fr"})

    await advance_run(conn, known, kind=kind, actor="Ada", work=step)
    with pytest.raises(InvalidInputError, match="newer version, with only_locale"):
        await advance_run(conn, newer, kind=kind, actor="Ada", work=step)

    assert (await get_run(conn, newer) or {})["last_response_id"] == 0


async def test_only_runs_of_the_kind_are_advanced(conn: AsyncConnection) -> None:
    """A purge's filters would mean something else to a rescore."""
    run_id = await start(conn, kind="purge")

    with pytest.raises(InvalidInputError, match="no rescore run"):
        await advance(conn, run_id)
    with pytest.raises(InvalidInputError, match="no rescore run"):
        await advance(conn, run_id + 1)
    assert await get_run(conn, run_id + 1) is None


async def test_runs_are_listed_by_kind(conn: AsyncConnection) -> None:
    """The newest first; those that are finished are left out where they are not wanted."""
    done = await start(conn, until_response_id=5)
    await advance(conn, done)
    stopped = await start(conn)
    await start(conn, kind="purge")

    assert [run["run_id"] for run in await latest_runs(conn, kind="rescore")] == [stopped, done]
    assert [run["run_id"] for run in await latest_runs(conn, kind="rescore", unfinished=True)] == [stopped]


async def test_nobody_begins_a_run_without_a_name(conn: AsyncConnection) -> None:
    """The record would say nothing."""
    with pytest.raises(InvalidInputError, match="started_by"):
        await start(conn, started_by=" ")


@pytest.mark.commits
async def test_who_comes_second_begins_where_the_first_one_ended(engine: AsyncEngine) -> None:
    """He waits for the run's row, and reads the cursor that the first one has moved."""
    run_id = await committed(engine, start)

    async with engine.connect() as first:
        await advance(first, run_id)
        async with blocked(engine, partial(advance, run_id=run_id)) as second:
            await first.commit()
        run = await second

    assert (run["last_response_id"], run["changed"]) == (20, 6)


@pytest.mark.commits
async def test_a_step_that_fails_leaves_the_cursor(engine: AsyncEngine) -> None:
    """What it did is undone with it."""
    run_id = await committed(engine, start)

    async def fail(conn: AsyncConnection, run: Mapping[str, Any]) -> Step:
        await conn.execute(text("INSERT INTO users (user_id) VALUES (999)"))
        raise InvalidInputError("anything", f"fails at {run['last_response_id']}")

    with pytest.raises(InvalidInputError):
        await committed(engine, partial(advance_run, run_id=run_id, kind="rescore", actor="a", work=fail))

    async with engine.connect() as conn:
        run = await get_run(conn, run_id)
        assert run is not None
        assert (run["last_response_id"], run["changed"]) == (0, 0)
        assert (await conn.execute(text("SELECT count(*) FROM users WHERE user_id = 999"))).scalar_one() == 0


async def test_a_window_holds_so_many_responses(conn: AsyncConnection) -> None:
    """However large the gaps between their ids are; the last one reaches to the end."""
    ids = [int((await submit(conn))["response_id"]) for _ in range(5)]
    await conn.execute(text("DELETE FROM scoring_handoffs WHERE response_id = :id"), {"id": ids[1]})
    await conn.execute(text("DELETE FROM assessment_responses WHERE response_id = :id"), {"id": ids[1]})
    end = (await horizon(conn))["until_response_id"]

    assert end == ids[4]
    assert await window_end(conn, after=ids[0] - 1, until=end, size=2) == ids[2]
    assert await window_end(conn, after=ids[2], until=ids[3], size=2) == ids[3]
    assert await window_end(conn, after=end, until=end + 50) == end + 50


async def test_what_a_run_asked_for_is_counted_until_it_is_scored(conn: AsyncConnection) -> None:
    """By whether it waits, waits for its question, or is dead; what is not the run's does not count."""
    await publish(conn)
    ids = [int((await submit(conn))["response_id"]) for _ in range(3)]
    await settle_handoffs(conn, [settlement(each) for each in await lease(conn, *ids)])
    before = int((await submit(conn))["response_id"])
    end = await horizon(conn)
    filters = {"after_handoff_id": end["after_handoff_id"]}
    run = {"filters": filters, "until_response_id": end["until_response_id"]}
    assert before == end["until_response_id"]

    await rescore_responses(conn, response_ids=ids)
    await submit(conn)
    await bury(conn, ids[0])

    assert await unscored_of(conn, run) == {"waiting": 2, "unpublished": 0, "dead": 1}
    await settle_handoffs(conn, [settlement(each) for each in await lease(conn, *ids)])
    assert await unscored_of(conn, run) == {"waiting": 0, "unpublished": 0, "dead": 1}
