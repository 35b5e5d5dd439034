"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import errno
import json
import os
import sys
from datetime import MAXYEAR, datetime
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.printable import visible, visible_json

if TYPE_CHECKING:
    from collections.abc import Iterable

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


# A full disk, a quota, a device that fails, a descriptor that is closed.
_UNPRINTABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def print_whatever_the_terminal_knows() -> None:
    """Let a character that a terminal or file cannot hold be written as its number, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_of_output(exc: OSError) -> bool:
    """Whether this is what a full disk or a closed descriptor makes of printing. Files are named in theirs."""
    return exc.filename is None and exc.errno in _UNPRINTABLE


def abandon_output() -> None:
    """Forget what could not be written: it would be tried again when Python ends, and fail, or wait for ever."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """Standard output, as wide as the terminal, or 120 columns where there is none."""
    screen = Console(highlight=False)
    if screen.is_terminal or "COLUMNS" in os.environ:
        return screen
    return Console(highlight=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        # PostgreSQL's infinity arrives as the last moment that Python knows.
        return None if value.year == MAXYEAR else value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(type(value).__name__)


def print_json(value: Any) -> None:
    """Print one JSON document; what a terminal would obey with the escapes of JSON, and all else where it is not UTF-8."""
    plain_ascii = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    typer.echo(visible_json(json.dumps(value, default=_plain, indent=2, ensure_ascii=plain_ascii)))


def json_line(value: Any) -> str:
    """One JSON document in one line, with its end."""
    return visible_json(json.dumps(value, default=_plain, ensure_ascii=False)) + "\n"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """Lay out rows; numbers to the right, None as a dash."""
    cells = [list(row) for row in rows]
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for position, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[position], (int, float, type(None))) for row in cells)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(_cell(value) for value in row))
    return grid


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case _:
            return escape(visible(str(value)))
