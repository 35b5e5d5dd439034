"""The web process that ``benchmarks.events`` measures: event streams, and what they cost it.

Run as ``python -m benchmarks.events_server PORT`` with ``DATABASE_URL``; ``GET /figures`` tells.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from sqlalchemy import event

from producers.web import EventStreams, Identity, StreamSettings, create_router
from storage import create_engine

FILES = 8192


def resident_kb() -> int:
    """What of this process is in memory, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def make_app(database_url: str) -> FastAPI:
    """The app: streams with their defaults, but for the length of a stream, which would end in the middle."""
    engine = create_engine(database_url)
    statements = 0

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    app = FastAPI()

    async def identity(request: Request) -> Identity:
        return Identity(user_id=int(request.headers["x-user"]))

    async def nothing() -> None:
        """No answer is submitted to this process, and nothing is claimed."""

    async def get_engine() -> Any:
        return engine

    @app.get("/figures")
    async def figures() -> dict[str, float]:
        return {
            "resident_kb": resident_kb(),
            "processor_seconds": time.process_time(),
            "statements": statements,
        }

    streams = EventStreams(StreamSettings(max_stream_seconds=3600))
    app.include_router(
        create_router(
            identity=identity, may_claim=nothing, producer=nothing, engine=get_engine, streams=streams
        )
    )
    return app


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    uvicorn.run(
        make_app(os.environ["DATABASE_URL"]), port=int(sys.argv[1]), log_level="warning", backlog=FILES
    )
