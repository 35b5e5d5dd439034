"""The application on the worker's HTTP port: who may ask, and what is there."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from worker.http.hosts import is_allowed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from worker.http.probes import Readiness, Watchdog

logger = logging.getLogger(__name__)

# Forms are small.
MAX_BODY_BYTES = 16 * 1024
# Say nothing but yes or no, to whoever asks under whatever name.
PROBES = frozenset({"/healthz", "/readyz"})
# Everything comes from here: no foreign script, style, font or picture, and nobody puts us into a frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guarded:
    """Refuses requests under foreign names, adds the security headers, and answers for whatever fails inside.

    Args:
        app: What is behind.
        allowed_hosts: Names that lead here.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer: ASGIApp = self._app
        host = Headers(scope=scope).get("host")
        if scope["path"] not in PROBES and not is_allowed(host, self._allowed):
            answer = PlainTextResponse(
                "This port is not asked under this name. Names that lead here are set with "
                "SCORING_HTTP_ALLOWED_HOSTS.\n",
                status_code=421,
            )
        try:
            await answer(scope, receive, send_guarded)
        except ClientDisconnect:
            # Nobody is left to answer, and nothing is wrong with the worker: whoever can connect could fill its log.
            return
        except Exception as exc:  # noqa: BLE001 - the server would log a traceback for each
            place = traceback.extract_tb(exc.__traceback__)[-1]
            logger.error(  # noqa: TRY400 - a driver's message may quote a password
                "A request to the HTTP port failed.",
                extra={
                    "path": scope["path"],
                    "error": type(exc).__name__,
                    "place": f"{place.filename}:{place.lineno}",
                },
            )
            if not started:
                await PlainTextResponse("Something went wrong; the worker's log says where.\n", 500)(
                    scope, receive, send_guarded
                )


def create_app(
    *,
    watchdog: Watchdog,
    readiness: Readiness,
    console: Sequence[BaseRoute],
    metrics: Callable[[], Awaitable[bytes]] | None,
    allowed_hosts: Collection[str],
) -> ASGIApp:
    """Put the application together.

    Args:
        watchdog: Answers ``/healthz``.
        readiness: Answers ``/readyz``.
        console: Everything below ``/console``.
        metrics: Makes what ``/metrics`` answers, in Prometheus' text format; None: there is no such page.
        allowed_hosts: Names under which the port may be asked, besides ``localhost`` and every address.

    Returns:
        An ASGI application.
    """

    async def healthz(_: Request) -> Response:
        alive, report = watchdog.report()
        return JSONResponse(report, status_code=200 if alive else 503)

    async def readyz(_: Request) -> Response:
        ready, report = await readiness.report()
        return JSONResponse(report, status_code=200 if ready else 503)

    async def root(_: Request) -> Response:
        return RedirectResponse("/console", status_code=303)

    routes: list[BaseRoute] = [
        Route("/", root),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        *console,
    ]
    if metrics is not None:
        exposition = metrics

        async def metrics_page(_: Request) -> Response:
            return Response(await exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

        routes.append(Route("/metrics", metrics_page))
    return Guarded(Starlette(routes=routes, max_body_size=MAX_BODY_BYTES), allowed_hosts=allowed_hosts)
