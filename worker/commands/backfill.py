"""``scoring backfill``: hand over answers that were stored before there were handoffs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import typer

from storage.backfilling import backfill_step, survey_backfill
from storage.runs import horizon
from storage.translation import translated
from worker.commands.acting import By, DryRun, Yes, actor, confirm, examples, must_be_able_to_ask
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.runs import ListRuns, Plan, Resume, RunNumber, Runs, Wait, survey
from worker.commands.transactions import working

EXAMPLES = examples(
    "scoring backfill --dry-run",
    "scoring backfill --yes --wait",
    "scoring backfill --resume",
)
_MOST_QUESTIONS = 20


def backfill(
    run: RunNumber = None,
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    resume: Resume = False,
    list_: ListRuns = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Hand over answers that have neither a score nor a handoff: those from before this was installed.

    Shows how many there are, and asks. They wait in the bulk lane, behind every live answer, and are scored against
    what the student was asked, or against the question as it is now where that was not kept. Stop it at any time: it
    goes on where it was. `scoring verify --full` finds such answers as well.
    """
    runs = Runs("backfill", "handed over", backfill_step, actor(by), as_json)
    if list_:
        runs.show_list()
        return
    if resume:
        if dry_run:
            raise typer.BadParameter(
                "--resume goes on with what the run began with: --dry-run is for new ones."
            )
        _report(runs.resume(run, wait=wait), None, as_json=as_json)
        return
    if run is not None:
        raise typer.BadParameter("a run is named with --resume only.")
    must_be_able_to_ask(yes=yes, dry_run=dry_run)
    plan, questions = asyncio.run(_survey(as_json=as_json))
    if not as_json:
        _show(plan, questions)
    if dry_run or not plan.expected:
        if as_json:
            print_json({"plan": {"answers": plan.expected}, "questions": questions, "run": None})
        return
    confirm(f"Hand over {plan.expected:,} answers?", yes=yes)
    before = {"plan": {"answers": plan.expected}, "questions": questions}
    _report(runs.start(plan, wait=wait), before, as_json=as_json)


async def _survey(*, as_json: bool) -> tuple[Plan, list[dict[str, Any]]]:
    async with working() as (engine, stop):
        with translated():
            async with engine.begin() as conn:
                end = await horizon(conn)
        until = end["until_response_id"]
        parts = await survey(
            engine,
            stop,
            lambda conn, after: survey_backfill(conn, after=after, until=until),
            until=until,
            as_json=as_json,
        )
    sums: dict[tuple[str, str], Counter[str]] = {}
    for part in parts:
        sums.setdefault((part.pop("module_slug"), part.pop("question_id")), Counter()).update(part)
    questions: list[dict[str, Any]] = [
        {"module_slug": module, "question_id": question, **counted}
        for (module, question), counted in sorted(sums.items(), key=lambda item: -item[1]["answers"])
    ]
    expected = sum(each["answers"] for each in questions)
    return Plan({"after_handoff_id": end["after_handoff_id"]}, until, expected), questions


def _show(plan: Plan, questions: list[dict[str, Any]]) -> None:
    if not plan.expected:
        typer.echo("Every answer has a score or a handoff; nothing to do.")
        return
    rows = [
        [each["module_slug"], each["question_id"], each["answers"], each["unpublished"]]
        for each in questions[:_MOST_QUESTIONS]
    ]
    columns = ("module", "question", "answers", "wait for its publication")
    console().print(table("Answers with neither score nor handoff", columns, rows))
    if left := len(questions) - len(rows):
        typer.echo(f"And {left:,} more questions with fewer answers.")
    typer.echo(f"{plan.expected:,} answers would be handed over.")


def _report(run: dict[str, Any], before: dict[str, Any] | None, *, as_json: bool) -> None:
    if as_json:
        print_json((before or {}) | {"run": run})
        return
    said = f"Run {run['run_id']} is finished: {run['changed']:,} answers were handed over."
    if (left := run.get("unscored")) is not None:
        said += f" None waits; {left['dead']:,} could not be scored."
        if left["unpublished"]:
            said += f" {left['unpublished']:,} wait for their question to be published."
    typer.echo(said)
