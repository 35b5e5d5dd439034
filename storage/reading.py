"""Looks that must never cost more than they are worth: read only, and ended by PostgreSQL when they take too long."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Bind the whole transaction. In one statement and not as settings of the session: behind PgBouncer those would stay
# with a connection that the next transaction does not get.
_BOUND = text("""
    SELECT set_config('transaction_read_only', 'on', true), set_config('statement_timeout', :timeout, true),
        set_config('jit', 'off', true)
""")


@asynccontextmanager
async def reading(engine: AsyncEngine, *, timeout_seconds: float) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that can change nothing and whose statements end themselves.

    Args:
        engine: Whose connections are used.
        timeout_seconds: After so long PostgreSQL cancels a statement, which leaves as a StorageUnavailableError.

    Yields:
        The connection. All that is read on it is of one transaction, though not of one moment.
    """
    async with engine.begin() as conn:
        await conn.execute(_BOUND, {"timeout": f"{timeout_seconds * 1000:.0f}"})
        yield conn
