"""Pages of a list: how far the client has read is in a cursor that it hands back as it is."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

from producers.web.problems import invalid

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
# Nine bytes: the version of the cursor, and the last id that was shown (of which four bits are never used).
PATTERN = "^AQ[A-Za-z0-9_-]{10}$"
_VERSION = b"\x01"


def encode_cursor(response_id: int) -> str:
    """Make the cursor of the page that follows this response."""
    return urlsafe_b64encode(_VERSION + response_id.to_bytes(8)).decode()


def decode_cursor(cursor: str | None) -> int | None:
    """Read a cursor.

    It names a place and grants nothing: with another student's cursor one reads one's own answers from there on.

    Args:
        cursor: As :func:`encode_cursor` made it, or None for the first page.

    Returns:
        Only responses below this id are on the page.

    Raises:
        ProblemError: It is none of ours.
    """
    if cursor is None:
        return None
    if not re.fullmatch(PATTERN, cursor):
        raise invalid(("cursor", "expected the next_cursor of a page before"))
    return int.from_bytes(urlsafe_b64decode(cursor)[1:])
