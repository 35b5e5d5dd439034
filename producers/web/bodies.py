"""Read the body of a request: only JSON, only so much of it, and strictly."""

from __future__ import annotations

from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json

from producers.web.problems import ProblemError, method_not_allowed, problem_of
from storage.limits import MAX_KEY_CHARS, MAX_METADATA_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

_WITH_BODY = {"POST", "PUT", "PATCH"}
# JSON may spell every character as two escapes: \ud83d\ude00.
_BYTES_PER_CHAR = 12
# Metadata is measured without escapes and white space: generously more of it may arrive.
_METADATA_BYTES = 8 * MAX_METADATA_BYTES
# Four references, a key, and the names of the fields.
_OTHER_BYTES = 5 * MAX_KEY_CHARS * _BYTES_PER_CHAR + 1024


def max_body_bytes(max_chars: int) -> int:
    """The largest body that an acceptable answer can have.

    Args:
        max_chars: Longest accepted answer, characters.
    """
    return max_chars * _BYTES_PER_CHAR + _METADATA_BYTES + _OTHER_BYTES


class GuardedRequest(Request):
    """A request whose body is refused before it fills the memory."""

    def __init__(self, scope: Scope, receive: Receive, *, max_bytes: int) -> None:
        super().__init__(scope, receive)
        self._max_bytes = max_bytes
        self._guarded: bytes | None = None

    def _too_large(self) -> ProblemError:
        return ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"At most {self._max_bytes} bytes are accepted; nothing was stored.",
            kind="too-large",
            errors=[("body", f"at most {self._max_bytes} bytes are accepted")],
        )

    def check_content_type(self) -> None:
        """Refuse everything but JSON: a form of another site could send anything else in the student's name.

        A browser asks first (CORS) before it sends JSON to a foreign site.
        """
        kind, _, parameters = self.headers.get("content-type", "").lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "")
        if kind.strip() != "application/json" or charset not in {"", "charset=utf-8"}:
            raise ProblemError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "Only application/json in UTF-8 is accepted; nothing was stored.",
                kind="not-json",
                errors=[("Content-Type", "expected application/json")],
            )

    async def body(self) -> bytes:
        """Read the body, up to the limit."""
        if self._guarded is None:
            declared = self.headers.get("content-length", "")
            if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_bytes:
                raise self._too_large()
            read = bytearray()
            async for chunk in self.stream():
                if len(read) + len(chunk) > self._max_bytes:
                    raise self._too_large()
                read += chunk
            self._guarded = bytes(read)
        return self._guarded

    async def json(self) -> Any:
        """Read the body as JSON in UTF-8: no NaN, no half characters, and nested as deep as people do it."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError:
            # Its message could quote the body.
            raise ProblemError(
                HTTPStatus.BAD_REQUEST,
                "The body is not JSON in UTF-8, or is nested too deeply; nothing was stored.",
                kind="malformed",
                errors=[("body", "expected a JSON object")],
            ) from None


def guarded_route(max_bytes: int) -> type[APIRoute]:
    """Make the class of our routes: bodies are guarded, errors are problem details, and nothing is cached.

    A class of routes, because handlers of exceptions are the host's, and hold for all of its routes.

    Args:
        max_bytes: Largest accepted body.
    """
    methods_of: defaultdict[str, set[str]] = defaultdict(set)

    class GuardedRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
            super().__init__(path, endpoint, **options)
            methods_of[path].update(self.methods or ())

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] in (self.methods or ()):
                await super().handle(scope, receive, send)
            else:
                # The first route of this path is asked; by itself it would name no other methods than its own.
                response = method_not_allowed(methods_of[self.path]).response()
                await response(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                guard = GuardedRequest(request.scope, request.receive, max_bytes=max_bytes)
                response: Response
                try:
                    if request.method in _WITH_BODY:
                        guard.check_content_type()
                    response = await handle(guard)
                except Exception as exc:
                    problem = problem_of(exc)
                    if problem is None:
                        raise
                    response = problem.response()
                # What a student wrote is his alone.
                response.headers["Cache-Control"] = "no-store"
                return response

            return guarded

    return GuardedRoute
