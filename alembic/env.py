"""Run migrations, touching nothing but our own tables.

Our tables live in the web app's database, beside tables and an ``alembic_version`` that are not ours. So the
version is kept in a table of our own, and neither comparison nor autogeneration sees anything foreign.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import pool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import context
from storage.tables import OWN_TABLES, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Two migrations at once wait for each other on this key: "scoring" read as a number.
MIGRATION_LOCK = int.from_bytes(b"scoring", "big")


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Reflect only tables of ours, in the default schema."""
    if kind == "schema":
        return name is None
    return (name if kind == "table" else parents["table_name"]) in OWN_TABLES


def include_object(_object: Any, name: str | None, kind: str, _reflected: Any, _other: Any) -> bool:
    """Compare only tables of ours."""
    return kind != "table" or name in OWN_TABLES


def database_url() -> str:
    """The URL given by the caller, or ``SCORING_DATABASE_URL``."""
    url = context.config.attributes.get("database_url") or os.environ.get("SCORING_DATABASE_URL")
    if not url:
        message = "SCORING_DATABASE_URL is not set."
        raise SystemExit(message)
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def migrate(connection: Connection) -> None:
    """Run what the command asked for on this connection, in the transaction that its caller began."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=include_name,
        include_object=include_object,
        include_schemas=False,
        compare_type=True,
        compare_server_default=True,
    )
    # Whoever migrates at the same time is waited for; the time-out below is not meant for him.
    connection.execute(text("SET LOCAL statement_timeout = '15min'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    # A migration that waits long for a lock holds up every query behind it: give up instead.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    """Connect and migrate."""
    engine = create_async_engine(database_url(), poolclass=pool.NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


def run() -> None:
    """Migrate on the caller's connection, on one of our own, or as SQL text."""
    connection = context.config.attributes.get("connection")
    if context.is_offline_mode():
        context.configure(
            url="postgresql://",
            target_metadata=metadata,
            version_table=VERSION_TABLE,
            literal_binds=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    elif connection is not None:
        migrate(connection)
    else:
        asyncio.run(run_online())


run()
