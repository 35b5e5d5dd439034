"""The site: its own routes, and in one line the router that a host app mounts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from demo.site import breaking, routes
from demo.site.guards import Guards
from demo.site.host import current_identity, get_engine, get_producer, token_to_claim
from demo.site.visitors import Visitors
from producers import open_producer
from producers.web import create_router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from demo.site.processes import Breakable
    from producers import ProducerSettings

# A page of another site whose name is made to point here must not reach it.
HOSTS = ["127.0.0.1", "localhost"]


def create_site(settings: ProducerSettings, breakables: Sequence[Breakable]) -> FastAPI:
    """Compose the site.

    Args:
        settings: How to reach PostgreSQL and Redis.
        breakables: What a visitor may kill and start again.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = settings.engine()
        async with open_producer(settings, engine=app.state.engine) as producer:
            app.state.producer = producer
            yield
        await app.state.engine.dispose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings = settings
    app.state.visitors = Visitors()
    app.state.breakables = list(breakables)
    app.add_middleware(Guards)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.include_router(
        create_router(
            identity=current_identity,
            may_claim=token_to_claim,
            producer=get_producer,
            engine=get_engine,
            max_answer_chars=settings.max_answer_chars,
        ),
        prefix="/assessment",
    )
    app.include_router(routes.router)
    app.include_router(breaking.router)
    app.mount("/static", StaticFiles(directory=routes.STATIC))
    return app
