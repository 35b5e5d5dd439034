"""Do things as one of our three roles, and by nobody's superuser rights."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import text

from storage.roles import PRIVILEGES, grant_roles
from storage.translation import translated
from tests.races import committed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


def new_roles() -> dict[str, str]:
    """Names for the three; roles belong to the whole server, so no two tests have the same."""
    return {part: f"scoring_test_{part}_{uuid4().hex[:8]}" for part in PRIVILEGES}


# For tests that grant in a transaction which is rolled back.
ROLES = new_roles()


@asynccontextmanager
async def acting_as(
    conn: AsyncConnection, part: str, *, roles: Mapping[str, str] = ROLES
) -> AsyncIterator[AsyncConnection]:
    """Everything inside is done by that role; a refusal undoes the block."""
    async with conn.begin_nested():
        await conn.execute(text(f"SET LOCAL ROLE {roles[part]}"))
        yield conn
        await conn.execute(text("RESET ROLE"))


@asynccontextmanager
async def logged_in_as(
    conn: AsyncConnection, part: str, *, roles: Mapping[str, str] = ROLES
) -> AsyncIterator[AsyncConnection]:
    """As :func:`acting_as`, by a login that is a member of that role and of nothing else; it cannot go back."""
    login = f"{roles[part]}_login"
    async with conn.begin_nested() as undone:
        await conn.execute(text(f"CREATE ROLE {login} LOGIN"))
        await conn.execute(text(f"GRANT {roles[part]} TO {login}"))
        await conn.execute(text(f"SET LOCAL SESSION AUTHORIZATION {login}"))
        yield conn
        await undone.rollback()


@asynccontextmanager
async def committed_roles(engine: AsyncEngine) -> AsyncIterator[dict[str, str]]:
    """The three roles, for tests that commit; they are dropped at the end."""
    roles = new_roles()
    await committed(engine, lambda conn: grant_roles(conn, roles))
    try:
        yield roles
    finally:
        async with engine.begin() as conn:
            for name in roles.values():
                await conn.execute(text(f"DROP OWNED BY {name}"))
                await conn.execute(text(f"DROP ROLE {name}"))


async def perform(conn: AsyncConnection, statement: str) -> None:
    """Run a statement that names no parameters."""
    with translated():
        await conn.execute(text(statement.replace(":", r"\:")))
