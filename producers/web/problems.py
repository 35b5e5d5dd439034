"""Errors as problem details (RFC 9457): what was wrong with which field, and never what was given."""

from __future__ import annotations

from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from producers.errors import ProducerClosedError
from storage.errors import (
    DraftChangedError,
    InvalidInputError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MEDIA_TYPE = "application/problem+json"
# A fail-over or a restart takes some seconds; whoever repeats with the same key does no harm.
RETRY_AFTER_SECONDS = 2

# What pydantic's kinds of error mean. Its own messages would do, but some repeat a piece of the input.
_RULES = {
    "missing": "is needed",
    "extra_forbidden": "has a field that is not known",
    "string_type": "expected text",
    "dict_type": "expected a JSON object",
    "model_type": "expected a JSON object",
    "model_attributes_type": "expected a JSON object",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a smaller number",
    "int_from_float": "expected a whole number",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
}
# Where FastAPI says a field was found.
_PLACES = {"body", "query", "path", "header", "cookie"}


def _title(status_code: int) -> str:
    # A host may have numbers of its own.
    return responses.get(status_code, "Error")


class ProblemError(HTTPException):
    """A reply that ends the request. FastAPI lets an ``HTTPException`` through while it reads a body.

    Args:
        status_code: Of the reply.
        detail: One sentence for the client's developer; never repeats the input.
        kind: What happened, for programs: the last part of ``type``. Without one, the status says it all.
        errors: Field and rule of each refusal.
        headers: Of the reply.
    """

    def __init__(
        self,
        status_code: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail, dict(headers or {}))
        self.kind = kind
        self.errors = list(errors)

    def shown(self) -> dict[str, Any]:
        """The body of the reply."""
        return {
            "type": "about:blank" if self.kind is None else f"urn:assessment-scoring:{self.kind}",
            "title": _title(self.status_code),
            "status": self.status_code,
            "detail": self.detail,
            "errors": [{"field": field, "rule": rule} for field, rule in self.errors],
        }

    def response(self) -> JSONResponse:
        """The reply itself."""
        return JSONResponse(
            self.shown(),
            status_code=self.status_code,
            headers=dict(self.headers or {}),
            media_type=MEDIA_TYPE,
        )


def not_found(what: str) -> ProblemError:
    """The same for what is somebody else's and for what does not exist."""
    return ProblemError(HTTPStatus.NOT_FOUND, f"There is no such {what}.")


def method_not_allowed(methods: Iterable[str]) -> ProblemError:
    """This path has other methods."""
    return ProblemError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "This path has other methods.",
        headers={"Allow": ", ".join(sorted(methods)), "Cache-Control": "no-store"},
    )


def invalid(*errors: tuple[str, str]) -> ProblemError:
    """Something that was given breaks a rule."""
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "What was given breaks a rule; nothing was stored.",
        kind="invalid-input",
        errors=errors,
    )


def key_used() -> ProblemError:
    """One reply for a key of another answer and for a key of another owner: nobody learns that it is known."""
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "This key stands for another answer; nothing was stored. Make a new key for each answer.",
        kind="key-used",
        errors=[("Idempotency-Key", "stands for another answer")],
    )


def draft_changed() -> ProblemError:
    """What the client has seen is not what stands there now."""
    return ProblemError(
        HTTPStatus.PRECONDITION_FAILED,
        "There is another version of this draft, or none any more; nothing was changed. Read it again.",
        kind="draft-changed",
        errors=[("If-Match", "is not the ETag of the draft")],
    )


def _unavailable() -> ProblemError:
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The database cannot be reached now. Try again with the same Idempotency-Key.",
        kind="unavailable",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _refused(exc: InvalidInputError | DraftChangedError) -> ProblemError:
    match exc:
        case DraftChangedError():
            return draft_changed()
        case SubmissionKeyConflictError():
            return key_used()
        case UnknownUserError():
            return ProblemError(
                HTTPStatus.FORBIDDEN, "This user does not exist any more.", kind="unknown-user"
            )
        case _:
            return invalid((exc.field, exc.rule))


def _field(place: tuple[Any, ...], kind: str) -> str:
    # Inside the body only names of ours are shown: an unknown one is what the client made up.
    names = place[1:2] if place[:1] and place[0] in _PLACES else place[:1]
    if kind == "extra_forbidden" or not names or not isinstance(names[0], str):
        return str(place[0]) if place else "body"
    return names[0]


def _misread(exc: RequestValidationError) -> ProblemError:
    errors: dict[str, str] = {}
    for error in exc.errors():
        rule = _RULES.get(error["type"], "is not valid").format(**error.get("ctx", {}))
        # Of something that may be text or null, both are missed; the first says enough.
        errors.setdefault(_field(error["loc"], error["type"]), rule)
    return invalid(*errors.items())


def problem_of(exc: Exception) -> ProblemError | None:
    """Find the reply to what was raised.

    Args:
        exc: Raised while one of our routes ran, by us or by a dependency of the host.

    Returns:
        The reply. None where the host shall decide: it knows its own errors, and wants to hear of bugs and of a
        database that is set up wrongly.
    """
    match exc:
        case ProblemError():
            return exc
        case InvalidInputError() | DraftChangedError():
            return _refused(exc)
        case StorageUnavailableError() | ProducerClosedError():
            return _unavailable()
        case RequestValidationError():
            return _misread(exc)
        # Of a host's dependency, as a rule: 401 where nobody is signed in. Subclasses may have handlers of their own,
        # and a redirection is not an error.
        case StarletteHTTPException() if _is_plain(exc) and exc.status_code >= HTTPStatus.BAD_REQUEST:
            return _of_host(exc)
        case _:
            return None


def _is_plain(exc: Exception) -> bool:
    return type(exc) in {HTTPException, StarletteHTTPException}


def _of_host(exc: StarletteHTTPException) -> ProblemError:
    detail: object = exc.detail  # FastAPI's may be any JSON
    sentence = detail if isinstance(detail, str) else _title(exc.status_code)
    return ProblemError(exc.status_code, sentence, headers=exc.headers)
