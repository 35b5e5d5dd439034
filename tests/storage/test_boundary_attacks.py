"""What somebody who holds a web app's login may try so that the database looks away."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from storage.errors import AccessDeniedError
from storage.roles import grant_roles
from storage.settlements import settle_handoffs
from storage.translation import translated
from tests.factories import count, handoff_of, lease, settlement
from tests.races import blocked, committed
from tests.storage.acting import ROLES, acting_as, committed_roles, logged_in_as, perform
from tests.storage.forging import RESCORE, Stored, store

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@pytest.fixture
async def stored(conn: AsyncConnection) -> Stored:
    """What is there before anybody tries anything; the three roles exist."""
    await grant_roles(conn, ROLES)
    return await store(conn)


# Tables that would say that everything is in order, if they were asked: of these rows one could say that they were
# stored just now.
SHADOWS = """
    CREATE TEMP TABLE assessment_responses AS
        SELECT response_id, question_digest, module_slug, question_id FROM public.assessment_responses;
    CREATE TEMP TABLE assessment_questions AS SELECT * FROM public.assessment_questions;
    CREATE TEMP TABLE inserted (handoff_id bigint, response_id bigint, question_digest text, due_at timestamptz)
"""


async def test_temporary_tables_deceive_nobody(conn: AsyncConnection, stored: Stored) -> None:
    """They come first in every search_path, but not in the triggers'."""

    async def shadow_and_hand_off(web: AsyncConnection) -> None:
        async with web.begin_nested():
            for statement in SHADOWS.split(";"):
                await perform(web, statement)
            await perform(web, stored.written(RESCORE[0]))

    async with logged_in_as(conn, "web") as web:
        with pytest.raises(AccessDeniedError, match="scoring grant"):
            await shadow_and_hand_off(web)


# Functions and operators that agree to everything.
AGREEING = """
    CREATE SCHEMA agreeing;
    CREATE FUNCTION agreeing.has_column_privilege(name, oid, text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION agreeing.same(xid, xid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
    CREATE OPERATOR agreeing.= (LEFTARG = xid, RIGHTARG = xid, FUNCTION = agreeing.same);
    CREATE FUNCTION agreeing.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT CAST(''-infinity'' AS timestamptz)';
    CREATE TABLE agreeing.assessment_responses (LIKE assessment_responses);
    GRANT USAGE ON SCHEMA agreeing TO PUBLIC;
    GRANT ALL ON agreeing.assessment_responses TO PUBLIC;
    SET LOCAL search_path = agreeing, pg_catalog, public
"""


async def test_neither_do_functions_and_operators(conn: AsyncConnection, stored: Stored) -> None:
    """Whatever stands earlier in the search_path of who inserts, the trigger asks PostgreSQL's own."""
    for statement in AGREEING.split(";"):
        await perform(conn, statement)
    deceived = await conn.execute(text("SELECT CAST('1' AS xid) = CAST('2' AS xid) AND now() = '-infinity'"))
    assert deceived.scalar_one()

    with pytest.raises(AccessDeniedError):
        async with acting_as(conn, "web") as web:
            await perform(web, stored.written(RESCORE[0]))


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL session_replication_role = replica",
        "ALTER TABLE scoring_handoffs DISABLE TRIGGER tr_scoring_handoffs_inserted",
        "ALTER TABLE scoring_handoffs DISABLE TRIGGER USER",
        "DROP TRIGGER tr_scoring_handoffs_inserted ON scoring_handoffs",
        "DROP FUNCTION scoring_handoffs_inserted() CASCADE",
        "CREATE OR REPLACE FUNCTION scoring_handoffs_inserted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "ALTER FUNCTION scoring_handoffs_inserted() RESET search_path",
        "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT clock_timestamp()'",
        "CREATE TRIGGER t BEFORE INSERT ON scoring_handoffs FOR EACH ROW EXECUTE FUNCTION scoring_handoffs_inserted()",
        "CREATE RULE r AS ON INSERT TO scoring_handoffs DO INSTEAD NOTHING",
        "GRANT INSERT (lane) ON scoring_handoffs TO CURRENT_USER",
        "SET LOCAL ROLE {ops}",
        "ALTER ROLE {web} SUPERUSER",
        "GRANT {ops} TO CURRENT_USER",
    ],
)
async def test_a_web_app_cannot_take_the_rule_away(
    conn: AsyncConnection, stored: Stored, statement: str
) -> None:
    """Nor become somebody to whom it does not apply."""
    async with logged_in_as(conn, "web") as web:
        # PostgreSQL only warns of a GRANT that grants nothing.
        with suppress(AccessDeniedError):
            async with web.begin_nested():
                await perform(web, statement.format(**ROLES))

        with pytest.raises(AccessDeniedError):
            async with web.begin_nested():
                await perform(web, stored.written(RESCORE[0]))


@pytest.mark.commits
async def test_a_copy_is_an_insert(engine: AsyncEngine) -> None:
    """COPY passes the same rule."""
    stored = await committed(engine, store)
    async with committed_roles(engine) as roles, engine.connect() as conn:
        await conn.execute(text(f"SET LOCAL ROLE {roles['web']}"))
        driver = (await conn.get_raw_connection()).driver_connection
        assert driver is not None
        with pytest.raises(Exception, match="this role may hand off only"):
            await driver.copy_records_to_table(
                "scoring_handoffs",
                records=[(stored.scored, stored.current)],
                columns=["response_id", "question_digest"],
            )
        await conn.rollback()

    async with engine.connect() as conn:
        assert await handoff_of(conn, stored.scored) is None


@pytest.mark.commits
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
async def test_a_score_that_is_being_written_counts(engine: AsyncEngine, isolation: str) -> None:
    """Whoever inserts while the answer is settled waits for that, and is refused, however old his snapshot is."""
    stored = await committed(engine, store)

    async with committed_roles(engine) as roles, engine.connect() as settler:
        [held] = await lease(settler, stored.waiting)
        assert await settle_handoffs(settler, [settlement(held)])

        async def hand_off(conn: AsyncConnection) -> None:
            await conn.rollback()
            await conn.execute(text(f"SET TRANSACTION ISOLATION LEVEL {isolation}"))
            await conn.execute(text(f"SET LOCAL ROLE {roles['web']}"))
            seen = text("SELECT count(*) FROM assessment_scores WHERE response_id = :id")
            assert (await conn.execute(seen, {"id": stored.waiting})).scalar_one() == 0
            await perform(conn, stored.written(RESCORE[0].replace("scored", "waiting")))

        async with blocked(engine, hand_off) as waiting:
            await settler.commit()
        with pytest.raises(AccessDeniedError), translated():
            await waiting

    async with engine.connect() as conn:
        assert await handoff_of(conn, stored.waiting) is None
        assert await count(conn, "assessment_scores") == 2
