from __future__ import annotations

import gc
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from storage import create_engine, get_responses
from storage.engine import _autocommit, parse_database_url, single_statements
from storage.leases import pull_handoffs
from tests.factories import LEASE_SECONDS, publish, submit
from tests.races import committed


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
async def test_any_url_is_read_by_our_driver(database_url: str, driver: str) -> None:
    """A web app gives us the URL that it has, for whatever driver."""
    url = make_url(database_url).set(drivername=driver).render_as_string(hide_password=False)
    engine = create_engine(url)
    try:
        async with engine.connect() as conn:
            shown = await conn.execute(text("SHOW application_name"))
            assert shown.scalar_one() == "assessment-scoring"
    finally:
        await engine.dispose()


@pytest.mark.commits
async def test_behind_pgbouncer(database_url: str) -> None:
    """No pool, no start-up parameter, and after a transaction no prepared statement is left to be met again."""
    engine = create_engine(database_url, pgbouncer=True)
    try:
        assert isinstance(engine.pool, NullPool)
        await committed(engine, publish)
        await committed(engine, submit)
        pull = partial(pull_handoffs, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=1)
        assert len(await committed(engine, pull)) == 1
        assert len(await committed(engine, partial(get_responses, user_id=1))) == 1
        async with engine.connect() as conn:
            assert (await conn.execute(text("SHOW application_name"))).scalar_one() == ""
            for _ in range(2):
                named = await conn.execute(text("SELECT name FROM pg_prepared_statements"))
                names = list(named.scalars())
                assert len(names) == len(set(names))
                assert all(name.startswith("__scoring_") for name in names)
    finally:
        await engine.dispose()


async def test_the_pool_is_as_large_as_it_says(engine: AsyncEngine) -> None:
    """No connection beyond it is opened: PostgreSQL's limit can be planned for."""
    assert engine.pool.status().startswith("Pool size: 10")


@pytest.mark.parametrize(("pgbouncer", "began"), [(False, 0), (True, 1)])
async def test_statements_stand_alone_only_on_a_connection_of_our_own(
    database_url: str, *, pgbouncer: bool, began: int
) -> None:
    """Behind PgBouncer a statement is prepared and run in one transaction, or the two may reach different servers."""
    engine = create_engine(database_url, pgbouncer=pgbouncer)
    transactions: list[object] = []
    event.listen(engine.sync_engine, "begin", transactions.append)
    event.listen(engine.sync_engine, "commit", transactions.append)
    try:
        async with single_statements(engine) as conn:
            level = conn.sync_connection and conn.sync_connection.get_execution_options().get(
                "isolation_level"
            )
            await conn.execute(text("SELECT 1"))
        assert (level == "AUTOCOMMIT") is not pgbouncer
        if began:
            assert len(transactions) == 2
    finally:
        await engine.dispose()


async def test_an_engine_has_one_twin_in_autocommit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one takes longer than taking a connection from it; and it dies with its engine."""
    made: list[object] = []
    original = AsyncEngine.execution_options

    def counted(self: AsyncEngine, **options: Any) -> AsyncEngine:
        made.append(options)
        return original(self, **options)

    monkeypatch.setattr(AsyncEngine, "execution_options", counted)
    engine = create_engine(database_url)
    for _ in range(3):
        async with single_statements(engine) as conn:
            await conn.execute(text("SELECT 1"))
    assert made == [{"isolation_level": "AUTOCOMMIT"}]
    assert engine in _autocommit
    await engine.dispose()
    engines = len(_autocommit)
    del engine
    gc.collect()
    assert len(_autocommit) < engines


def test_parameters_of_a_url_are_translated_or_refused() -> None:
    """``sslmode`` is the driver's ``ssl``; what the driver does not take is refused by name, not by a traceback."""
    url, arguments = parse_database_url("postgres://u:p@h:5/d?sslmode=require&application_name=app")
    assert url.render_as_string(hide_password=False) == "postgresql+asyncpg://u:p@h:5/d"
    assert arguments == {"ssl": "require", "server_settings": {"application_name": "app"}}
    with pytest.raises(ValueError, match="options is not understood"):
        parse_database_url("postgresql://h/d?options=-csearch_path%3Dx")
    with pytest.raises(ValueError, match="expected postgresql://"):
        parse_database_url("mysql://h/d")
