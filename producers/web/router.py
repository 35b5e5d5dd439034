"""Compose the router that a host app mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from producers.web.answers import add_answers
from producers.web.bodies import guarded_route, max_body_bytes
from producers.web.claims import add_claims
from producers.web.drafts import add_drafts
from producers.web.events import EventStreams, add_events
from producers.web.host import Host
from storage.limits import max_answer_chars as configured_max_answer_chars

if TYPE_CHECKING:
    from collections.abc import Callable


def create_router(
    *,
    identity: Callable[..., Any],
    may_claim: Callable[..., Any],
    producer: Callable[..., Any],
    engine: Callable[..., Any],
    max_answer_chars: int | None = None,
    streams: EventStreams | None = None,
    operation_prefix: str = "",
) -> APIRouter:
    """Make the router; ``app.include_router(router, prefix="/assessment")`` mounts it.

    Errors of its routes are problem details (RFC 9457). The host's own handlers of exceptions are neither changed nor
    needed; what its dependencies raise beside a plain ``HTTPException`` goes to them.

    Args:
        identity: Dependency that returns the :class:`producers.web.Identity` of the caller, or raises
            ``HTTPException(401)``.
        may_claim: Dependency that returns the anonymous token whose answers the signed-in caller may make his own,
            as a rule that of his cookie, or None. Never take it from what the page sends: whoever knows a token could
            claim its answers.
        producer: Dependency that returns the process's :class:`producers.Producer`.
        engine: Dependency that returns the host's ``AsyncEngine`` on asyncpg, for reads and drafts.
        max_answer_chars: Longest accepted answer, characters; by default ``SCORING_MAX_ANSWER_CHARS``, as for the
            producer.
        streams: How ``GET /events`` behaves; give one to close its streams yourself. By default one with default
            settings.
        operation_prefix: Stands before each operation id of the OpenAPI document, ``"teachers_"`` for example. Give
            one to each further router of the same app: ids have to differ.

    Returns:
        The router. It keeps no state but the streams that are open: make as many as you like.
    """
    max_chars = max_answer_chars or configured_max_answer_chars()
    host = Host(identity, may_claim, producer, engine, max_chars)
    router = APIRouter(tags=["assessment"], route_class=guarded_route(max_body_bytes(max_chars)))
    add_answers(router, host)
    add_claims(router, host)
    add_drafts(router, host)
    add_events(router, host, streams or EventStreams())
    for route in router.routes:
        if isinstance(route, APIRoute) and route.operation_id is not None:
            route.operation_id = route.unique_id = operation_prefix + route.operation_id
    return router
