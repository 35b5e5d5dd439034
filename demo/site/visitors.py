"""Who is at the browser: the demo's stand-in for your auth system, two cookies and no passwords.

An anonymous student is known by a random token, a bearer secret that no script can read. It is changed at
sign-in and sign-out, so that a second person at the same computer never adds to the first one's answers.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo.classroom import STUDENTS

if TYPE_CHECKING:
    from fastapi import Request, Response

TOKEN_COOKIE = "student"  # noqa: S105 - a name
USER_COOKIE = "signed-in"
TOKEN_BYTES = 32
_TOKEN_CHARS = len(secrets.token_urlsafe(TOKEN_BYTES))
COOKIE_SECONDS = 180 * 24 * 3600
NAMES = {student.user_id: student.name for student in STUDENTS if student.user_id is not None}
"""Whom one may sign in as."""


@dataclass(frozen=True, slots=True, repr=False)
class Visitor:
    """The person at the browser: signed in (``user_id``) or known by a secret alone."""

    user_id: int | None
    token: str


class Visitors:
    """Recognises people by their cookies. The key is made here: whoever restarts the site signs everybody out."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def _seal(self, value: str) -> str:
        return hmac.new(self._key, value.encode(), hashlib.sha256).hexdigest()

    def recognise(self, request: Request) -> Visitor | None:
        """The visitor, or None where there is no cookie that we made."""
        token = request.cookies.get(TOKEN_COOKIE, "")
        if len(token) != _TOKEN_CHARS:
            return None
        user, _, seal = request.cookies.get(USER_COOKIE, "").partition(".")
        sealed = (
            user.isascii()
            and user.isdecimal()
            and hmac.compare_digest(seal.encode(), self._seal(user).encode())
        )
        return Visitor(int(user) if sealed else None, token)

    def welcome(self, request: Request, response: Response, *, user_id: int | None = None) -> None:
        """Give the browser a new token, and sign it in, or out where no user is given."""
        self._set(request, response, TOKEN_COOKIE, secrets.token_urlsafe(TOKEN_BYTES))
        if user_id is None:
            response.delete_cookie(USER_COOKIE)
        else:
            self._set(request, response, USER_COOKIE, f"{user_id}.{self._seal(str(user_id))}")

    def mark(self, visitor: Visitor) -> str:
        """A name for this visitor that scripts may know: it tells two apart and reveals nothing."""
        # Not under the key: what a page kept for its student must be found again after a restart.
        secret = f"user {visitor.user_id}" if visitor.user_id is not None else f"token {visitor.token}"
        return hashlib.sha256(secret.encode()).hexdigest()[:16]

    def _set(self, request: Request, response: Response, name: str, value: str) -> None:
        response.set_cookie(
            name,
            value,
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
