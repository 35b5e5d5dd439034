"""Run the migrations that travel with this package."""

from __future__ import annotations

from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.script import ScriptDirectory

import storage


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(storage.__file__).parent
    installed = package / "alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


def _config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    # Not as an option: a password may contain a per cent sign, which options interpolate.
    config.attributes["database_url"] = database_url
    return config


def head_revision() -> str:
    """The revision that this version of the package needs."""
    head = ScriptDirectory(str(migrations_folder())).get_current_head()
    if head is None:
        msg = "This installation carries no migrations."
        raise RuntimeError(msg)
    return head


def upgrade(database_url: str) -> None:
    """Bring a database up to date; does nothing where it is.

    Connect directly, not through PgBouncer. Two upgrades at once wait for each other.

    Args:
        database_url: Of an owner of our tables, who may create them.
    """
    alembic.command.upgrade(_config(database_url), "head")
