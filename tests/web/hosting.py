"""A web app with the events of one caller, run by a real uvicorn in a process of its own: python -m tests.web.hosting."""

from __future__ import annotations

import argparse
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Request

from producers.feed import FeedSettings
from producers.web.events import EventStreams, StreamSettings, events_router
from storage import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Identity:
    user_id: int | None = None
    anonymous_token: str | None = None


async def current_identity(request: Request) -> Identity:
    """Who asks, as a header says; real web apps ask a session."""
    user, token = request.headers.get("x-user"), request.headers.get("x-token")
    return Identity(user_id=None if user is None else int(user), anonymous_token=token)


def make_app(database_url: str, settings: StreamSettings, *, pool_size: int = 5) -> FastAPI:
    """The app; its state holds ``engine`` and ``streams``."""
    engine = create_engine(database_url, pool_size=pool_size)
    streams = EventStreams(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await streams.close()
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.state.engine, app.state.streams = engine, streams

    def get_engine() -> object:
        return engine

    app.include_router(
        events_router(identity=current_identity, engine=get_engine, streams=streams), prefix="/assessment"
    )
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    settings = StreamSettings(feed=FeedSettings(look_seconds=0.05))
    uvicorn.run(make_app(os.environ["DATABASE_URL"], settings), port=port, log_level="info")


if __name__ == "__main__":
    main()
