"""Where the migrations are that travel with this package, and how far they reach. Light: a worker asks, too."""

from __future__ import annotations

from pathlib import Path


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


def newest_revision() -> str:
    """The revision that this version of the package needs, by the files' names: they are numbered in their order.

    Raises:
        RuntimeError: This installation carries no migrations.
    """
    found = sorted(
        path.name.partition("_")[0] for path in (migrations_folder() / "versions").glob("[0-9]*_*.py")
    )
    if not found:
        raise RuntimeError("This installation carries no migrations.")
    return found[-1]
