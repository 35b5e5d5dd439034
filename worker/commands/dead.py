"""``scoring dead list|show|retry|dismiss``: answers that nobody will score unless a person acts."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from producers.settings import DatabaseSettings
from storage.actions import record_action
from storage.dead import dismiss_dead, list_dead, newest_dead, retry_dead, retry_next_dead
from storage.settlements import MAX_REASON_CHARS
from storage.validation import storable
from worker.commands.acting import By, actor, examples
from worker.commands.database import connection
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.progress import progress
from worker.commands.stopping import InterruptedCommandError
from worker.commands.transactions import persistently, working

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

app = typer.Typer(
    name="dead", help="Look at answers that could not be scored; retry or dismiss them.", no_args_is_help=True
)

LIST_EXAMPLES = examples("scoring dead list", "scoring dead list --after 9120 --limit 500 --json")
RETRY_EXAMPLES = examples(
    "scoring dead retry 4711 4712",
    'scoring dead retry --all --reason "wrong key"',
    "scoring dead retry --all",
)
DISMISS_EXAMPLES = examples("scoring dead dismiss 4711 4712 --by 'Ada Ops'")
_MOST_NAMED = 100
ResponseIds = Annotated[
    list[int] | None, typer.Argument(metavar="RESPONSE_ID", help="Which responses; dismissed ones too.")
]


def _report(action: str, done: list[int], asked: list[int] | None, *, as_json: bool) -> None:
    """Say what was done, and what was asked for and not done: those are not dead. Exits with 1 if nothing was."""
    skipped = sorted(set(asked or ()) - set(done))
    if as_json:
        print_json({action: done, "not_dead": skipped})
    else:
        typer.echo(
            f"{len(done):,} {action}." + (f" Responses: {', '.join(map(str, done[:20]))}" if done else "")
        )
    if skipped:
        typer.echo(f"Not dead, and left alone: {', '.join(map(str, skipped[:20]))}", err=True)
        if not done:
            raise typer.Exit(1)


async def _record(
    conn: AsyncConnection,
    who: str,
    action: Literal["retry", "dismiss"],
    done: list[int],
    details: dict[str, Any],
) -> None:
    """Record it where anything was done; of thousands the first are named, and all are counted."""
    if done:
        named = {"response_ids": sorted(done)[:_MOST_NAMED]}
        await record_action(conn, actor=who, action=action, affected=len(done), details=details | named)


@app.command("list", epilog=LIST_EXAMPLES)
def list_(
    *,
    dismissed: Annotated[bool, typer.Option("--dismissed", help="Also show dismissed ones.")] = False,
    after: Annotated[
        int, typer.Option(metavar="HANDOFF", help="Next page: the last handoff of the page before.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="ROWS", help="Rows on a page.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead answers with their reasons, oldest first."""

    async def run() -> list[dict[str, Any]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await list_dead(conn, include_dismissed=dismissed, after_handoff_id=after, limit=limit)

    rows = asyncio.run(run())
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("No answer is dead.")
        return
    columns = ("response", "handoff", "module", "question", "attempts", "since, UTC", "reason")
    fields = (
        "response_id",
        "handoff_id",
        "module_slug",
        "question_id",
        "attempts",
        "last_error_at",
        "last_error",
    )
    shown = [[str(row[field]) if field.endswith("_id") else row[field] for field in fields] for row in rows]
    console().print(table("Dead answers", columns, shown))
    if len(rows) == limit:
        typer.echo(f"There may be more: --after {rows[-1]['handoff_id']}")


@app.command()
def show(
    response_id: Annotated[int, typer.Argument(metavar="RESPONSE_ID", help="Which response.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show all that is known about one dead answer, except its text.

    A dismissed one too. Exits with 1 if it is neither.
    """

    async def run() -> list[dict[str, Any]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await list_dead(conn, response_id=response_id, include_dismissed=True)

    rows = asyncio.run(run())
    if not rows:
        typer.echo(f"Response {response_id} is neither dead nor dismissed, or does not exist.", err=True)
        raise typer.Exit(1)
    if as_json:
        print_json(rows[0])
    else:
        shown = [
            (name.replace("_", " "), value if name != "response_id" else str(value))
            for name, value in rows[0].items()
        ]
        console().print(table(f"Response {response_id}", ("", ""), shown))


@app.command(epilog=RETRY_EXAMPLES)
def retry(
    response_ids: ResponseIds = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All dead answers (not the dismissed ones).")] = False,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only those whose reason contains this text.")
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Have dead answers scored again.

    They have all their attempts again, and each is a model call. Mend first what killed them. With --all it goes on in
    parts: where it is stopped, the same command does the rest. Who did it is recorded, see scoring history.
    """
    if bool(response_ids) == every:
        raise typer.BadParameter("name responses, or give --all.")
    who = actor(by)
    if reason is not None:
        # Every reason contains an empty one: where a script's variable is not set, that would choose all.
        storable("reason", reason, max_chars=MAX_REASON_CHARS)
    details = {"reason": reason} if reason else {}

    async def some() -> list[int]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            done = await retry_dead(conn, response_ids=response_ids, reason=reason)
            await _record(conn, who, "retry", done, details)
            return done

    async def part(after: int, until: int, conn: AsyncConnection) -> tuple[int | None, list[int]]:
        last, done = await retry_next_dead(
            conn, after_handoff_id=after, until_handoff_id=until, reason=reason
        )
        await _record(conn, who, "retry", done, details)
        return last, done

    done = asyncio.run(_in_parts(part, as_json=as_json) if every else some())
    _report("retried", done, response_ids, as_json=as_json)


async def _in_parts(
    part: Callable[[int, int, AsyncConnection], Awaitable[tuple[int | None, list[int]]]], *, as_json: bool
) -> list[int]:
    """Go through all that is dead now, each part in a transaction of its own."""
    again = "What is left goes on with the same command."
    done: list[int] = []
    async with working() as (engine, stop):
        until = await persistently(engine, stop, newest_dead, how_to_go_on=again)
        after: int | None = 0
        with progress("Retrying", as_json=as_json) as show:
            while after is not None and after < until:
                after, retried = await persistently(
                    engine, stop, partial(part, after, until), how_to_go_on=again
                )
                done += retried
                counted = f"{len(done):,} answers wait for a worker again"
                show(until if after is None else after, until, counted)
                if stop.is_set() and after is not None and after < until:
                    raise InterruptedCommandError(f"Stopped: {counted}. {again}")
    return done


@app.command(epilog=DISMISS_EXAMPLES)
def dismiss(
    response_ids: Annotated[list[int], typer.Argument(metavar="RESPONSE_ID", help="Which responses.")],
    *,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Decide that dead answers stay unscored.

    They leave the list, and their students see "failed". scoring dead retry can still revive them, by number. Who decided
    is kept with the reason.
    """
    who = actor(by)

    async def run() -> list[int]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            done = await dismiss_dead(conn, response_ids=response_ids, dismissed_by=who)
            await _record(conn, who, "dismiss", done, {})
            return done

    _report("dismissed", asyncio.run(run()), response_ids, as_json=as_json)
