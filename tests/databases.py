"""Databases of our own on a given PostgreSQL server, migrated by the real migration."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4

import asyncpg
from sqlalchemy.engine import make_url

from alembic import command, config
from storage.tables import OWN_TABLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[1]
USER_IDS = range(1, 21)
"""The users that every test database has."""


def driver_url(url: str) -> str:
    """The URL as asyncpg itself reads it, without SQLAlchemy's driver name."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@asynccontextmanager
async def raw_connection(url: str) -> AsyncIterator[Any]:
    """A driver's connection, for what no engine of ours does: creating databases, reading catalogues."""
    connection = await asyncpg.connect(driver_url(url), timeout=10, command_timeout=30)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def temporary_database(server_url: str) -> AsyncIterator[str]:
    """Create an empty database beside the one that the URL names, and drop it at the end."""
    name = f"scoring_test_{uuid4().hex[:12]}"
    async with raw_connection(server_url) as connection:
        await connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        async with raw_connection(server_url) as connection:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def alembic_config(url: str, *, output: TextIO | None = None, **attributes: Any) -> config.Config:
    """The project's own Alembic configuration, pointed at a database; it prints to ``output``."""
    made = config.Config(toml_file=ROOT / "pyproject.toml", stdout=output or StringIO(), output_buffer=output)
    made.attributes.update({"database_url": url, **attributes})
    return made


async def upgrade(url: str) -> None:
    """Run the real migration; in a thread, because Alembic starts an event loop of its own."""
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")


async def add_users(url: str) -> None:
    """Insert the users that tests refer to."""
    async with raw_connection(url) as connection:
        await connection.execute(
            "INSERT INTO users (user_id) SELECT unnest($1::integer[]) EXCEPT SELECT user_id FROM users",
            list(USER_IDS),
        )


async def empty_tables(url: str) -> None:
    """Remove every row of ours, and bring the users back to those that every test database has."""
    async with raw_connection(url) as connection, connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await connection.execute(f"TRUNCATE {', '.join(sorted(OWN_TABLES))}")
        await connection.execute("DELETE FROM users WHERE NOT user_id = ANY ($1::integer[])", list(USER_IDS))
    await add_users(url)
