"""``Idempotency-Key``: a request that is sent twice stores one answer.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/. The key is the submission key of the
answer, and that is unique in the database: it holds for ever, across processes and crashes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid5

from fastapi import Header, Request

from producers.web.problems import invalid

if TYPE_CHECKING:
    from producers.web.identity import Identity

HEADER = "Idempotency-Key"
MAX_CHARS = 130
_PATTERN = f"^[!-~]{{1,{MAX_CHARS}}}$"
# Every UUID but those of version 5, see submission_key().
UUID_PATTERN = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-46-9a-fA-F][0-9a-fA-F]{3}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_NAMESPACE = UUID("dbb1a8a6-5c29-4f0f-8f38-8f5d6c1c7c5e")


def idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=HEADER,
            description="Made by the client for each answer, best by crypto.randomUUID() "
            "(8e03978e-40d5-43e8-bc93-6894a57f9324), and sent again with every "
            "repetition: then the answer is stored once, and every reply is the same. A key stands for its answer for "
            "ever; with another text it is refused. Without a key every call is a new attempt.",
            json_schema_extra={"pattern": _PATTERN},
        ),
    ] = None,
) -> str | None:
    """Read the header, with or without quotation marks around the key.

    Raises:
        ProblemError: It is given several times, or cannot be a key.
    """
    if key is None:
        return None
    if len(set(request.headers.getlist(HEADER))) > 1:
        raise invalid((HEADER, "is given several times"))
    if not re.fullmatch(_PATTERN, key):
        raise invalid((HEADER, f"expected a UUID, or 1 to {MAX_CHARS} visible ASCII characters"))
    quoted = re.fullmatch('"(.+)"', key)
    return quoted[1] if quoted else key


def is_submission_key(key: str) -> bool:
    """Whether this is a UUID that can stand for an answer as it is."""
    return re.fullmatch(UUID_PATTERN, key) is not None


def submission_key(caller: Identity, key: str) -> UUID:
    """Turn a client's key into the submission key that is stored.

    A UUID stays as it is, so that it finds its answer also after the student has signed in. Any other text becomes a
    UUID that only this owner can get: two students may both call their first answer "1". Therefore a UUID of version
    5 counts as any other text, or somebody could use up another student's key before him.

    Args:
        caller: Whose answer it is.
        key: What the client sent.
    """
    if is_submission_key(key):
        return UUID(key)
    owner = f"user:{caller.user_id}" if caller.user_id is not None else f"token:{caller.anonymous_token}"
    return uuid5(uuid5(_NAMESPACE, owner), key)
