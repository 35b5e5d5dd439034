"""``scoring rescore``: score answers again."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from storage.rescoring import Choice, checked_choice, rescore_step, survey_rescore
from storage.runs import horizon
from storage.translation import translated
from worker.commands.acting import By, DryRun, Yes, actor, confirm, examples, must_be_able_to_ask
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.runs import ListRuns, Plan, Resume, RunNumber, Runs, Wait, survey
from worker.commands.transactions import working

EXAMPLES = examples(
    "scoring rescore --question photosynthesis --outdated --dry-run",
    "scoring rescore --module biology --scored-before 2026-09-01 --max-score 2",
    "scoring rescore --not-prompt-version 4 --yes --wait",
    "scoring rescore --resume 7",
)


def moment(value: str) -> datetime:
    """Read a date or a time as people write it, in UTC unless it has a zone."""
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        raise typer.BadParameter(
            "expected a date or time, as 2026-09-01 or 2026-09-01T08:30+02:00."
        ) from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def rescore(
    run: RunNumber = None,
    *,
    module: Annotated[str | None, typer.Option(metavar="SLUG", help="Only answers of this module.")] = None,
    question: Annotated[str | None, typer.Option(metavar="ID", help="Only answers to this question.")] = None,
    outdated: Annotated[
        bool, typer.Option("--outdated", help="Only scores given by an earlier edition of the question.")
    ] = False,
    answered_from: Annotated[
        datetime | None,
        typer.Option(
            parser=moment, metavar="TIME", help="Only answers since then (UTC unless a zone is given)."
        ),
    ] = None,
    answered_before: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Only answers before then.")
    ] = None,
    scored_from: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Only scores since then.")
    ] = None,
    scored_before: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Only scores before then.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE", help="Only overall scores from here up, on the scale of their question."
        ),
    ] = None,
    max_score: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Only overall scores up to here, on the scale of their question."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="Only scores of this model.")] = None,
    not_model: Annotated[str | None, typer.Option(metavar="ID", help="Only scores of other models.")] = None,
    prompt_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Only scores of this prompt version.")
    ] = None,
    not_prompt_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Only scores of other prompt versions.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every answer that has a score.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    resume: Resume = False,
    list_: ListRuns = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Score answers again, chosen by their current scores, against their questions as they are now.

    Shows how many answers that is and what their present scores have cost, and asks. The answers wait in the bulk
    lane, behind every live one, and keep their scores until they have the new ones. Stop it at any time: it goes on
    where it was. Answers and scores that come after the start are not part of it.
    """
    runs = Runs("rescore", "asked for anew", rescore_step, actor(by), as_json)
    if list_:
        runs.show_list()
        return
    choice = checked_choice(
        Choice(
            module_slug=module,
            question_id=question,
            answered_from=answered_from,
            answered_before=answered_before,
            scored_from=scored_from,
            scored_before=scored_before,
            min_score=min_score,
            max_score=max_score,
            model_id=model,
            not_model_id=not_model,
            prompt_version=prompt_version,
            not_prompt_version=not_prompt_version,
            outdated=outdated,
        )
    )
    if resume:
        if choice.chooses or every or dry_run:
            raise typer.BadParameter("--resume goes on with what the run began with: give no filters.")
        _report(runs.resume(run, wait=wait), None, as_json=as_json)
        return
    if run is not None:
        raise typer.BadParameter("a run is named with --resume only.")
    if choice.chooses == every:
        raise typer.BadParameter("say which answers, or give --all.")
    must_be_able_to_ask(yes=yes, dry_run=dry_run)
    plan, costs = asyncio.run(_survey(choice, as_json=as_json))
    estimate = estimated(costs)
    if not as_json:
        _show(costs, estimate)
    if dry_run or not plan.expected:
        if as_json:
            print_json({"plan": estimate, "by_model": costs, "run": None})
        return
    confirm(f"Score {plan.expected:,} answers again?", yes=yes)
    _report(runs.start(plan, wait=wait), {"plan": estimate, "by_model": costs}, as_json=as_json)


async def _survey(choice: Choice, *, as_json: bool) -> tuple[Plan, list[dict[str, Any]]]:
    async with working() as (engine, stop):
        with translated():
            async with engine.begin() as conn:
                end = await horizon(conn)
        until = {"until": end["until_response_id"], "until_score_id": end["until_score_id"]}
        parts = await survey(
            engine,
            stop,
            lambda conn, after: survey_rescore(conn, choice, after=after, **until),
            until=end["until_response_id"],
            as_json=as_json,
        )
    sums: dict[tuple[str, str], Counter[str]] = {}
    for part in parts:
        by = sums.setdefault((part.pop("model_id"), part.pop("prompt_version")), Counter())
        by.update(part)
    costs: list[dict[str, Any]] = [
        {"model_id": model_id, "prompt_version": version, **counted}
        for (model_id, version), counted in sorted(sums.items())
    ]
    bounds = {name: end[name] for name in ("until_score_id", "after_handoff_id")}
    expected = sum(each["answers"] for each in costs)
    return Plan(choice.as_json() | bounds, end["until_response_id"], expected), costs


def estimated(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """What scoring again costs, if it costs what the present scores have cost on average.

    Returns:
        ``answers``, how many of them are ``outstanding``, ``cost_usd`` and ``tokens`` (None where no score tells), and
        ``with_cost`` and ``with_tokens``: from how many scores that is known.
    """
    total: Counter[str] = Counter()
    for each in costs:
        total.update({name: value for name, value in each.items() if not isinstance(value, str)})
    answers = total["answers"]
    estimate: dict[str, Any] = {"answers": answers, "outstanding": total["outstanding"]}
    for name, known in (("cost_usd", "with_cost"), ("tokens", "with_tokens")):
        estimate[known] = total[known]
        estimate[name] = total[name] / total[known] * answers if total[known] else None
    return estimate


def _show(costs: list[dict[str, Any]], estimate: dict[str, Any]) -> None:
    if not estimate["answers"]:
        typer.echo("No score fits; nothing to do.")
        return
    rows = [
        [
            each["model_id"],
            each["prompt_version"],
            each["answers"],
            each["tokens"] / each["with_tokens"] if each["with_tokens"] else None,
            f"{each['cost_usd'] / each['with_cost']:.5f}" if each["with_cost"] else None,
        ]
        for each in costs
    ]
    columns = ("model", "prompt", "answers", "tokens each", "USD each")
    console().print(table("Scores that would be replaced", columns, rows))
    said = f"{estimate['answers']:,} answers would be scored again."
    if estimate["outstanding"]:
        said += f" {estimate['outstanding']:,} of them wait for a new score already."
    if estimate["cost_usd"] is None:
        said += " What that costs is unknown: none of these scores tells its cost."
    else:
        said += f" Estimated cost: {estimate['cost_usd']:,.2f} USD"
        said += f" (known from {estimate['with_cost']:,} of these scores)."
    if estimate["tokens"] is not None:
        said += f" Estimated tokens: {estimate['tokens']:,.0f}."
    typer.echo(said)


def _report(run: dict[str, Any], before: dict[str, Any] | None, *, as_json: bool) -> None:
    if as_json:
        print_json((before or {}) | {"run": run})
        return
    said = f"Run {run['run_id']} is finished: {run['changed']:,} answers wait for their new score in the bulk lane."
    if (left := run.get("unscored")) is not None:
        said = f"Run {run['run_id']} is finished: {run['changed']:,} answers were asked for anew, and none waits."
        if left["dead"]:
            said += f" {left['dead']:,} could not be scored: scoring dead list"
    typer.echo(said)
