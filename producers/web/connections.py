"""A connection of the host's engine, for one statement, with errors of ours."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from storage.engine import single_statements
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection as :func:`storage.engine.single_statements` does.

    Raises:
        StorageError: What the driver says, in words of ours.
    """
    with translated():
        async with single_statements(engine) as conn:
            yield conn
