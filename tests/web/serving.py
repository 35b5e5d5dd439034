"""The host app of the tests on a real uvicorn: python -m tests.web.serving PORT."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn

from producers import ProducerSettings, open_producer
from producers.web import EventStreams, StreamSettings
from tests.web.host import Host, host_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI


def served_app(settings: ProducerSettings) -> FastAPI:
    """The host app with an engine and a producer of its own."""
    engine = settings.engine()
    hosts: list[Host] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with open_producer(settings, engine=engine) as producer:
            hosts.append(Host(engine=engine, producer=producer))
            yield
        await engine.dispose()

    # So that whoever reads replies to their end gets there.
    streams = EventStreams(StreamSettings(max_stream_seconds=0.1))
    return host_app(
        producer=lambda: hosts[0].producer,
        engine=lambda: hosts[0].engine,
        lifespan=lifespan,
        streams=streams,
    )


if __name__ == "__main__":
    uvicorn.run(served_app(ProducerSettings.from_environment()), port=int(sys.argv[1]), log_level="warning")
