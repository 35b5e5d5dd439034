"""A web app with the events of one caller, run by a real uvicorn in a process of its own: python -m tests.web.hosting."""

from __future__ import annotations

import argparse
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from producers.web import EventStreams, FeedSettings, StreamSettings, create_router
from storage import create_engine
from tests.web.host import current_identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def make_app(database_url: str, settings: StreamSettings, **changes: Any) -> FastAPI:
    """The app; its state holds ``engine`` and ``streams``."""
    engine = create_engine(database_url)
    streams = EventStreams(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await streams.close()
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.state.engine, app.state.streams = engine, streams

    given: dict[str, Any] = {
        "identity": current_identity,
        "may_claim": lambda: None,
        "producer": lambda: None,
        "engine": lambda: engine,
    }
    app.include_router(create_router(**(given | changes), streams=streams), prefix="/assessment")
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    settings = StreamSettings(feed=FeedSettings(look_seconds=0.05))
    uvicorn.run(make_app(os.environ["DATABASE_URL"], settings), port=port, log_level="info")


if __name__ == "__main__":
    main()
