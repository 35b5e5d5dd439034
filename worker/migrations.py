"""Run the migrations that travel with this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import alembic.command
from alembic.config import Config
from alembic.script import ScriptDirectory

from storage import create_engine
from storage.migration_files import migrations_folder
from storage.translation import translated

if TYPE_CHECKING:
    from sqlalchemy import Connection


def head_revision() -> str:
    """The revision that this version of the package needs."""
    head = ScriptDirectory(str(migrations_folder())).get_current_head()
    if head is None:
        msg = "This installation carries no migrations."
        raise RuntimeError(msg)
    return head


# Longest time for the whole migration: building an index on millions of rows takes its time.
MIGRATION_SECONDS = 3600.0


async def upgrade(database_url: str) -> None:
    """Bring a database up to date; does nothing where it is.

    Connect directly, not through PgBouncer. Two upgrades at once wait for each other.

    Args:
        database_url: Of an owner of our tables, who may create them.

    Raises:
        StorageError: PostgreSQL is away, or refuses us.
    """
    engine = create_engine(database_url, pool_size=1, timeout_seconds=MIGRATION_SECONDS)
    try:
        with translated():
            async with engine.begin() as conn:
                await conn.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    # A per cent sign in a path would be read as the start of a variable.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
