"""Our migrations as steps of a web app's own Alembic history. Needs Alembic; nothing that a web app imports needs this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory
from sqlalchemy import Column, MetaData, String, Table, delete, insert, inspect, select, text, update

from alembic import op
from storage.migration_files import migrations_folder
from storage.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.script import Script

# As Alembic itself makes it.
_versions = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))


def _scripts(since: str | None, until: str | None) -> list[Script]:
    """The steps from one revision of ours to a later one, in this order."""
    directory = ScriptDirectory(str(migrations_folder()))
    return list(directory.iterate_revisions(until or "base", since or "base"))[::-1]


def _current(expected: str | None) -> str | None:
    """The revision that the database has; as SQL text, that which it should have."""
    if op.get_context().as_sql:
        return expected
    connection = op.get_bind()
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(select(_versions.c.version_num)).scalar_one_or_none()
    return revision


def _remember(before: str | None, after: str | None) -> None:
    """Keep our own version table, which ``scoring`` reads."""
    if before is None:
        op.execute(insert(_versions).values(version_num=after))
    elif after is None:
        op.execute(delete(_versions).where(_versions.c.version_num == before))
    else:
        op.execute(update(_versions).where(_versions.c.version_num == before).values(version_num=after))


def _down_revision(script: Script) -> str | None:
    down: str | None = script.module.down_revision  # our history has no branches
    return down


def upgrade(until: str, *, since: str | None) -> None:
    """Bring our tables to a revision of ours. To be called by ``upgrade()`` of a migration of the web app's.

    Touches no other table (and makes ``users`` where there is none). It begins with the revision that the database
    has, and does nothing where that is this one or a later one, because ``scoring migrate`` has run before. Our
    version table is kept up to date, so that both may take turns.

    Args:
        until: The revision of ours to arrive at, such as ``0003``.
        since: The one that the step before arrived at, None in the first step; matters only where SQL is written.
    """
    current = _current(since)
    if current is not None and current not in {script.revision for script in _scripts(None, until)}:
        return
    if current is None:
        op.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {VERSION_TABLE} (version_num varchar(32) NOT NULL,"
                f" CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
            )
        )
    for script in _scripts(current, until):
        script.module.upgrade()
        _remember(_down_revision(script), script.revision)


def downgrade(until: str | None, *, since: str) -> None:
    """Take that back, with all that is stored in the tables that go.

    Args:
        until: The revision of ours to go back to, None to remove our tables. ``users`` stays in any case.
        since: The one that this step arrived at.
    """
    current = _current(since)
    if current is None:
        return
    for script in reversed(_scripts(until, current)):
        script.module.downgrade()
        _remember(script.revision, _down_revision(script))
