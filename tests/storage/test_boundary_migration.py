"""Revision 0002: what comparing tables does not see, and how it arrives in a database that is in use."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from alembic import command
from storage import claims, create_engine, get_responses, publish_questions, submit_responses
from storage.claims import request_claim
from storage.engine import single_statements
from storage.errors import AccessDeniedError
from storage.leases import pull_handoffs
from storage.roles import grant_roles
from storage.settlements import settle_handoffs
from storage.sweeps import revive_missed
from storage.tables import OWN_TABLES
from tests.databases import add_users, raw_connection
from tests.factories import LEASE_SECONDS, bury, lease, publish, question, settlement, submission, submit
from tests.producers.waiting import eventually
from tests.races import committed
from tests.storage.acting import acting_as, new_roles, perform
from tests.storage.catalogues import catalogue, execute, run, value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

BEFORE = "0001"
BOUNDARY = "0002"
# It must be quoted wherever it is named.
SCHEMA = '"Learning App"'

FUNCTIONS = """
    SELECT p.proname, p.prosecdef, p.proconfig::text FROM pg_proc AS p
    WHERE p.pronamespace = quote_ident(current_schema())::regnamespace ORDER BY 1
"""
OURS = [
    ("scoring_handoffs_inserted", False, '{"search_path=pg_catalog, pg_temp"}'),
    ("scoring_handoffs_redirected", False, '{"search_path=pg_catalog, pg_temp"}'),
]


async def functions(url: str) -> list[tuple[Any, ...]]:
    async with raw_connection(url) as connection:
        return [tuple(row) for row in await connection.fetch(FUNCTIONS)]


async def rows(url: str) -> dict[str, list[str]]:
    """Every row of ours, as text; columns that came later show as their null, tables that came later not at all."""
    async with raw_connection(url) as connection:
        return {
            table: [
                row[0]
                for row in await connection.fetch(f"SELECT to_jsonb(t)::text FROM {table} AS t ORDER BY 1")
            ]
            for table in sorted(OWN_TABLES)
            if await connection.fetchval("SELECT to_regclass($1)", table) is not None
        }


@pytest.fixture
async def used(make_database: Callable[[], Awaitable[str]]) -> AsyncIterator[tuple[str, AsyncEngine]]:
    """A database at the revision before, with users."""
    url = await make_database()
    await run(command.upgrade, url, BEFORE)
    await add_users(url)
    engine = create_engine(url, pool_size=10, timeout_seconds=30)
    yield url, engine
    await engine.dispose()


async def fill(conn: AsyncConnection) -> None:
    """An answer in every state, of every edition."""
    await publish(conn, rubric="old")
    scored, dead, leased, _ = [row["response_id"] for row in await submit_responses(conn, [submission()] * 4)]
    await publish(conn, rubric="new")
    await submit(conn, anonymous_token="t")
    await submit(conn, question_id="unpublished")
    await bury(conn, dead)
    [held] = await lease(conn, scored)
    await settle_handoffs(conn, [settlement(held)])
    assert len(await lease(conn, leased)) == 1


async def test_rows_that_are_there_stay_as_they_are(used: tuple[str, AsyncEngine]) -> None:
    """Up and down with answers in every state; the next answers are as welcome as before."""
    url, engine = used
    await committed(engine, fill)
    before = await rows(url)

    await run(command.upgrade, url, BOUNDARY)
    assert await rows(url) == before
    await run(command.downgrade, url, BEFORE)
    assert await rows(url) == before
    await run(command.upgrade, url, BOUNDARY)

    await committed(engine, submit)
    assert await value(
        url, "SELECT bool_and(convalidated) FROM pg_constraint WHERE conname LIKE 'fk_assessment_%'"
    )


async def test_triggers_and_functions_come_and_go(make_database: Callable[[], Awaitable[str]]) -> None:
    """No autogeneration knows of them, so they are looked for here; no function runs with its owner's rights."""
    url = await make_database()
    await run(command.upgrade, url, BEFORE)
    before = await catalogue(url, ours=True)
    assert await functions(url) == []

    await run(command.upgrade, url, BOUNDARY)
    assert await functions(url) == OURS
    after = await catalogue(url, ours=True)
    assert after["triggers"] == [
        ("scoring_handoffs", "tr_scoring_handoffs_inserted"),
        ("scoring_handoffs", "tr_scoring_handoffs_redirected"),
    ]

    await run(command.downgrade, url, BEFORE)
    assert await functions(url) == []
    assert await catalogue(url, ours=True) == before


async def test_what_was_forged_before_stops_the_upgrade(used: tuple[str, AsyncEngine]) -> None:
    """A response that is pinned to another question is for a person to look into; nothing is changed meanwhile."""
    url, engine = used
    digest = await committed(engine, partial(publish, question_id="easy"))
    await execute(
        url,
        "INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text, question_digest)"
        f" VALUES (1, 'biology', 'photosynthesis', 'a', '{digest}')",
    )
    before = await catalogue(url, ours=True)

    with pytest.raises(Exception, match="fk_assessment_responses_pinned"):
        await run(command.upgrade, url, BOUNDARY)

    assert await catalogue(url, ours=True) == before


@pytest.mark.parametrize("offline", [False, True], ids=["online", "script"])
async def test_the_triggers_find_our_tables_in_any_schema(
    make_database: Callable[[], Awaitable[str]],
    offline: bool,  # noqa: FBT001
) -> None:
    """Wherever the default schema is, whatever it is called, and though others have tables of these names."""
    url = await make_database()
    await execute(
        url,
        f"""
        CREATE SCHEMA {SCHEMA};
        CREATE TABLE public.assessment_responses (response_id bigint);
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET search_path = {SCHEMA}', current_database());
        END $$
        """,
    )
    if offline:
        await execute(url, await run(command.upgrade, url, "head", sql=True))
    else:
        await run(command.upgrade, url, "head")  # grants are on tables that came later, too
    await add_users(url)
    engine = create_engine(url)
    roles = new_roles()
    try:
        async with engine.connect() as conn:
            await grant_roles(conn, roles)
            for role in roles.values():
                await conn.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}"))
            digest = await publish(conn)
            async with acting_as(conn, "web", roles=roles) as web:
                stored = await submit(web)
            await conn.execute(text("DELETE FROM scoring_handoffs"))
            statement = (
                "INSERT INTO scoring_handoffs (response_id, question_digest)"
                f" VALUES ({stored['response_id']}, '{digest}')"
            )
            with pytest.raises(AccessDeniedError):
                async with acting_as(conn, "web", roles=roles) as web:
                    await perform(web, statement)
            async with acting_as(conn, "ops", roles=roles) as ops:
                await perform(ops, statement)
    finally:
        await engine.dispose()

    await run(command.downgrade, url, BEFORE)
    assert await functions(url) == []


class Traffic:
    """Students, workers, an operator and the sweep, all at once; what they are told is kept."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.done: Counter[str] = Counter()
        self.refused: list[str] = []
        self._tasks = [
            asyncio.create_task(self._repeat(work))
            for work in (
                *(self.submit, self.submit, self.score, self.score),
                *(self.claim, self.publish, self.sweep, self.read),
            )
        ]

    async def _repeat(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        while True:
            try:
                async with single_statements(self._engine) as conn:
                    await work(conn)
            except Exception as exc:  # noqa: BLE001 - none is expected
                self.refused.append(f"{work.__name__}: {exc!r}")
            self.done[work.__name__] += 1

    async def submit(self, conn: AsyncConnection) -> None:
        await submit_responses(conn, [submission(question_id=f"q{number}") for number in range(5)])

    async def score(self, conn: AsyncConnection) -> None:
        leases = await pull_handoffs(
            conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=10
        )
        await settle_handoffs(conn, [settlement(held) for held in leases])

    async def claim(self, conn: AsyncConnection) -> None:
        token = f"{uuid4()}"
        await submit_responses(conn, [submission(anonymous_token=token, question_id=token)])
        claim_id = await request_claim(conn, anonymous_token=token, user_id=7)
        # As editions applied it that knew of no drafts.
        applied = (await conn.execute(claims._APPLY, {"claim_id": claim_id})).mappings().one()
        assert applied["moved"] == 1

    async def publish(self, conn: AsyncConnection) -> None:
        rubric = f"rubric {self.done['publish'] % 3}"
        await publish_questions(
            conn, [question(question_id=f"q{number}", rubric=rubric) for number in range(3)]
        )

    async def sweep(self, conn: AsyncConnection) -> None:
        await revive_missed(conn)

    async def read(self, conn: AsyncConnection) -> None:
        await get_responses(conn, user_id=7)

    async def goes_on(self) -> None:
        """Everybody has done something since now."""
        so_far = self.done.copy()
        await eventually(lambda: all(self.done[name] > so_far[name] + 1 for name in WORK))

    async def end(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


WORK = ("submit", "score", "claim", "publish", "sweep", "read")


@pytest.mark.parametrize("number", range(3))
async def test_nobody_who_works_meanwhile_hears_of_it(used: tuple[str, AsyncEngine], number: int) -> None:
    """The upgrade waits for who runs, and who comes waits for it: no deadlock, no refusal on either side."""
    url, engine = used
    await execute(
        url,
        "INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text)"
        " SELECT 20, 'm', 'q', repeat('answer ', 20) FROM generate_series(1, 20000)",
    )
    traffic = Traffic(engine)
    try:
        await traffic.goes_on()
        await run(command.upgrade, url, BOUNDARY)
        await traffic.goes_on()
    finally:
        await traffic.end()

    assert traffic.refused == []
