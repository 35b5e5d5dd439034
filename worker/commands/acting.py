"""What commands that change much have in common: who acts, looking first, asking, and examples in the help."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Annotated

import typer

from storage.actions import MAX_ACTOR_CHARS
from storage.validation import storable
from worker.commands.stopping import InterruptedCommandError
from worker.errors import WorkerError

By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who acts, for the record; your login by default.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


class UnconfirmedError(WorkerError):
    """Nothing was changed: there is no terminal to ask at. Look with --dry-run, then give --yes."""

    exit_status = 2

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class DeclinedError(WorkerError):
    """Nothing was changed."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def actor(by: str | None) -> str:
    """Who acts: as given, or the login's name, or its number where it has none, as in containers.

    Raises:
        InvalidInputError: What is given is blank, or too long to be a name.
    """
    if by is not None:
        return storable("by", by, max_chars=MAX_ACTOR_CHARS)
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def must_be_able_to_ask(*, yes: bool, dry_run: bool) -> None:
    """Refuse before anything is looked at, where nobody could confirm it afterwards.

    Raises:
        UnconfirmedError: Neither --yes nor --dry-run is given, and standard input is no terminal.
    """
    if not (yes or dry_run or sys.stdin.isatty()):
        raise UnconfirmedError


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless it is answered already. On standard error: standard output may be read by a program.

    Raises:
        DeclinedError: The answer is no.
        InterruptedCommandError: The answer is Ctrl-C, or the terminal is gone.
    """
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        raise InterruptedCommandError("Nothing was changed.") from None
    if not agreed:
        raise DeclinedError


def examples(*lines: str) -> str:
    """Examples for the end of a command's help; the first character keeps their lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
