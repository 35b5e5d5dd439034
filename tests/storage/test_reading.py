from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from storage import StorageUnavailableError
from storage.reading import reading
from storage.translation import translated
from tests.factories import publish

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


async def test_a_look_changes_nothing(engine: AsyncEngine) -> None:
    """PostgreSQL itself refuses; and the connection that was looked with can write again afterwards."""
    with pytest.raises(StorageUnavailableError), translated():
        async with reading(engine, timeout_seconds=5) as conn:
            await publish(conn)

    async with engine.connect() as conn:
        assert (await conn.execute(text("SHOW transaction_read_only"))).scalar_one() == "off"
        await publish(conn)
        await conn.rollback()


async def test_a_look_that_takes_too_long_is_ended(engine: AsyncEngine) -> None:
    """By PostgreSQL, so that nothing goes on there; the time-out ends with the transaction."""
    with pytest.raises(StorageUnavailableError), translated():
        async with reading(engine, timeout_seconds=0.05) as conn:
            await conn.execute(text("SELECT pg_sleep(60)"))

    async with engine.connect() as conn:
        assert (await conn.execute(text("SHOW statement_timeout"))).scalar_one() == "0"
