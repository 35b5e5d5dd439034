"""``scoring history``: who did what to other people's answers."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from producers.settings import DatabaseSettings
from storage.actions import latest_actions
from worker.commands.acting import examples
from worker.commands.database import connection
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.runs import describe

EXAMPLES = examples("scoring history", "scoring history --before 1200 --limit 200 --json")


def history(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="ROWS", help="Rows on a page.")] = 50,
    before: Annotated[
        int | None, typer.Option(metavar="ACTION", help="Next page: the last action of the page before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who retried, dismissed, rescored, backfilled, purged, erased or exported, newest first.

    The record is written in the transaction that does it, and nobody's database role may change it. A run is recorded
    when it starts, when it is taken up again, and, with the answers that it changed, when it is finished.
    """

    async def read() -> list[dict[str, Any]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await latest_actions(conn, limit=limit, before_action_id=before)

    rows = asyncio.run(read())
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("Nothing was recorded.")
        return
    columns = ("action", "when, UTC", "who", "what", "answers", "details")
    shown = [
        [
            str(row["action_id"]),
            row["acted_at"],
            row["actor"],
            row["action"],
            row["affected"],
            ", ".join(f"{name} {_brief(value)}" for name, value in row["details"].items()),
        ]
        for row in rows
    ]
    console().print(table("What was done", columns, shown))


def _brief(value: Any) -> str:
    match value:
        case str():
            return value
        case dict():
            return f"({describe(value)})"
        case _:
            return json.dumps(value)
