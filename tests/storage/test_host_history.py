"""What docs/howto/migrations.md shows is done, in the history of a web app that has tables and revisions of its own."""

from __future__ import annotations

import asyncio
import re
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from alembic.config import Config
from sqlalchemy.engine import make_url

from alembic import command
from storage import create_engine
from storage.schema import schema_revision
from storage.tables import OWN_TABLES
from tests.databases import ROOT, raw_connection
from tests.races import committed
from tests.storage.catalogues import HEAD, catalogue, execute, value
from worker import migrations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

ENV = """
import asyncio

from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, pool
from sqlalchemy.ext.asyncio import create_async_engine

{shown}

metadata = MetaData()
Table("users", metadata, Column("user_id", Integer, primary_key=True), Column("email", Text))
Table("courses", metadata, Column("course_id", Integer, primary_key=True))


def migrate(connection):
    context.configure(connection=connection, target_metadata=metadata, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()


async def online():
    engine = create_async_engine(context.config.get_main_option("url"), poolclass=pool.NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(url="postgresql://", target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(online())
"""
REVISION = """
{body}
revision = {revision!r}
down_revision = {down!r}
branch_labels = None
depends_on = None
"""
# A name that is one of ours, too.
FIRST = """
from alembic import op
import sqlalchemy as sa


def upgrade():
    op.create_table("users", sa.Column("user_id", sa.Integer, primary_key=True), sa.Column("email", sa.Text))


def downgrade():
    op.drop_table("users")
"""
LAST = """
from alembic import op
import sqlalchemy as sa


def upgrade():
    op.create_table("courses", sa.Column("course_id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("courses")
"""
EARLIER = """
from storage import history


def upgrade():
    history.upgrade("0001", since=None)


def downgrade():
    history.downgrade(None, since="0001")
"""


def shown(name: str) -> str:
    """A block of the page."""
    page = (ROOT / "docs" / "howto" / "migrations.md").read_text()
    [block] = re.findall(rf"<!-- {name}: .*? -->\n```python\n(.*?)```", page, re.DOTALL)
    return str(block)


@pytest.fixture
async def url(make_database: Callable[[], Awaitable[str]]) -> str:
    """An empty database."""
    return await make_database()


class History:
    """The web app's own migrations."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").write_text(ENV.format(shown=shown("env.py")))
        (folder / "script.py.mako").write_text("")
        self.add("0001", None, FIRST)

    def add(self, revision: str, down: str | None, body: str) -> None:
        text = REVISION.format(revision=revision, down=down, body=body)
        (self.folder / "versions" / f"{revision}_x.py").write_text(text)

    async def run(self, what: Callable[..., Any], *args: Any, **options: Any) -> str:
        output = StringIO()
        config = Config(stdout=output, output_buffer=output)
        config.set_main_option("script_location", str(self.folder))
        driver = make_url(self.url).set(drivername="postgresql+asyncpg")
        config.set_main_option("url", driver.render_as_string(hide_password=False))
        await asyncio.to_thread(what, config, *args, **options)
        return output.getvalue()


@pytest.fixture
def history(tmp_path: Path, url: str) -> History:
    """A web app with users, our tables as the page says, and something that came later."""
    made = History(tmp_path / "migrations", url)
    made.add("0002", "0001", shown("revision"))
    made.add("0003", "0002", LAST)
    return made


async def revision_of(url: str) -> str | None:
    engine = create_engine(url)
    try:
        return await committed(engine, schema_revision)
    finally:
        await engine.dispose()


async def tables(url: str) -> set[str]:
    async with raw_connection(url) as connection:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row[0] for row in found}


async def test_the_page_shows_how(
    history: History, url: str, make_database: Callable[[], Awaitable[str]]
) -> None:
    """Our tables are as ``scoring migrate`` makes them, and nothing of the web app's is touched or proposed."""
    await history.run(command.upgrade, "head")

    assert await revision_of(url) == HEAD
    assert await value(url, "SELECT version_num FROM alembic_version") == "0003"
    await history.run(command.check)
    by_command = await make_database()
    await execute(by_command, "CREATE TABLE users (user_id integer PRIMARY KEY, email text)")
    await migrations.upgrade(by_command)
    assert await columns(url) == await columns(by_command)

    before = await catalogue(url, ours=True)
    await migrations.upgrade(url)
    assert await catalogue(url, ours=True) == before


async def columns(url: str) -> list[Any]:
    """What our tables have, without the identities of one database."""
    return [
        row[:4]
        for row in (await catalogue(url, ours=True))["columns"]
        if row[0].partition(".")[0] in OWN_TABLES
    ]


async def test_down_and_up_again(history: History, url: str) -> None:
    """Our tables go and come back; the users stay."""
    await history.run(command.upgrade, "head")
    await execute(url, "INSERT INTO users VALUES (1, 'ada@example.org')")

    await history.run(command.downgrade, "0001")
    assert not await tables(url) & OWN_TABLES
    assert await revision_of(url) is None
    assert await value(url, "SELECT email FROM users") == "ada@example.org"

    await history.run(command.upgrade, "head")
    assert await tables(url) >= OWN_TABLES
    assert await revision_of(url) == HEAD


async def test_where_the_command_has_run_before(history: History, url: str) -> None:
    """The web app's revision finds them done, and its history says so."""
    await history.run(command.upgrade, "0001")
    await migrations.upgrade(url)
    before = await catalogue(url, ours=True)

    await history.run(command.upgrade, "head")

    assert await catalogue(url, ours=True) == before
    assert await value(url, "SELECT version_num FROM alembic_version") == "0003"


async def test_one_release_after_the_other(tmp_path: Path, url: str) -> None:
    """A step goes on where the one before has stopped, and an old step does nothing in a newer database."""
    made = History(tmp_path / "migrations", url)
    made.add("0002", "0001", EARLIER)
    await made.run(command.upgrade, "head")
    assert await revision_of(url) == "0001"
    made.add("0003", "0002", shown("revision").replace("None", '"0001"'))

    await made.run(command.upgrade, "head")
    assert await revision_of(url) == HEAD
    await made.run(command.downgrade, "-1")
    assert await revision_of(url) == "0001"

    await migrations.upgrade(url)
    await execute(url, "UPDATE alembic_version SET version_num = '0001'")
    await made.run(command.upgrade, "0002")
    assert await revision_of(url) == HEAD


async def test_as_sql_text(history: History, url: str) -> None:
    """Where a person runs the statements."""
    await execute(url, (await history.run(command.upgrade, "head", sql=True)))

    assert await revision_of(url) == HEAD
    assert await tables(url) >= OWN_TABLES

    await execute(url, (await history.run(command.downgrade, "0003:0001", sql=True)))
    assert not await tables(url) & OWN_TABLES
    assert await revision_of(url) is None


def test_the_page_names_the_newest_revision() -> None:
    """Or a host would stop short of what its workers need."""
    assert f'history.upgrade("{HEAD}", since=None)' in shown("revision")
