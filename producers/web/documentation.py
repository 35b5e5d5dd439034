"""What the OpenAPI document says about errors: one example each, in the form of RFC 9457."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from producers.web.problems import (
    MEDIA_TYPE,
    RETRY_AFTER_SECONDS,
    ProblemError,
    draft_changed,
    invalid,
    key_used,
    not_found,
)

# Spelled out: FastAPI would document a model under application/json.
PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "AssessmentProblem",
    "type": "object",
    "description": "What was wrong, after RFC 9457. Never repeats what was given.",
    "required": ["type", "title", "status", "detail", "errors"],
    "properties": {
        "type": {"type": "string", "description": "which kind of problem, for programs"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "title": "AssessmentFieldError",
                "type": "object",
                "required": ["field", "rule"],
                "properties": {"field": {"type": "string"}, "rule": {"type": "string"}},
            },
        },
    },
}

_PROBLEMS: dict[str, tuple[str, ProblemError]] = {
    "unknown_caller": ("Nobody is signed in.", ProblemError(401, "Sign in first.")),
    "unknown_user": (
        "The session is of a user who does not exist any more.",
        ProblemError(403, "This user does not exist any more.", kind="unknown-user"),
    ),
    "may_not_claim": (
        "Nobody is signed in, or there is nothing to claim.",
        ProblemError(403, "There is nothing that this caller may claim.", kind="may-not-claim"),
    ),
    "no_response": ("It does not exist, or is somebody else's.", not_found("response")),
    "no_draft": ("There is none, or its answer was submitted.", not_found("draft")),
    "draft_changed": ("Another version was saved meanwhile, or it was forgotten.", draft_changed()),
    "malformed": (
        "The body is not JSON.",
        ProblemError(400, "The body is not JSON in UTF-8.", kind="malformed"),
    ),
    "too_large": (
        "The body is too large.",
        ProblemError(413, "Too large; nothing was stored.", kind="too-large"),
    ),
    "not_json": (
        "The body is something else than JSON.",
        ProblemError(
            415,
            "Only application/json in UTF-8 is accepted; nothing was stored.",
            kind="not-json",
            errors=[("Content-Type", "expected application/json")],
        ),
    ),
    "too_many_streams": (
        "This student follows his answers in too many places.",
        ProblemError(
            429,
            "So many streams are open already that this process opens no other.",
            kind="too-many-streams",
            headers={"Retry-After": "30"},
        ),
    ),
    "too_many_streams_here": (
        "This process has too many streams open, or stops.",
        ProblemError(
            503,
            "So many streams are open already that this process opens no other.",
            kind="too-many-streams",
            headers={"Retry-After": "30"},
        ),
    ),
    "invalid": ("A rule is broken.", invalid(("answer_text", "must not be empty or blank"))),
    "key_used": ("The key was used for another answer.", key_used()),
    "unavailable": (
        "The database is away.",
        ProblemError(
            503,
            "The database cannot be reached now. Try again with the same Idempotency-Key.",
            kind="unavailable",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        ),
    ),
}
_BODY = ("malformed", "too_large", "not_json")


def problems(*names: str, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of one route, beside those of every route.

    Args:
        names: Which.
        body: Whether the route takes a body.
    """
    described: dict[int | str, dict[str, Any]] = {}
    for name in ("unknown_caller", *(_BODY if body else ()), *names, "invalid", "unavailable"):
        sentence, problem = _PROBLEMS[name]
        reply = described.setdefault(
            problem.status_code,
            {
                "description": HTTPStatus(problem.status_code).phrase,
                "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}},
            },
        )
        reply["content"][MEDIA_TYPE]["examples"][name] = {"summary": sentence, "value": problem.shown()}
        if "Retry-After" in (problem.headers or {}):
            reply["headers"] = {
                "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}
            }
    return described
