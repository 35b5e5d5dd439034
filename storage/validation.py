"""What may be stored. Everything is checked here, before a statement is sent, so that a refusal costs nothing."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from storage.errors import InvalidInputError
from storage.limits import (
    MAX_KEY_CHARS,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_QUESTION_CHARS,
    MAX_TRACE_CONTEXT_CHARS,
    max_answer_chars,
)

MAX_USER_ID = 2**31 - 1  # users.user_id is an integer
SUBMISSION_FIELDS = frozenset(
    {
        "user_id",
        "anonymous_token",
        "question_id",
        "module_slug",
        "learning_outcome_id",
        "content_id",
        "answer_text",
        "answer_metadata",
        "submission_key",
        "trace_context",
    }
)
QUESTION_FIELDS = frozenset(
    {
        "module_slug",
        "question_id",
        "question_text",
        "rubric",
        "scale_min",
        "scale_max",
        "dimensions",
        "reference_answer",
        "learning_outcome_name",
    }
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose response it is: exactly one of the two is set."""

    user_id: int | None
    anonymous_token: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Submission:
    """A checked submission, as it goes into the statement."""

    owner: Owner
    question_id: str
    module_slug: str
    learning_outcome_id: str | None
    content_id: str | None
    answer_text: str
    answer_metadata: str | None
    submission_key: UUID | None
    trace_context: str | None = None


# Drawn as nothing, though Unicode files them under letters and symbols: braille blank, Hangul fillers.
_BLANK_LETTERS = frozenset("\u2800\u115f\u1160\u3164\uffa0")


def _is_visible(character: str) -> bool:
    # Cf: zero-width spaces and joiners, direction marks, the byte order mark; Cc: control characters.
    return not (
        character.isspace() or character in _BLANK_LETTERS or unicodedata.category(character) in {"Cf", "Cc"}
    )


def storable(field: str, value: object, *, max_chars: int, may_be_blank: bool = False) -> str:
    """Check that a value is text that PostgreSQL can store.

    Raises:
        InvalidInputError: No text, blank, too long, with a NUL character or a lone surrogate.
    """
    if not isinstance(value, str):
        raise InvalidInputError(field, f"expected text, got {type(value).__name__}")
    if not may_be_blank and not any(map(_is_visible, value)):
        raise InvalidInputError(field, "must not be empty or blank")
    if len(value) > max_chars:
        raise InvalidInputError(field, f"at most {max_chars:,} characters are accepted, got {len(value):,}")
    if "\x00" in value:
        raise InvalidInputError(field, "must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(field, "is not valid Unicode: it contains a lone surrogate") from None
    return value


def checked_key(field: str, value: object) -> str:
    """Check a reference such as ``question_id``: text or UUID, neither blank nor long."""
    if isinstance(value, UUID):
        value = str(value)
    return storable(field, value, max_chars=MAX_KEY_CHARS)


def checked_token(value: object) -> str:
    """Check an anonymous token: text or UUID."""
    return checked_key("anonymous_token", value)


def checked_user_id(value: object) -> int:
    """Check a user id: a positive integer that fits the users table."""
    # bool is an int to Python, but nobody's user id.
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError("user_id", f"expected a whole number, got {type(value).__name__}")
    if not 0 < value <= MAX_USER_ID:
        raise InvalidInputError("user_id", f"expected a number from 1 to {MAX_USER_ID}")
    return value


def checked_owner(user_id: object, anonymous_token: object) -> Owner:
    """Check that exactly one identity is given.

    Raises:
        InvalidInputError: Both, neither, or one that cannot be stored.
    """
    if (user_id is None) == (anonymous_token is None):
        given = "neither" if user_id is None else "both"
        raise InvalidInputError(
            "user_id", f"exactly one of user_id and anonymous_token is needed, got {given}"
        )
    if user_id is not None:
        return Owner(checked_user_id(user_id), None)
    return Owner(None, checked_token(anonymous_token))


def _reject_nul(value: object, depth: int = 0) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise InvalidInputError("answer_metadata", f"may be nested at most {MAX_METADATA_DEPTH} levels deep")
    # json.dumps escapes NUL, which JSONB refuses, and passes lone surrogates on.
    if isinstance(value, str):
        if "\x00" in value:
            raise InvalidInputError("answer_metadata", "must not contain NUL characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(
                "answer_metadata", "is not valid Unicode: it contains a lone surrogate"
            ) from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _reject_nul(name)
            _reject_nul(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _reject_nul(item, depth + 1)


def _checked_metadata(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidInputError("answer_metadata", f"expected a mapping, got {type(value).__name__}")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        _reject_nul(value)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInputError("answer_metadata", "is not JSON") from None
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise InvalidInputError(
            "answer_metadata", f"at most {MAX_METADATA_BYTES // 1024} KiB of JSON are accepted"
        )
    return text


def checked_submission_key(value: object) -> UUID:
    """Check a submission key: a UUID, or text that is one."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidInputError("submission_key", "expected a UUID") from None


def _checked_trace_context(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInputError("trace_context", f"expected a mapping, got {type(value).__name__}")
    # Whatever else a propagator has put there, baggage for example, may say who somebody is: it is not stored.
    kept = {
        name: storable("trace_context", value[name], max_chars=max_chars)
        for name, max_chars in MAX_TRACE_CONTEXT_CHARS.items()
        if value.get(name) is not None
    }
    return json.dumps(kept) if "traceparent" in kept else None


def checked_submission(given: Mapping[str, Any], *, max_chars: int | None = None) -> Submission:
    """Check everything a caller can get wrong about one submission.

    Args:
        given: The arguments of ``submit_response``.
        max_chars: Longest accepted answer; by default ``SCORING_MAX_ANSWER_CHARS``.

    Returns:
        The submission, ready for the statement.

    Raises:
        InvalidInputError: A rule is broken; the error names the field and the rule.
    """
    if unknown := given.keys() - SUBMISSION_FIELDS:
        raise InvalidInputError(min(unknown), "no such argument")
    for name in ("question_id", "module_slug", "answer_text"):
        if name not in given:
            raise InvalidInputError(name, "is needed")
    optional = {
        name: None if given.get(name) is None else checked_key(name, given[name])
        for name in ("learning_outcome_id", "content_id")
    }
    return Submission(
        owner=checked_owner(given.get("user_id"), given.get("anonymous_token")),
        question_id=checked_key("question_id", given["question_id"]),
        module_slug=checked_key("module_slug", given["module_slug"]),
        learning_outcome_id=optional["learning_outcome_id"],
        content_id=optional["content_id"],
        answer_text=storable("answer_text", given["answer_text"], max_chars=max_chars or max_answer_chars()),
        answer_metadata=_checked_metadata(given.get("answer_metadata")),
        submission_key=None
        if given.get("submission_key") is None
        else checked_submission_key(given["submission_key"]),
        trace_context=_checked_trace_context(given.get("trace_context")),
    )


def _checked_scale(given: Mapping[str, Any]) -> tuple[float, float]:
    bounds = []
    for name, default in (("scale_min", 1.0), ("scale_max", 5.0)):
        value = given.get(name, default)
        try:
            bound = (
                math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
            )
        except OverflowError:  # an integer beyond every float
            bound = math.inf
        if not math.isfinite(bound):
            raise InvalidInputError(name, "expected a finite number")
        bounds.append(bound)
    if bounds[0] >= bounds[1]:
        raise InvalidInputError(
            "scale_max", "the scale is upside down: scale_max must be greater than scale_min"
        )
    return bounds[0], bounds[1]


def _checked_dimensions(value: object) -> list[dict[str, str]]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError("dimensions", "expected a list of mappings with name and description")
    dimensions: list[dict[str, str]] = []
    for item in value:
        if not isinstance(item, dict) or not item.keys() <= {"name", "description"} or "name" not in item:
            raise InvalidInputError("dimensions", "expected mappings with name and, optionally, description")
        dimension = {"name": checked_key("dimensions.name", item["name"])}
        if item.get("description"):
            dimension["description"] = storable(
                "dimensions.description", item["description"], max_chars=MAX_QUESTION_CHARS
            )
        dimensions.append(dimension)
    if len({dimension["name"] for dimension in dimensions}) != len(dimensions):
        raise InvalidInputError("dimensions", "two have the same name")
    return dimensions


def checked_question(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check one question and fill in what it leaves out.

    Returns:
        The content in one canonical form: equal questions are equal mappings.

    Raises:
        InvalidInputError: A rule is broken; the error names the field and the rule.
    """
    if unknown := given.keys() - QUESTION_FIELDS:
        raise InvalidInputError(min(unknown), "no such field of a question")
    for name in ("module_slug", "question_id", "question_text", "rubric"):
        if name not in given:
            raise InvalidInputError(name, "is needed")
    scale_min, scale_max = _checked_scale(given)
    content: dict[str, Any] = {
        "module_slug": checked_key("module_slug", given["module_slug"]),
        "question_id": checked_key("question_id", given["question_id"]),
        "question_text": storable("question_text", given["question_text"], max_chars=MAX_QUESTION_CHARS),
        "rubric": storable("rubric", given["rubric"], max_chars=MAX_QUESTION_CHARS),
        "scale_min": scale_min,
        "scale_max": scale_max,
        "dimensions": _checked_dimensions(given.get("dimensions")),
    }
    for name in ("reference_answer", "learning_outcome_name"):
        value = given.get(name)
        content[name] = None if value is None else storable(name, value, max_chars=MAX_QUESTION_CHARS)
    return content
