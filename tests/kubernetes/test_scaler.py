"""The scaler's query, on a really migrated PostgreSQL: it counts right, costs little and may do nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import create_engine, submit_responses
from storage.dead import dismiss_dead
from storage.errors import AccessDeniedError
from storage.settlements import fail_handoffs, postpone_handoffs
from storage.statistics import handoff_statistics
from tests.databases import raw_connection, temporary_database, upgrade
from tests.factories import (
    bury,
    change_handoff,
    lease,
    make_overdue,
    publish,
    release,
    submission,
    submit,
)
from tests.kubernetes.manifests import (
    INDEX,
    LOGIN_SETTINGS,
    ROLE_SCRIPT,
    limits,
    query,
    secret,
)
from tests.storage.acting import perform
from tests.storage.test_query_plans import nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.conftest import GivenServers


async def count(conn: AsyncConnection) -> int:
    """What KEDA reads: one row with one whole number."""
    [[number]] = (await conn.exec_driver_sql(query())).all()
    assert type(number) is int
    return number


async def test_an_empty_table_needs_no_worker(conn: AsyncConnection) -> None:
    """Nothing waits: the least number of workers stays."""
    assert await count(conn) == 0


async def test_what_waits_and_what_is_leased_is_counted(conn: AsyncConnection) -> None:
    """Both lanes; neither postponed nor failed nor dead nor dismissed nor unpublished; a lease that ran out waits."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 20)]
    for response_id in ids[0:4]:
        await change_handoff(conn, response_id, lane="bulk")
    await lease(conn, ids[0], lease_seconds=30)
    await lease(conn, *ids[4:7], lease_seconds=30)
    await make_overdue(conn, ids[6])
    postponed = await lease(conn, *ids[7:10])
    for held, delay_seconds in zip(postponed, (1, 20, 500), strict=True):
        await postpone_handoffs(conn, [release(held, delay_seconds=delay_seconds, reason="503")])
    failed = await lease(conn, *ids[10:12])
    await fail_handoffs(conn, [release(held, delay_seconds=5, reason="nonsense") for held in failed])
    for response_id in ids[12:15]:
        await bury(conn, response_id)
    await dismiss_dead(conn, response_ids=ids[12:13], dismissed_by="ops")
    await submit(conn, question_id="late")

    # Waiting: three of bulk, one whose lease ran out, five that nobody touched. Leased: one of bulk, two of live.
    assert await count(conn) == 3 + 1 + 5 + 1 + 2
    status = await handoff_statistics(conn)
    assert await count(conn) == status["waiting_live"] + status["waiting_bulk"] + status["leased"]


MANY: Final = """
    INSERT INTO users (user_id) SELECT 1;
    INSERT INTO assessment_questions
        (question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max)
        VALUES ('digest', 'm', 'q', 't', 'r', 1, 5);
    INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text, question_digest)
        SELECT 1, 'm', 'q', 'An answer of some length.', 'digest' FROM generate_series(1, 40000);
    -- Postponed first, then what waits, then what is leased: whoever read the table from its beginning would read all.
    INSERT INTO scoring_handoffs (response_id, question_digest, lane, due_at, lease_token, leased_at, last_error)
        SELECT response_id, 'digest', CASE WHEN response_id % 5 = 0 THEN 'bulk' ELSE 'live' END,
            statement_timestamp() + CASE
                WHEN response_id <= 20000 THEN interval '1 hour'
                WHEN response_id <= 39000 THEN interval '-1 hour'
                ELSE interval '20 seconds'
            END,
            CASE WHEN response_id > 39000 THEN gen_random_uuid() END,
            CASE WHEN response_id > 39000 THEN statement_timestamp() END,
            CASE WHEN response_id <= 20000 THEN '503' END
        FROM assessment_responses ORDER BY response_id;
"""


@pytest.fixture(scope="module")
async def large(servers: GivenServers) -> AsyncIterator[AsyncEngine]:
    """A database of its own with tens of thousands of handoffs."""
    async with temporary_database(servers.database_url) as url:
        await upgrade(url)
        async with raw_connection(url) as connection:
            await connection.execute(MANY)
        engine = create_engine(url)
        yield engine
        await engine.dispose()


@pytest.fixture
async def scaler(large: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection to it with the settings that the scaler's login has; whatever the test does is undone."""
    async with large.connect() as conn, conn.begin() as undone:
        for name, value in LOGIN_SETTINGS.items():
            await conn.exec_driver_sql(f"SET LOCAL {name} = {value}")
        yield conn
        await undone.rollback()


async def explain(conn: AsyncConnection, statement: str) -> list[int]:
    """Run it, and say how many rows each read of the index brought, those that were dropped then included."""
    driver: Any = (await conn.get_raw_connection()).driver_connection
    plan = list(nodes(await driver.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")))
    reads = [node for node in plan if "Index Name" in node]
    kinds = {node["Node Type"] for node in plan}

    assert kinds <= {"Result", "Aggregate", "Limit", "Index Scan"}, json.dumps(plan[0], indent=1)
    assert {node["Index Name"] for node in reads} == {INDEX}
    return [int(node["Actual Rows"]) + int(node.get("Rows Removed by Filter", 0)) for node in reads]


async def nothing_waits(conn: AsyncConnection) -> None:
    """Postpone what waits; a thousand leases are left, a fifth of them of bulk."""
    await conn.execute(
        text("UPDATE scoring_handoffs SET due_at = due_at + interval '2 hours' WHERE lease_token IS NULL")
    )
    await conn.execute(text("ANALYZE scoring_handoffs"))


@pytest.mark.parametrize("known", [False, True], ids=["without statistics", "with statistics"])
async def test_counting_a_backlog_is_bounded(scaler: AsyncConnection, *, known: bool) -> None:
    """It reads the index up to its limits, and no row beyond: a backlog of a million costs no more."""
    if known:
        await scaler.execute(text("ANALYZE scoring_handoffs"))

    assert await count(scaler) == sum(limits())
    assert await explain(scaler, query()) == limits()


async def test_what_is_postponed_costs_nothing(scaler: AsyncConnection) -> None:
    """With nothing waiting, the leased ones are counted, and what is due after a lease time is not even read."""
    await nothing_waits(scaler)

    assert await count(scaler) == 1000
    assert await explain(scaler, query()) == [800, 200]


async def test_a_plan_that_was_kept_is_bounded_too(scaler: AsyncConnection) -> None:
    """KEDA's driver prepares the query once: planned while nothing waited, it stops at its limits all the same."""
    driver: Any = (await scaler.get_raw_connection()).driver_connection
    await nothing_waits(scaler)
    await driver.execute(f"PREPARE kept AS {query()}")

    assert await explain(scaler, "EXECUTE kept") == [800, 200]
    await scaler.execute(
        text("UPDATE scoring_handoffs SET due_at = due_at - interval '3 hours' WHERE lease_token IS NULL")
    )
    assert await explain(scaler, "EXECUTE kept") == limits()
    await driver.execute("DEALLOCATE kept")


async def test_the_scalers_login_counts_and_can_do_nothing_else(conn: AsyncConnection) -> None:
    """What scaler-role.sql grants is enough for the query, and not for an answer, a score or any change."""
    login = secret("scoring-scaler")["userName"]
    role = f"scoring_test_scaler_{uuid4().hex[:8]}"
    assert f"CREATE ROLE {login} LOGIN" in ROLE_SCRIPT
    # Roles belong to the whole server: under a name that nobody else has, and undone with the transaction.
    for statement in ROLE_SCRIPT.replace(login, role).split(";"):
        if statement.strip():
            await conn.exec_driver_sql(statement)
    await publish(conn)
    await submit(conn)

    await conn.execute(text(f"SET LOCAL SESSION AUTHORIZATION {role}"))
    assert await count(conn) == 1
    for refused in (
        "SELECT answer_text FROM assessment_responses",
        "SELECT score_data FROM assessment_scores",
        "SELECT rubric FROM assessment_questions",
        "SELECT anonymous_token FROM assessment_claims",
        "SELECT response_id FROM scoring_handoffs",
        "SELECT trace_context FROM scoring_handoffs",
        "SELECT last_error FROM scoring_handoffs",
        "UPDATE scoring_handoffs SET due_at = now()",
        "DELETE FROM scoring_handoffs",
        "INSERT INTO scoring_handoffs (response_id) VALUES (1)",
        "SELECT 1 FROM scoring_handoffs FOR UPDATE",
        "SELECT user_id FROM users",
    ):
        with pytest.raises(AccessDeniedError):
            async with conn.begin_nested():
                await perform(conn, refused)
    login_row = await conn.execute(
        text("SELECT rolcanlogin, rolsuper, rolcreaterole, rolconfig FROM pg_roles WHERE rolname = :role"),
        {"role": role},
    )
    can_login, *privileged, config = login_row.one()
    assert can_login
    assert not any(privileged)
    assert dict(option.split("=") for option in config) == {
        name: value.strip("'") for name, value in LOGIN_SETTINGS.items()
    }
    assert LOGIN_SETTINGS["default_transaction_read_only"] == "on"
