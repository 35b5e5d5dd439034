"""A hook for schemathesis: each valid request gets an Idempotency-Key of its own.

A client that uses a key again for another answer is refused, which no schema can say. Schemathesis would take that for
a valid request that was refused.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import GenerationMode

from tests.web.factories import KEY


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Give a valid request with a key another one."""
    is_valid = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
    if is_valid and KEY in (case.headers or {}):
        case.headers[KEY] = str(uuid4())
