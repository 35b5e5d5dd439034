from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from producers.bell import Bell, connect_redis
from producers.contract import ScoreResponses
from storage.engine import single_statements
from storage.migration_files import newest_revision
from storage.tables import VERSION_TABLE
from tests.console.conftest import free_port
from tests.databases import ROOT, raw_connection, upgrade
from tests.producers.proxy import Proxy
from tests.producers.waiting import eventually
from tests.worker.scripted import submit_answers
from worker.http.probes import HANGS_SECONDS, Watchdog, judge_revision
from worker.migrations import head_revision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]


async def test_a_worker_that_turns_is_alive(opened: Opened, browserless: httpx.AsyncClient) -> None:
    """It lives as long as its loops do, and says which of them has ended."""
    answer = await browserless.get("/healthz")
    assert (answer.status_code, answer.json()["alive"]) == (200, True)

    opened.ended.append("sweep")
    answer = await browserless.get("/healthz")

    assert answer.status_code == 503
    assert answer.json()["ended"] == ["sweep"]


async def test_a_watchdog_that_does_not_come_by_any_more_is_noticed() -> None:
    """Answering alone is no proof: if what comes by every second does not, the worker is not alive."""
    watchdog = Watchdog(list)
    assert watchdog.report()[0]

    watchdog._turned_at -= HANGS_SECONDS

    assert not watchdog.report()[0]


async def test_servers_that_are_away_make_nobody_start_a_worker_anew(
    open_port: OpenPort, database_url: str
) -> None:
    """Without PostgreSQL and Redis a worker is alive and not ready; each is named, and comes back by itself."""
    async with Proxy(make_url(database_url).port or 5432) as postgres, Proxy(1) as nothing:
        redis = connect_redis(f"redis://127.0.0.1:{nothing.port}/0", timeout_seconds=1)
        through = make_url(database_url).set(host="127.0.0.1", port=postgres.port)
        async with (
            open_port(database_url=through.render_as_string(hide_password=False), client=redis) as port,
            port.client() as client,
        ):
            postgres.break_down()
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            checks = answer.json()["checks"]
            assert {name: check["ok"] for name, check in checks.items()} == {
                "postgresql": False,
                "redis": False,
                "schema": False,
            }
            assert (await client.get("/healthz")).status_code == 200

            postgres.refuses = False

            async def postgres_is_back() -> Any:
                return (await client.get("/readyz")).json()["checks"]["postgresql"]["ok"]

            await eventually(postgres_is_back)
        await redis.aclose()


async def test_a_server_that_accepts_and_never_answers_is_given_up(
    open_port: OpenPort, database_url: str
) -> None:
    """The probe answers within its own time, not within the server's; and so does a second one meanwhile."""
    async with Proxy(make_url(database_url).port or 5432) as proxy:
        through = make_url(database_url).set(host="127.0.0.1", port=proxy.port)
        async with (
            open_port(database_url=through.render_as_string(hide_password=False)) as port,
            port.client() as client,
        ):
            assert (await client.get("/readyz")).status_code == 200
            proxy.silent = True

            async def gave_up() -> bool:
                checks = (await client.get("/readyz")).json()["checks"]
                return str(checks["postgresql"]["detail"]).startswith("no answer")

            await eventually(gave_up)
            assert (await client.get("/readyz")).json()["checks"]["redis"]["ok"]


async def test_many_probes_cost_one_look(open_port: OpenPort, database_url: str) -> None:
    """However often and from however many it is asked at once, PostgreSQL is asked once."""
    async with Proxy(make_url(database_url).port or 5432) as proxy:
        through = make_url(database_url).set(host="127.0.0.1", port=proxy.port)
        async with (
            open_port(database_url=through.render_as_string(hide_password=False)) as port,
            port.client() as client,
        ):
            await client.get("/readyz")
            before = proxy.requests
            answers = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert proxy.requests - before <= 10  # none, or one look where two seconds had gone by


async def test_a_worker_that_stops_is_not_ready(opened: Opened, browserless: httpx.AsyncClient) -> None:
    """It is alive until it has handed everything back."""
    opened.stopping = True

    assert (await browserless.get("/readyz")).status_code == 503
    assert (await browserless.get("/readyz")).json()["stopping"] is True
    assert (await browserless.get("/healthz")).status_code == 200


async def test_tables_of_another_version(
    open_port: OpenPort, make_database: Callable[[], Awaitable[str]]
) -> None:
    """Older ones than this version needs, or none, are named with what to do; newer ones are a rollout."""
    url = await make_database()
    async with open_port(database_url=url) as port, port.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "scoring migrate" in answer.json()["checks"]["schema"]["detail"]
    await upgrade(url)
    async with open_port(database_url=url) as port, port.client() as client:
        assert (await client.get("/readyz")).status_code == 200
    async with raw_connection(url) as connection:
        await connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")
    async with open_port(database_url=url) as port, port.client() as client:
        answer = await client.get("/readyz")
        assert answer.json()["checks"]["schema"] == {
            "ok": False,
            "detail": f"revision 0001, expected {head_revision()}: run scoring migrate",
        }


def test_a_newer_revision_is_fine() -> None:
    """In a rollout the tables are migrated while old workers go on."""
    assert judge_revision("0009", "0003").ok
    assert judge_revision("0003", "0003").ok


def test_the_newest_file_is_alembics_head() -> None:
    """Alembic itself is not imported by a worker; what the names of the files say is what it says."""
    assert newest_revision() == head_revision()


@pytest.mark.commits
@pytest.mark.processes
async def test_a_hung_event_loop_does_not_answer(
    engine: AsyncEngine, redis: Redis, database_url: str, redis_url: str
) -> None:
    """What a liveness probe is for: a scorer that blocks the loop, so that nobody renews, sweeps or answers any more."""
    port = free_port()
    environment = {
        "SCORING_DATABASE_URL": database_url,
        "SCORING_REDIS_URL": redis_url,
        "SCORING_SCORER": "tests.console.freezing:FreezingScorer",
        "SCORING_HTTP_PORT": str(port),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from worker.cli import main; main()", "worker"),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def alive() -> bool:
                assert process.returncode is None, (await process.communicate())[1].decode()
                try:
                    return (await client.get("/healthz", timeout=5)).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(alive)
            ids = await submit_answers(engine, 1)
            await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])

            async def hangs() -> bool:
                try:
                    await client.get("/healthz", timeout=1)
                except httpx.TimeoutException:
                    return True
                return False

            await eventually(hangs)
    finally:
        process.kill()
        await process.communicate()


async def test_a_console_that_waits_makes_no_worker_unready(open_port: OpenPort, engine: AsyncEngine) -> None:
    """Whoever looks uses one connection, however slow that is; a probe has the other one."""
    async with open_port() as port, port.client() as client, engine.connect() as locking:
        await locking.execute(text("LOCK TABLE scoring_handoffs IN ACCESS EXCLUSIVE MODE"))
        watching = [
            asyncio.create_task(client.get(path)) for path in ("/console", "/console/live", "/console/dead")
        ]
        async with single_statements(
            engine
        ) as conn:  # a transaction would see the same activity again and again

            async def looks() -> bool:
                waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                return bool((await conn.execute(waiting)).scalar_one())

            await eventually(looks)
        answer = await client.get("/readyz")
        assert answer.status_code == 200, answer.text

        await locking.rollback()
        pages = await asyncio.gather(*watching)
    assert pages[0].status_code == 200
