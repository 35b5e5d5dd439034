"""``scoring erase``: delete all that is stored about one student."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from storage.actions import record_action
from storage.erasure import erase_responses
from storage.holdings import Student, count_holdings, find_student
from storage.translation import translated
from worker.commands.acting import By, DryRun, Yes, actor, confirm, examples, must_be_able_to_ask
from worker.commands.printing import AsJson, console, print_json, table
from worker.commands.stopping import InterruptedCommandError
from worker.commands.students import Named, TokenOption, UserOption, named
from worker.commands.transactions import persistently, working

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

EXAMPLES = examples(
    "scoring erase --user 4711 --dry-run",
    "scoring erase --user 4711",
    "scoring erase --anonymous-token-stdin --yes < token.txt",
)


def erase(
    *,
    user: UserOption = None,
    token_from_stdin: TokenOption = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Delete answers, scores, handoffs, drafts and claims of one student, for good.

    Shows how much there is, and asks. What lies under tokens that this user alone has claimed goes too: a claim leaves
    answers there to questions that he had answered already. The record of who erased keeps the user's number and
    counts, so that an erasure can be repeated after a backup was restored; of a token it keeps nothing. The row in
    the users table is the web app's to delete.
    """
    who = actor(by)
    student = named(user, token_from_stdin=token_from_stdin)
    must_be_able_to_ask(yes=yes, dry_run=dry_run)
    found, held = asyncio.run(_look(student))
    if not as_json:
        console().print(table("Stored now", ("what", "rows"), _rows(held)))
        _tell_tokens(found)
    if dry_run or not any(held.values()):
        if as_json:
            print_json({"found": held, "shared_tokens": found.shared_tokens, "erased": None})
        elif not dry_run:
            typer.echo("Nothing to erase.")
        return
    confirm(f"Erase all of this about {student.label} for good?", yes=yes)
    erased, left = asyncio.run(_erase(student, found, who))
    if as_json:
        print_json({"found": held, "shared_tokens": found.shared_tokens, "erased": erased, "left": left})
    else:
        console().print(table("Erased", ("what", "rows"), _rows(erased)))
    if any(left.values()):
        typer.echo("Something has come meanwhile: run it again.", err=True)
        raise typer.Exit(1)


async def _look(student: Named) -> tuple[Student, dict[str, int]]:
    async with working() as (engine, _):
        with translated():
            async with engine.begin() as conn:
                found = await find_student(
                    conn, user_id=student.user_id, anonymous_token=student.anonymous_token
                )
                return found, await count_holdings(conn, found)


async def _erase(student: Named, found: Student, who: str) -> tuple[dict[str, int], dict[str, int]]:
    """Erase owner by owner, each in a transaction of its own: several in one would lock handoffs out of order.

    The user comes last: until then his claims tell which tokens are his, also to a command that starts anew.
    """
    erased: Counter[str] = Counter()
    owners: list[dict[str, Any]] = [{"anonymous_token": token} for token in found.tokens]
    if found.user_id is not None:
        owners.append({"user_id": found.user_id})
    how_to_go_on = "What was erased is recorded; run the same command again for the rest."
    async with working() as (engine, stop):
        for owner in owners:

            async def do(conn: AsyncConnection, owner: dict[str, Any] = owner) -> dict[str, int]:
                gone = await erase_responses(conn, **owner)
                details: dict[str, Any] = {"rows": gone}
                if found.user_id is not None:
                    details["user_id"] = found.user_id
                if any(gone.values()):
                    await record_action(
                        conn,
                        actor=who,
                        action="erase",
                        affected=gone["assessment_responses"],
                        details=details,
                    )
                return gone

            erased.update(await persistently(engine, stop, do, how_to_go_on=how_to_go_on))
            if stop.is_set() and owner is not owners[-1]:
                raise InterruptedCommandError(f"Stopped. {how_to_go_on}")
        with translated():
            async with engine.begin() as conn:
                again = await find_student(
                    conn, user_id=student.user_id, anonymous_token=student.anonymous_token
                )
                left = await count_holdings(conn, again)
    return dict(erased), left


def _rows(by_table: dict[str, int]) -> list[list[Any]]:
    return [
        [name.removeprefix("assessment_").removeprefix("scoring_"), rows] for name, rows in by_table.items()
    ]


def _tell_tokens(found: Student) -> None:
    if found.user_id is not None and found.tokens:
        typer.echo(f"With what lies under {len(found.tokens):,} tokens that only this user has claimed.")
    if found.shared_tokens:
        typer.echo(
            f"{found.shared_tokens:,} tokens were claimed by somebody else as well: what lies under those is left."
        )
