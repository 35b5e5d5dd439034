"""``scoring worker`` and ``scoring health``."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Annotated, Any

import typer

from producers.settings import DatabaseSettings
from storage.workers import ALIVE_SECONDS, list_workers
from worker.commands.database import connection
from worker.commands.printing import AsJson, print_json
from worker.settings import ScoringSettings

logger = logging.getLogger(__name__)


def worker(
    *, as_json: Annotated[bool, typer.Option("--json", help="Write logs as lines of JSON.")] = False
) -> None:
    """Score answers until SIGTERM or Ctrl-C.

    Stops gracefully: takes nothing new, finishes what it can within SCORING_GRACE_SECONDS, hands the rest to
    the other workers at once. A second signal ends the grace time.
    """
    # Imported here: the other commands should not wait for what only a worker needs.
    from worker.logs import configure_logging  # noqa: PLC0415
    from worker.main import run_process  # noqa: PLC0415

    settings = ScoringSettings.from_environment()
    configure_logging("json" if as_json else settings.log_format, settings.log_level)
    if unknown := ScoringSettings.unknown_variables():
        logger.warning(
            "These variables are no settings of ours; are they misspelt?", extra={"variables": unknown}
        )
    run_process(settings)


def health(*, as_json: AsJson = False) -> None:
    """Exit with 0 if a worker on this host has reported lately, with 1 otherwise; for container health checks."""

    async def run() -> list[dict[str, Any]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await list_workers(conn, host=socket.gethostname())

    workers = asyncio.run(run())
    if as_json:
        print_json({"healthy": bool(workers), "workers": workers})
    elif workers:
        notes = "; ".join(each["note"] for each in workers if each["note"])
        typer.echo(f"Workers on this host: {len(workers)}. {notes}".rstrip())
    else:
        typer.echo(f"No worker on this host has reported within {ALIVE_SECONDS:g} s.", err=True)
    raise typer.Exit(0 if workers else 1)
