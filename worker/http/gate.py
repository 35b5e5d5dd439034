"""Who may look at the console, and who may act on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from worker.http.guesses import Guesses
from worker.http.sessions import COOKIE, Session, Sessions, is_name

if TYPE_CHECKING:
    from starlette.requests import Request

# Where a program says on whose behalf it acts.
ACTOR_HEADER = "scoring-actor"


class Access(Enum):
    """What a request may do."""

    NOTHING = auto()
    LOOK = auto()
    ACT = auto()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks. ``by_program``: a token came with this very request, which no foreign page can make a browser do."""

    access: Access
    name: str | None = None
    session: Session | None = None
    by_program: bool = False
    wait_seconds: float = 0.0


class Gate:
    """Tells visitors apart.

    On a loopback address everybody may look: who can reach it has a login on this machine. On any other looking needs
    the token too. Acting always does; without a token nobody acts.

    Args:
        token: What is asked for; None: there is none.
        anybody_may_look: Whether the port is on a loopback address.
    """

    def __init__(self, token: str | None, *, anybody_may_look: bool) -> None:
        self._sessions = Sessions(token) if token else None
        self._guesses = Guesses()
        self._stranger = Access.LOOK if anybody_may_look else Access.NOTHING

    @property
    def has_token(self) -> bool:
        """Whether anybody can sign in."""
        return self._sessions is not None

    def visitor(self, request: Request) -> Visitor:
        """Tell who asks, by the cookie or by ``Authorization: Bearer``."""
        if self._sessions is None:
            return Visitor(self._stranger)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._program(request, given.strip())
        session = self._sessions.read(request.cookies.get(COOKIE))
        if session is not None:
            return Visitor(Access.ACT, name=session.name, session=session)
        return Visitor(self._stranger)

    def sign_in(self, request: Request, *, name: str, token: str) -> str | float | None:
        """Check what the form says.

        Returns:
            The cookie's value; seconds to wait where the address was wrong too often; None where the token is wrong.
        """
        address = _address(request)
        if wait_seconds := self._guesses.wait_seconds(address):
            return math.ceil(wait_seconds) * 1.0
        if self._sessions is None or not self._sessions.knows(token):
            self._guesses.wrong(address)
            return None
        return self._sessions.cookie(name)

    def _program(self, request: Request, given: str) -> Visitor:
        address = _address(request)
        if wait_seconds := self._guesses.wait_seconds(address):
            return Visitor(Access.NOTHING, wait_seconds=math.ceil(wait_seconds))
        if self._sessions is None or not self._sessions.knows(given):
            self._guesses.wrong(address)
            return Visitor(Access.NOTHING, by_program=True)
        name = _name(request)
        if not is_name(name):
            return Visitor(Access.LOOK, by_program=True)
        return Visitor(Access.ACT, name=name.strip(), by_program=True)


def _name(request: Request) -> str:
    """Who acts. Programs send a name's bytes in UTF-8, mostly; a header has no encoding of its own."""
    sent = request.headers.get(ACTOR_HEADER, "")
    try:
        return sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        return sent


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
