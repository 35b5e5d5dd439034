"""A web app with the events of one caller, run by a real uvicorn in a process of its own: python -m tests.web.hosting."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
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
    parser.add_argument("--own-signals", action="store_true")
    given = parser.parse_args()
    settings = StreamSettings(feed=FeedSettings(look_seconds=0.05))
    app = make_app(os.environ["DATABASE_URL"], settings)
    if given.own_signals:
        asyncio.run(with_own_signals(uvicorn.Server(uvicorn.Config(app, port=given.port, log_level="info"))))
    else:
        uvicorn.run(app, port=given.port, log_level="info")


async def with_own_signals(server: uvicorn.Server) -> None:
    """As a host does that runs the server beside other things, and stops all of them itself."""

    def stop() -> None:
        server.should_exit = True

    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    await asyncio.gather(server.serve(), asyncio.sleep(0))


if __name__ == "__main__":
    main()
