"""The oldest PostgreSQL that we promise to run on, where its binaries are installed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from alembic import command
from storage import (
    claim_assessment_responses,
    create_engine,
    get_responses,
    get_scores,
    publish_questions,
    submit_responses,
)
from storage.actions import latest_actions
from storage.backfilling import backfill_step, survey_backfill
from storage.dead import dismiss_dead, list_dead, rescore_responses, retry_dead
from storage.erasure import erase_responses
from storage.holdings import count_holdings, find_student, read_holdings
from storage.leases import bury_lost, pull_handoffs, pull_suspects, renew_leases
from storage.purging import purge_claims, purge_drafts, purge_step, survey_purge
from storage.rescoring import Choice, rescore_step, survey_rescore
from storage.roles import grant_roles
from storage.runs import advance_run, horizon, latest_runs, start_run, unscored_of
from storage.settlements import (
    bury_handoffs,
    fail_handoffs,
    hand_back_handoffs,
    postpone_handoffs,
    settle_handoffs,
)
from storage.statistics import handoff_statistics
from storage.sweeps import overdue, revive_missed
from storage.verification import verify_settlement, verify_timeliness
from storage.workers import list_workers, report_worker
from tests.conftest import POSTGRES_OPTIONS
from tests.databases import add_users, alembic_config, raw_connection, upgrade
from tests.factories import LEASE_SECONDS, lease, question, release, settlement, submission, submit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from storage.runs import Kind

PLACES = (
    "/usr/lib/postgresql/15/bin",  # Debian, Ubuntu
    "/usr/pgsql-15/bin",  # Red Hat
    "/usr/libexec/postgresql15",  # Alpine
    "/opt/homebrew/opt/postgresql@15/bin",
    "/usr/local/opt/postgresql@15/bin",
)


@pytest.fixture(scope="module")
def postgresql_15() -> Iterator[str]:
    """A server of that version; skipped, also in CI, where it is not installed."""
    binaries = next((Path(place) for place in PLACES if Path(place, "initdb").exists()), None)
    if binaries is None:
        pytest.skip("PostgreSQL 15 is not installed.")
    servers = pytest.importorskip("demo.servers")
    with servers.embedded_servers(postgres_binaries=binaries, postgres_options=POSTGRES_OPTIONS) as running:
        yield running.database_url


async def operate(conn: AsyncConnection) -> None:
    """What operators' commands do."""
    end = await horizon(conn)
    until = end["until_response_id"]
    cutoff = datetime.now(UTC)
    after = {"after_handoff_id": end["after_handoff_id"]}
    filters: dict[Kind, dict[str, Any]] = {
        "rescore": after | {"until_score_id": end["until_score_id"]},
        "backfill": after,
        "purge": {"cutoff": cutoff.isoformat()},
    }
    await survey_rescore(conn, Choice(), after=0, until=until, until_score_id=end["until_score_id"])
    await survey_backfill(conn, after=0, until=until)
    await survey_purge(conn, cutoff=cutoff, after=0, until=until)
    steps: dict[Kind, Any] = {"rescore": rescore_step, "backfill": backfill_step, "purge": purge_step}
    for kind, step in steps.items():
        run_id = await start_run(
            conn, kind=kind, filters=filters[kind], started_by="o", until_response_id=until, expected=1
        )
        run = await advance_run(conn, run_id, kind=kind, actor="o", work=step)
        assert run["finished_at"] is not None
        assert [each["run_id"] for each in await latest_runs(conn, kind=kind)] == [run_id]
        if kind != "purge":
            await unscored_of(conn, run)
    await purge_drafts(conn, cutoff=cutoff, after=0)
    await purge_claims(conn, cutoff=cutoff, after=0)
    assert len(await latest_actions(conn)) == 6
    student = await find_student(conn, user_id=1)
    held = await count_holdings(conn, student)
    rows = [row async for row in read_holdings(conn, student)]
    assert sum(held.values()) == len(rows)
    assert (await erase_responses(conn, user_id=1))["assessment_responses"] == held["assessment_responses"]


@pytest.mark.processes
async def test_everything_runs_on_postgresql_15(postgresql_15: str) -> None:
    """Migration, up and down, and every statement."""
    async with raw_connection(postgresql_15) as raw:
        assert raw.get_server_version().major == 15
    await upgrade(postgresql_15)
    await add_users(postgresql_15)
    engine = create_engine(postgresql_15)
    options: dict[str, Any] = {"lease_token": uuid4(), "lease_seconds": LEASE_SECONDS}
    try:
        async with engine.connect() as conn:
            await publish_questions(conn, [question()])
            key = uuid4()
            given = [submission(submission_key=key), *[submission()] * 5, submission(anonymous_token="t")]
            rows = await submit_responses(conn, given)
            assert await submit(conn, submission_key=key) == rows[0]
            await submit(conn, question_id="unheard-of")
            assert len(await lease(conn, rows[0]["response_id"])) == 1
            first, *more = await pull_handoffs(conn, lane="live", limit=10, **options)
            assert len(more) == 5
            assert await pull_suspects(conn, slots=100, limit=100, **options) == []
            assert await bury_lost(conn, lease_seconds=LEASE_SECONDS) == []
            await renew_leases(conn, [(first["handoff_id"], first["lease_token"])], lease_seconds=60)
            for let_go, held in zip(
                (postpone_handoffs, fail_handoffs, hand_back_handoffs), more, strict=False
            ):
                assert await let_go(conn, [release(held, reason="r")])
            assert await bury_handoffs(conn, [release(held, reason="r") for held in more[3:]])
            assert len(await settle_handoffs(conn, [settlement(first)])) == 1
            assert len(await list_dead(conn)) == 2
            assert await retry_dead(conn, response_ids=[more[3]["response_id"]])
            assert await dismiss_dead(conn, response_ids=[more[4]["response_id"]], dismissed_by="ops")
            assert await rescore_responses(conn, response_ids=[first["response_id"], more[4]["response_id"]])
            await claim_assessment_responses(conn, anonymous_token="t", user_id=2)
            page = await get_responses(conn, user_id=1)
            assert len(page) == 7
            scored = [row for row in page if row["score"] is not None]
            assert len(await get_scores(conn, user_id=1, response_id=scored[0]["response_id"])) == 1
            assert await overdue(conn, lease_seconds=LEASE_SECONDS, overdue_seconds=0) == {"live", "bulk"}
            assert await revive_missed(conn) == (0, 0)
            await report_worker(
                conn,
                worker_id=uuid4(),
                host="h",
                pid=1,
                version="1",
                slots=1,
                free_slots=1,
                note=None,
                provider={"name": "p"},
            )
            assert len(await list_workers(conn)) == 1
            assert (await handoff_statistics(conn))["unpublished"] == 1
            found = await verify_settlement(conn, full=True)
            assert (found["orphans"], found["settled_twice"]) == ([], [])
            await verify_timeliness(conn, lease_seconds=LEASE_SECONDS, sweep_seconds=60)
            await grant_roles(conn, {"web": "w", "worker": "k", "ops": "o"})
            await operate(conn)
            await conn.rollback()
    finally:
        await engine.dispose()
    await asyncio.to_thread(command.check, alembic_config(postgresql_15))
    await asyncio.to_thread(command.downgrade, alembic_config(postgresql_15), "base")
