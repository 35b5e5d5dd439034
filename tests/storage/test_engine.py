from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from storage import create_engine, get_responses
from storage.leases import pull_handoffs
from tests.factories import LEASE_SECONDS, publish, submit
from tests.races import committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


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
