"""Who acts on the console: a name and the token once, then a signed cookie.

Nothing is kept in the process. A session is made of a key that follows from the token, so it holds with every worker that
has the same token, and ends everywhere as soon as the token changes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

COOKIE = "scoring_console"
PATH = "/console"
# A working day.
SESSION_SECONDS = 12 * 3600.0
MAX_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who knew the token, under the name that was given with it. ``csrf`` goes into each of the forms."""

    name: str
    csrf: str


def is_name(name: str) -> bool:
    """Whether this can be somebody's name: printable, not blank, not too long."""
    return bool(name.strip()) and name.isprintable() and len(name) <= MAX_NAME_CHARS


class Sessions:
    """Makes and reads the cookie.

    Args:
        token: The console's.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._key = self._derived(self._token, b"session")

    @staticmethod
    def _derived(key: bytes, purpose: bytes) -> bytes:
        return hmac.new(key, b"assessment-scoring console " + purpose, hashlib.sha256).digest()

    def knows(self, given: str) -> bool:
        """Whether this is the token; takes as long for a near miss as for a far one."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def cookie(self, name: str) -> str:
        """Make the cookie's value for somebody who knew the token."""
        told = base64.urlsafe_b64encode(name.encode()).decode()
        payload = f"{time.time() + SESSION_SECONDS:.0f}.{secrets.token_urlsafe(16)}.{told}"
        return f"{payload}.{self._signature(payload)}"

    def read(self, cookie: str | None) -> Session | None:
        """Read a cookie's value; None where it is none of ours, or too old."""
        payload, _, signature = (cookie or "").rpartition(".")
        if not payload or not hmac.compare_digest(signature.encode(), self._signature(payload).encode()):
            return None
        until, nonce, told = payload.split(".")
        if float(until) < time.time():
            return None
        csrf = self._derived(self._key, b"form " + nonce.encode()).hex()
        return Session(base64.urlsafe_b64decode(told).decode(), csrf)

    def _signature(self, payload: str) -> str:
        return hmac.new(self._key, payload.encode(), hashlib.sha256).hexdigest()


def same_form(session: Session, given: str) -> bool:
    """Whether a form came from one of our pages in this session."""
    return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "surrogateescape"))
