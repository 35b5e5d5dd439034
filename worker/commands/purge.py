"""``scoring purge``: delete what anonymous students left long ago."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storage.actions import record_action
from storage.purging import count_old_drafts, cutoff_of, purge_claims, purge_drafts, purge_step, survey_purge
from storage.runs import horizon
from storage.translation import translated
from worker.commands.acting import By, DryRun, Yes, actor, confirm, examples, must_be_able_to_ask
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.runs import ListRuns, Plan, Resume, RunNumber, Runs, survey
from worker.commands.stopping import InterruptedCommandError
from worker.commands.transactions import persistently, working

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EXAMPLES = examples(
    "scoring purge --older-than 365 --dry-run",
    "scoring purge --older-than 365 --yes     # from a timer",
    "scoring purge --resume",
)
_LONGEST_DAYS = 36_500


def purge(
    run: RunNumber = None,
    *,
    older_than: Annotated[
        int | None,
        typer.Option(min=1, max=_LONGEST_DAYS, metavar="DAYS", help="What is older than so many days."),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    resume: Resume = False,
    list_: ListRuns = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Delete old anonymous answers with all that belongs to them, and old anonymous drafts.

    Shows how many that are, and asks. Answers of users stay, and so does what a claim that waits is about to move.
    Claims that were applied before then are deleted too where nothing is left under their token: they hold the token.
    Stop it at any time: it goes on where it was.
    """
    who = actor(by)
    runs = Runs("purge", "deleted", purge_step, who, as_json, afterwards=_rest(who))
    if list_:
        runs.show_list()
        return
    if resume:
        if older_than is not None or dry_run:
            raise typer.BadParameter("--resume goes on with what the run began with.")
        _report(runs.resume(run), None, as_json=as_json)
        return
    if run is not None:
        raise typer.BadParameter("a run is named with --resume only.")
    if older_than is None:
        raise typer.BadParameter("say how old with --older-than DAYS.")
    must_be_able_to_ask(yes=yes, dry_run=dry_run)
    plan, counts = asyncio.run(_survey(older_than, as_json=as_json))
    if not as_json:
        _show(plan, counts)
    if dry_run:
        if as_json:
            print_json({"plan": counts, "run": None})
        return
    # Also where it finds nothing now: claims are counted only as they go.
    confirm(f"Delete {counts['answers']:,} answers and {counts['drafts']:,} drafts for good?", yes=yes)
    _report(runs.start(plan), {"plan": counts}, as_json=as_json)


async def _survey(days: int, *, as_json: bool) -> tuple[Plan, dict[str, int]]:
    async with working() as (engine, stop):
        with translated():
            async with engine.begin() as conn:
                end = await horizon(conn)
                cutoff = end["read_at"] - timedelta(days=days)
                drafts = await count_old_drafts(conn, cutoff=cutoff)
        until = end["until_response_id"]
        parts = await survey(
            engine,
            stop,
            lambda conn, after: survey_purge(conn, cutoff=cutoff, after=after, until=until),
            until=until,
            as_json=as_json,
        )
    counts: Counter[str] = Counter(answers=0, scores=0, handoffs=0, protected=0)
    for part in parts:
        counts.update(part)
    filters = {"older_than_days": days, "cutoff": cutoff.isoformat()}
    return Plan(filters, until, counts["answers"]), {**counts, "drafts": drafts}


def _rest(who: str) -> Any:
    async def rest(engine: AsyncEngine, stop: asyncio.Event, run: Mapping[str, Any]) -> dict[str, int]:
        """Drafts, then claims: a claim goes where nothing is left under its token."""
        return {
            "drafts": await _purge_all(engine, stop, run, who, "drafts", purge_drafts),
            "claims": await _purge_all(engine, stop, run, who, "claims", purge_claims),
        }

    return rest


async def _purge_all(
    engine: AsyncEngine, stop: asyncio.Event, run: Mapping[str, Any], who: str, what: str, purge_part: Any
) -> int:
    cutoff = cutoff_of(run)
    how_to_go_on = f"The answers are deleted; for the rest: scoring purge --resume {run['run_id']}"
    after: int | None = 0
    deleted = 0

    async def do(conn: AsyncConnection) -> tuple[int | None, int]:
        last, gone = await purge_part(conn, cutoff=cutoff, after=after)
        if gone:
            details = {"run": run["run_id"], what: gone}
            await record_action(conn, actor=who, action="purge", affected=0, details=details)
        return last, gone

    while after is not None:
        after, gone = await persistently(engine, stop, do, how_to_go_on=how_to_go_on)
        deleted += gone
        if stop.is_set() and after is not None:
            raise InterruptedCommandError(f"Stopped. {how_to_go_on}")
    return deleted


def _show(plan: Plan, counts: dict[str, int]) -> None:
    rows = [
        ["answers", counts["answers"], "of anonymous students"],
        ["scores", counts["scores"], "of these answers"],
        ["handoffs", counts["handoffs"], "of these answers: not scored yet, or dead"],
        ["drafts", counts["drafts"], "of anonymous students, last saved before then"],
    ]
    cutoff = str(plan.filters["cutoff"])[:19].replace("T", " ")
    console().print(table(f"What would be deleted, from before {cutoff} UTC", ("what", "rows", ""), rows))
    if counts["protected"]:
        typer.echo(f"{counts['protected']:,} more answers stay: a claim that waits is about to move them.")


def _report(run: dict[str, Any], before: dict[str, Any] | None, *, as_json: bool) -> None:
    if as_json:
        print_json((before or {}) | {"run": run})
        return
    also = run["also"]
    typer.echo(
        f"Run {run['run_id']} is finished: {run['changed']:,} answers, {also['drafts']:,} drafts and "
        f"{also['claims']:,} claims were deleted."
    )
