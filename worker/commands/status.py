"""``scoring status`` and ``scoring verify``."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.settings import DatabaseSettings
from storage.statistics import COUNT_LIMIT, handoff_statistics
from storage.workers import list_workers
from worker.commands.database import connection
from worker.commands.printing import AsJson, console, print_json, table
from worker.provider_report import summarize_providers
from worker.settings import ScoringSettings, VerifySettings

if TYPE_CHECKING:
    from worker.provider_report import ProviderSummary
    from worker.verification import Finding

_STATES = (
    ("waiting, live", "waiting_live", "due: for the next free slot, or for the provider"),
    ("waiting, bulk", "waiting_bulk", "due, after all live ones"),
    ("leased", "leased", "with a worker"),
    ("postponed", "postponed", "tried again later"),
    ("unpublished", "unpublished", "their question is not published yet"),
    ("dead", "dead", "need a person: scoring dead list"),
    ("dismissed", "dismissed", "a person decided not to have them scored"),
    ("claims waiting", "claims_waiting", "requests to make answers a user's own"),
)


def status(*, as_json: AsJson = False) -> None:
    """Show what waits, what is worked on, what is dead, how fast it goes, and who works.

    Counting stops at 10,000, so that a look at a backlog of millions costs little. With --json a count above
    counted_up_to means: more than that.
    """

    async def run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await handoff_statistics(conn), await list_workers(conn)

    statistics, workers = asyncio.run(run())
    if as_json:
        print_json(statistics | {"counted_up_to": COUNT_LIMIT, "workers": workers})
        return
    out = console()
    rows = [(label, _bounded(statistics[name]), meaning) for label, name, meaning in _STATES]
    out.print(table("Answers that await their score", ("state", "answers", "meaning"), rows))
    out.print(
        f"Scored within the last minute: {statistics['scored_last_minute']:,}.  "
        f"Oldest that may be scored: {_seconds(statistics['oldest_seconds'])}.  "
        f"Longest due and not taken: {_seconds(statistics['longest_due_seconds'])}.\n"
    )
    if workers:
        columns = ("host", "process", "version", "slots", "would take", "silent, s", "note")
        fields = ("host", "pid", "version", "slots", "free_slots", "silent_seconds", "note")
        shown: list[list[Any]] = [
            [each[field] if field != "pid" else str(each[field]) for field in fields] for each in workers
        ]
        out.print(table("Workers", columns, shown))
    else:
        out.print(
            "No worker has reported lately. Answers are stored and wait: start one with `scoring worker`."
        )
    if providers := summarize_providers(workers):
        columns = ("provider", "workers", "breaker", "for", "why", "rate limits a minute", "counted")
        out.print(table("Model providers, as their workers see them", columns, map(_provider, providers)))
    if statistics["unpublished_questions"]:
        shown = [
            [each["module_slug"], each["question_id"], each["answers"]]
            for each in statistics["unpublished_questions"]
        ]
        out.print(table("Questions that answers wait for", ("module", "question", "answers"), shown))
    if statistics["troubles"]:
        shown = [[each["reason"], each["answers"], each["last_at"]] for each in statistics["troubles"]]
        out.print(table("Why answers had to wait lately", ("reason", "answers", "last, UTC"), shown))


def _provider(summary: ProviderSummary) -> list[Any]:
    return [
        summary.name,
        summary.workers,
        f"open for {summary.open_workers} of {summary.workers}" if summary.open_workers else "closed",
        None if summary.open_seconds is None else _seconds(summary.open_seconds),
        summary.reason,
        summary.limits,
        summary.counted,
    ]


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f} s"


def _bounded(count: int) -> int | str:
    return f"more than {COUNT_LIMIT:,}" if count > COUNT_LIMIT else f"{count:,}"


def verify(
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Look at everything ever stored, not only at what is new.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 also where something was not checked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that no answer is lost and none is scored twice. Exits with 1 where an invariant is broken.

    Looks at what is unsettled and at what came since the last time. What could not be checked, because no worker
    runs or SCORING_REDIS_URL is not set, is named on standard error, and does not count as broken without --strict.
    """
    from worker.verification import verify as check  # noqa: PLC0415 - keeps `scoring health` quick

    # Only one of the invariants is about Redis, and where a backup is looked at there may be none.
    kind = ScoringSettings if os.environ.get("SCORING_REDIS_URL") else VerifySettings
    settings: VerifySettings = kind.from_environment()

    async def run() -> list[Finding]:
        engine = settings.engine()
        try:
            return await check(engine, settings, full=full)
        finally:
            await engine.dispose()

    findings = asyncio.run(run())
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        words = {True: "holds", False: "BROKEN", None: "not checked"}
        rows = [
            (
                str(finding.number),
                finding.invariant,
                words[finding.holds],
                finding.count,
                "; ".join(filter(None, [", ".join(map(str, sorted(finding.examples))), finding.note])),
            )
            for finding in findings
        ]
        console().print(table("Invariants", ("no.", "invariant", "result", "found", "examples, notes"), rows))
    unchecked = [finding for finding in findings if finding.holds is None]
    for finding in unchecked:
        typer.echo(f"Not checked, no. {finding.number}: {finding.invariant} ({finding.note}).", err=True)
    broken = any(finding.holds is False for finding in findings)
    raise typer.Exit(1 if broken or (strict and unchecked) else 0)
