"""Backup and restore, as docs/operations.md tells it: with pg_dump and pg_restore, on real servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from demo.servers import embedded_servers
from demo.worker_process import SCORING, worker_process
from storage import create_engine
from storage.settlements import settle_handoffs
from tests import factories
from tests.databases import add_users, driver_url, raw_connection, upgrade
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from demo.servers import Servers

POSTGRES_OPTIONS = ("fsync=off", "full_page_writes=off", "autovacuum=off")
CONTENT = (
    "assessment_responses",
    "assessment_scores",
    "assessment_questions",
    "assessment_claims",
    "scoring_handoffs",
)


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Servers]:
    """Servers whose binaries we know, because pg_dump must not be older than the server."""
    with embedded_servers(postgres_options=POSTGRES_OPTIONS) as running:
        yield running


def binary(running: Servers, name: str) -> str:
    """One of the programs that came with the server."""
    beside = os.path.join(os.path.dirname(running.postgres.command[0]), name)  # noqa: PTH118, PTH120 - a str
    found = shutil.which(beside)
    assert found, beside
    return found


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end, which must be a good one."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


async def filled(url: str) -> None:
    """Store answers that wait, are leased, are dead, are scored, and one whose question is not published."""
    engine = create_engine(url)
    async with engine.begin() as conn:
        await factories.publish(conn)
        submitted = [await factories.submit(conn) for _ in range(4)]
        await factories.submit(conn, question_id="later")
        leased = await factories.lease(conn, submitted[1]["response_id"])
        assert leased
        await factories.bury(conn, submitted[2]["response_id"])
        handoff = await factories.handoff_of(conn, submitted[3]["response_id"])
        assert handoff
        assert await settle_handoffs(conn, [factories.settlement(handoff)])
        # Whoever leased it is gone, and its lease has run out.
        await factories.make_overdue(conn, submitted[1]["response_id"])
    await engine.dispose()


async def rows(url: str) -> dict[str, list[str]]:
    """Everything of ours, as text."""
    async with raw_connection(url) as conn:
        return {
            table: [row[0] for row in await conn.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")]
            for table in CONTENT
        }


def verified(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """What ``scoring verify --full`` finds; it must exit with 0."""
    found: list[dict[str, Any]] = json.loads(
        run(*SCORING, "verify", "--full", "--json", environment=environment)
    )
    return found


def restore(running: Servers, into: str, dump: Path) -> str:
    """Restore a dump into a database of this name, which must not exist; returns its URL."""
    original = driver_url(running.database_url)
    url = running.database_url.removesuffix("/postgres") + f"/{into}"
    run(binary(running, "createdb"), f"--maintenance-db={original}", into)
    run(
        *(binary(running, "pg_restore"), "--exit-on-error", "--no-owner"),
        *(f"--dbname={driver_url(url)}", str(dump)),
    )
    return url


async def answered_and_leased(url: str, answer_text: str) -> dict[str, Any]:
    """Submit an answer and lease it."""
    engine = create_engine(url)
    async with engine.begin() as conn:
        submitted = await factories.submit(conn, answer_text=answer_text)
        [held] = await factories.lease(conn, submitted["response_id"])
    await engine.dispose()
    return held


@pytest.mark.processes
async def test_what_is_restored_is_whole_and_goes_on(own_servers: Servers, tmp_path: Path) -> None:
    """Dump, restore into another database, verify; then a worker scores what was open, stale messages or not."""
    original = own_servers.database_url
    await upgrade(original)
    await add_users(original)
    await filled(original)
    dump = tmp_path / "school.dump"

    run(binary(own_servers, "pg_dump"), "--format=custom", f"--file={dump}", driver_url(original))
    restored = restore(own_servers, "school_restored", dump)

    assert await rows(restored) == await rows(original)
    environment = {
        **os.environ,
        "SCORING_DATABASE_URL": restored,
        "SCORING_REDIS_URL": own_servers.redis_url,
        "SCORING_SCORER": "lexical",
        "SCORING_LEASE_SECONDS": "1",
    }
    assert all(finding["holds"] is not False for finding in verified(environment))

    engine = create_engine(restored)

    async def open_handoffs() -> int:
        async with engine.connect() as conn:
            counted = await conn.execute(
                text("SELECT count(*) FROM scoring_handoffs WHERE state = 'open' AND due_at < 'infinity'")
            )
            return int(counted.scalar_one())

    with worker_process(environment, tmp_path / "worker.log"):
        await eventually(lambda: nothing_left(open_handoffs))
    await engine.dispose()
    assert all(finding["holds"] is not False for finding in verified(environment))
    scores = (await rows(restored))["assessment_scores"]
    assert len(scores) == 1 + len((await rows(original))["assessment_scores"]) + 1, (
        "two were open, one was scored"
    )


async def nothing_left(count: Any) -> bool:
    """Whether nothing is counted any more."""
    return bool(await count() == 0)


@pytest.mark.processes
async def test_a_score_of_what_a_restore_has_undone_reaches_no_other_answer(
    own_servers: Servers, tmp_path: Path
) -> None:
    """The restored database gives the same ids to another answer; a worker that still runs cannot score it by mistake."""
    original = own_servers.database_url
    await upgrade(original)
    await add_users(original)
    await filled(original)
    dump = tmp_path / "school.dump"
    run(binary(own_servers, "pg_dump"), "--format=custom", f"--file={dump}", driver_url(original))
    undone = await answered_and_leased(original, "Undone by the restore.")

    restored = restore(own_servers, "school_undone", dump)
    other = await answered_and_leased(restored, "Another one.")

    assert (other["handoff_id"], other["response_id"]) == (undone["handoff_id"], undone["response_id"])
    engine = create_engine(restored)
    async with engine.begin() as conn:
        assert await settle_handoffs(conn, [factories.settlement(undone)]) == []
        assert await factories.scores_of(conn, other["response_id"]) == []
        assert len(await settle_handoffs(conn, [factories.settlement(other)])) == 1
    await engine.dispose()
