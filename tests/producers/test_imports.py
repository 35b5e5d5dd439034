"""A web app that imports ``producers`` does not pay for what only a worker needs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "pydantic_ai",
    "typer",
    "rich",
    "click",
    "structlog",
    "alembic",
    "fastapi",
    "starlette",
    "openai",
    "anthropic",
    "rapidfuzz",
)
PROGRAM = "import sys, producers; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_producers_are_light() -> None:
    """No model library, no command line, no web framework is loaded in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    loaded = set(done.stdout.split())
    assert {"sqlalchemy", "redis"} <= loaded
    assert not loaded.intersection(HEAVY)
