"""Commands, run as a person or a program would."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from demo.worker_process import SCORING
from worker.cli import app

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from typer.testing import Result


@dataclass(frozen=True)
class Commands:
    """Runs ``scoring`` commands with one environment."""

    environment: Mapping[str, str]

    async def run(self, *words: str | os.PathLike[str]) -> Result:
        """Run in this process, in a thread: a command starts an event loop of its own."""
        arguments = list(map(str, words))
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=dict(self.environment)))

    async def json(self, *words: str | os.PathLike[str], exit_status: int = 0) -> Any:
        """Run with ``--json`` and read what is printed."""
        result = await self.run(*words, "--json")
        assert result.exit_code == exit_status, (result.output, result.exception)
        return json.loads(result.stdout)

    async def process(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run as a process of its own, as installed, with something on its standard input."""
        return await asyncio.to_thread(
            subprocess.run,
            [*SCORING, *words],
            env={"PATH": "/usr/bin:/bin", **self.environment},
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def commands(database_url: str, redis_url: str) -> Commands:
    """Commands on the test servers."""
    return Commands(
        {
            "SCORING_DATABASE_URL": database_url,
            "SCORING_REDIS_URL": redis_url,
            "SCORING_SWEEP_SECONDS": "0.1",
            "COLUMNS": "200",
        }
    )
