"""Whom a command is about: a user by his number, or an anonymous student by a token that nobody may overhear."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

UserOption = Annotated[int | None, typer.Option("--user", metavar="ID", help="A signed-in student.")]
TokenOption = Annotated[
    bool,
    typer.Option(
        "--anonymous-token-stdin",
        help="An anonymous student, whose token is read from standard input: on a command line others would see it.",
    ),
]


@dataclass(frozen=True, slots=True, repr=False)
class Named:
    """Exactly one of the two is set."""

    user_id: int | None
    anonymous_token: str | None

    @property
    def label(self) -> str:
        """For a sentence; never the token."""
        return "this anonymous student" if self.user_id is None else f"user {self.user_id}"


def named(user: int | None, *, token_from_stdin: bool) -> Named:
    """Read whom the command is about; asks for the token, unseen, where standard input is a terminal."""
    if (user is None) != token_from_stdin:
        raise typer.BadParameter("name one student: --user ID or --anonymous-token-stdin.")
    if user is not None:
        return Named(user, None)
    asked = sys.stdin.isatty()
    token = getpass.getpass("Anonymous token: ") if asked else sys.stdin.readline()
    token = token.strip("\r\n")
    if not token:
        raise typer.BadParameter("standard input holds no token.")
    return Named(None, token)
