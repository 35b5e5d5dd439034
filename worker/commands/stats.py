"""``scoring stats``: what the console shows beside the status, for the terminal and for programs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from producers.settings import DatabaseSettings
from storage.activity import last_hour
from storage.dead_kinds import dead_kinds
from storage.reading import reading
from storage.translation import translated
from worker.commands.printing import AsJson, console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.table import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

# A person waits longer than a page that is refreshed.
LOOK_SECONDS = 10.0
# Sixty lines would run off the screen; with --json there are all of them.
SHOWN_MINUTES = 15


async def _read(look: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
    engine = DatabaseSettings.from_environment().engine()
    try:
        with translated():
            async with reading(engine, timeout_seconds=LOOK_SECONDS) as conn:
                return await look(conn)
    finally:
        await engine.dispose()


def stats(*, as_json: AsJson = False) -> None:
    """Show the last hour: answers and scores a minute, how long they took, tokens, money, how scores spread, why answers died.

    Where more was scored than can be read at once, times, tokens, money and scores are taken from a sample that is
    spread evenly over the hour. The last minute is not over yet.
    """

    async def look(conn: AsyncConnection) -> dict[str, Any]:
        return await last_hour(conn) | {"dead_kinds": await dead_kinds(conn)}

    seen = asyncio.run(_read(look))
    if as_json:
        print_json(seen)
        return
    out, hour = console(), seen["hour"]
    out.print(
        f"The last hour: {hour['answers']:,} answers, {hour['scores']:,} scores. "
        f"Pickup {_times(hour['pickup_seconds'])}. Scoring {_times(hour['scoring_seconds'])}.\n"
        f"Calls to the provider: {hour['requests']:,}. Tokens: {hour['input_tokens']:,} in, "
        f"{hour['output_tokens']:,} out. Money: "
        f"{'no price is known' if hour['cost_usd'] is None else format(hour['cost_usd'], ',.4f') + ' USD'}."
    )
    if seen["is_sample"]:
        out.print(
            f"Times, tokens, money and scores are taken from {seen['looked_at']:,} scores of that hour."
        )
    out.print()
    out.print(_minutes(seen["minutes"][-SHOWN_MINUTES:]))
    if seen["questions"]:
        out.print(_questions(seen["questions"]))
    if seen["dead_kinds"]:
        columns, fields = (
            ("reason", "dead answers", "first, UTC", "last, UTC"),
            ("reason", "answers", "first_at", "last_at"),
        )
        rows = ([kind[field] for field in fields] for kind in seen["dead_kinds"])
        out.print(table("Why answers died", columns, rows))


def _minutes(minutes: list[dict[str, Any]]) -> Table:
    columns = ("from, UTC", "answers", "scores", "pickup p50 / p95 / p99", "scoring p50 / p95 / p99")
    rows = (
        [
            f"{minute['starts_at']:%H:%M}",
            minute["answers"],
            minute["scores"],
            _times(minute["pickup_seconds"]),
            _times(minute["scoring_seconds"]),
        ]
        for minute in minutes
    )
    return table(f"The last {len(minutes)} minutes", columns, rows)


def _questions(questions: list[dict[str, Any]]) -> Table:
    columns = ("module", "question", "scores", "mean", "scale", "spread over ten parts of it")
    rows = (
        [
            question["module_slug"],
            question["question_id"],
            question["looked_at"],
            question["mean"],
            f"{question['scale_min']:g} to {question['scale_max']:g}",
            " ".join(map(str, question["bins"])),
        ]
        for question in questions
    )
    return table("Scores by question", columns, rows)


def _times(seconds: dict[str, float] | None) -> str:
    return "-" if seconds is None else " / ".join(f"{value:,.3f}" for value in seconds.values()) + " s"
