"""Which revision of our tables a database has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from storage.tables import VERSION_TABLE
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# Is there a version table in the default schema? Asked first: reading a missing one would be an error.
_EXISTS = text("SELECT to_regclass(:version_table) IS NOT NULL")
_REVISION = text(f"SELECT version_num FROM {VERSION_TABLE}")


async def schema_revision(conn: AsyncConnection) -> str | None:
    """Read the revision that the last migration left.

    Args:
        conn: The caller's connection.

    Returns:
        The revision; None where no migration ever ran, or all were taken back.
    """
    with translated():
        if not (await conn.execute(_EXISTS, {"version_table": VERSION_TABLE})).scalar_one():
            return None
        revision: str | None = (await conn.execute(_REVISION)).scalar_one_or_none()
    return revision
