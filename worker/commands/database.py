"""``scoring migrate`` and ``scoring grant``."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from producers.settings import DatabaseSettings
from storage.roles import grant_roles, grant_statements
from storage.schema import schema_revision
from storage.translation import translated
from worker.commands.printing import AsJson, console, print_json, table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection


@asynccontextmanager
async def connection(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    """Open one transaction for a command; commits at the end.

    Raises:
        StorageError: PostgreSQL is away, refuses the login, or lacks our tables.
    """
    engine = settings.engine()
    try:
        with translated():
            async with engine.begin() as conn:
                yield conn
    finally:
        await engine.dispose()


async def _revision(settings: DatabaseSettings) -> str | None:
    async with connection(settings) as conn:
        return await schema_revision(conn)


def migrate(*, as_json: AsJson = False) -> None:
    """Create or update our tables in SCORING_DATABASE_URL, and touch nothing else.

    Safe to run again, and by several at once. Connect directly, not through PgBouncer, as an owner of the tables.
    """
    from worker.migrations import upgrade  # noqa: PLC0415 - Alembic is slow to import, and only needed here

    settings = DatabaseSettings.from_environment()
    before = asyncio.run(_revision(settings))
    asyncio.run(upgrade(settings.database_url.get_secret_value()))
    after = asyncio.run(_revision(settings))
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        typer.echo(f"The database is up to date, at revision {after}.")
    else:
        typer.echo(f"The database was migrated from {before or 'nothing'} to revision {after}.")


def grant(
    *,
    web: Annotated[
        str, typer.Option(metavar="ROLE", help="Role of web apps: store answers and claims, read scores.")
    ] = "scoring_web",
    worker: Annotated[
        str,
        typer.Option(
            metavar="ROLE", help="Role of workers: write scores and apply claims, change no answer."
        ),
    ] = "scoring_worker",
    ops: Annotated[
        str, typer.Option(metavar="ROLE", help="Role of operators: publish, retry, erase.")
    ] = "scoring_ops",
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the statements instead of running them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create three database roles and grant each what it needs and nothing else.

    The roles cannot log in; make your logins their members, for example: GRANT scoring_web TO webapp.
    """
    roles = {"web": web, "worker": worker, "ops": ops}
    if only_print:
        statements = grant_statements(roles)
        if as_json:
            print_json(statements)
        else:
            typer.echo("".join(f"{statement};\n" for statement in statements), nl=False)
        return

    async def run() -> list[dict[str, object]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await grant_roles(conn, roles)

    granted = asyncio.run(run())
    if as_json:
        print_json(granted)
    else:
        rows = [
            (each["part"], each["role"], "created, granted" if each["created"] else "was there, granted anew")
            for each in granted
        ]
        console().print(table("Roles", ("part", "role", "result"), rows))
