"""How far a long command is: a bar on a terminal, now and then a line where there is none. On standard error."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from collections.abc import Iterator

# Often enough to see that it moves, seldom enough for a log.
_LINE_SECONDS = 5.0


class Progress(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int, note: str) -> None:
        """Show it: so much of so much, in any unit; the note says what that means."""


@contextmanager
def progress(title: str, *, as_json: bool) -> Iterator[Progress]:
    """Show how far something is while the block runs.

    Args:
        title: What.
        as_json: Lines of JSON, also on a terminal.
    """
    screen = Console(stderr=True)
    if as_json or not screen.is_terminal:
        yield _lines(title, as_json=as_json)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Bar(*columns, TextColumn("{task.fields[note]}"), console=screen, transient=True) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _lines(title: str, *, as_json: bool) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last < _LINE_SECONDS:
            return
        last = time.monotonic()
        share = done / total if total else 1.0
        if as_json:
            line = json.dumps({"progress": title, "share": round(share, 4), "note": note})
        else:
            line = f"{title}: {share:.0%}, {note}"
        typer.echo(line, err=True)

    return show
