"""Hooks for schemathesis: what no schema can say about a valid request.

- A key that was used for another answer is refused: each valid request gets one of its own.
- A draft that was saved by an earlier request has a version that none knows beforehand.
- Metadata may not contain NUL, however deep: JSON Schema has no word for "in every text below here".
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import GenerationMode

from tests.web.factories import KEY


def without_nul(value: Any) -> Any:
    """The same JSON without NUL characters."""
    match value:
        case str():
            return value.replace("\x00", "")
        case dict():
            return {without_nul(name): without_nul(item) for name, item in value.items()}
        case list():
            return [without_nul(item) for item in value]
        case _:
            return value


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Make a request that its schema calls valid a valid one."""
    if case.meta is not None and case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if KEY in (case.headers or {}):
        case.headers[KEY] = str(uuid4())
    if "If-Match" in (case.headers or {}):
        del case.headers["If-Match"]
    if isinstance(case.body, dict) and "answer_metadata" in case.body:
        case.body["answer_metadata"] = without_nul(case.body["answer_metadata"])
