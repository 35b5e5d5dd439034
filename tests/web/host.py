"""A host app for tests: a header says who calls, and another one which token he holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Header, HTTPException

from producers.web import Identity, create_router

if TYPE_CHECKING:
    from fastapi import APIRouter
    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers import Producer

TIMEOUT_SECONDS = 10.0


@dataclass
class Host:
    """What the host app has. Tests replace it."""

    engine: AsyncEngine
    producer: Producer


def current_identity(
    x_user: Annotated[str | None, Header(include_in_schema=False)] = None,
    x_token: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Identity:
    """Who calls."""
    if x_user:
        return Identity(user_id=int(x_user))
    if x_token is not None:
        return Identity(anonymous_token=x_token)
    raise HTTPException(401, "Sign in first.", {"WWW-Authenticate": "Session"})


def held_token(x_held: Annotated[str | None, Header(include_in_schema=False)] = None) -> str | None:
    """The token that this browser has."""
    return x_held


def host_router(host: Host | None = None, **changes: Any) -> APIRouter:
    """The router, with the dependencies of this host."""
    given: dict[str, Any] = {"identity": current_identity, "may_claim": held_token}
    if host is not None:
        given |= {"producer": lambda: host.producer, "engine": lambda: host.engine}
    return create_router(**(given | changes))


def host_app(host: Host | None = None, *, lifespan: Any = None, **changes: Any) -> FastAPI:
    """The app."""
    app = FastAPI(title="Host", lifespan=lifespan)
    app.include_router(host_router(host, **changes), prefix="/assessment")
    return app
