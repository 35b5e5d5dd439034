"""Runs that can be stopped and resumed: start them, take them up again, list them, wait for their scores."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.settings import DatabaseSettings
from storage.errors import InvalidInputError, StorageUnavailableError
from storage.runs import (
    advance_run,
    get_run,
    latest_runs,
    record_resumption,
    start_run,
    unscored_of,
)
from storage.translation import translated
from worker.commands.database import connection
from worker.commands.printing import console, print_json, table
from worker.commands.progress import progress
from worker.commands.stopping import InterruptedCommandError, pause
from worker.commands.transactions import HaltedCommandError, persistently, working

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from storage.runs import Kind, Step
    from worker.commands.progress import Progress

RunNumber = Annotated[
    int | None, typer.Argument(metavar="RUN", help="With --resume: which run; the newest by default.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
ListRuns = Annotated[bool, typer.Option("--list", help="List the runs that there were.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show the scoring, until all of it is done.")]

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, as its survey found."""

    filters: Mapping[str, Any]
    until_response_id: int
    expected: int


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one kind, worked on by one person.

    Args:
        kind: Which.
        done: What happens to an answer, as in "500 answers were handed over".
        work: Does one step.
        actor: Who works on them.
        as_json: Progress as lines of JSON.
        afterwards: What is left to do when the run is finished, harmless to do again; its counts stand in the run's
            row as ``also``.
    """

    kind: Kind
    done: str
    work: Callable[[AsyncConnection, Mapping[str, Any]], Awaitable[Step]]
    actor: str
    as_json: bool
    afterwards: (
        Callable[[AsyncEngine, asyncio.Event, Mapping[str, Any]], Awaitable[dict[str, int]]] | None
    ) = None

    def start(self, plan: Plan, *, wait: bool = False) -> dict[str, Any]:
        """Begin a run and work on it to its end; returns its row, with ``unscored`` where we waited for scores."""

        async def begin(conn: AsyncConnection) -> int:
            return await start_run(
                conn,
                kind=self.kind,
                filters=plan.filters,
                started_by=self.actor,
                until_response_id=plan.until_response_id,
                expected=plan.expected,
            )

        return asyncio.run(self._run(begin, wait=wait))

    def resume(self, run_id: int | None, *, wait: bool = False) -> dict[str, Any]:
        """Work on a run that was stopped, or on the newest one that was, to its end; returns as :meth:`start`.

        Where none was, and something is left to do afterwards, that of the newest run is done again.

        Raises:
            InvalidInputError: There is no such run.
        """

        async def find(conn: AsyncConnection) -> int:
            if run_id is not None:
                run = await get_run(conn, run_id)
            else:
                newest = await latest_runs(conn, kind=self.kind, unfinished=True, limit=1)
                if not newest and self.afterwards is not None:
                    # Whatever killed it may have done so when only the rest was left, which no cursor tells of.
                    newest = await latest_runs(conn, kind=self.kind, limit=1)
                run = next(iter(newest), None)
            if run is None or run["kind"] != self.kind:
                which = f"{self.kind} run {run_id}" if run_id is not None else f"unfinished {self.kind} run"
                raise InvalidInputError("run", f"there is no {which}; see `scoring {self.kind} --list`")
            if run["finished_at"] is None:
                await record_resumption(conn, run, actor=self.actor)
            return int(run["run_id"])

        return asyncio.run(self._run(find, wait=wait))

    def show_list(self) -> None:
        """Print the runs that there were."""

        async def read() -> list[dict[str, Any]]:
            async with connection(DatabaseSettings.from_environment()) as conn:
                return await latest_runs(conn, kind=self.kind)

        rows = asyncio.run(read())
        if self.as_json:
            print_json(rows)
        elif not rows:
            typer.echo(f"There was no {self.kind} run.")
        else:
            columns = ("run", "by", "started, UTC", "changed", "of about", "finished, UTC", "filters")
            shown = [
                [
                    str(run["run_id"]),
                    run["started_by"],
                    run["started_at"],
                    run["changed"],
                    run["expected"],
                    run["finished_at"],
                    describe(run["filters"]),
                ]
                for run in rows
            ]
            console().print(table(f"Runs of scoring {self.kind}", columns, shown))

    async def _run(self, find: Callable[[AsyncConnection], Awaitable[int]], *, wait: bool) -> dict[str, Any]:
        async with working() as (engine, stop):
            try:
                with translated():
                    async with engine.begin() as conn:
                        run_id = await find(conn)
            except StorageUnavailableError as exc:
                raise HaltedCommandError(
                    f"{exc} Whether a run was begun says: scoring {self.kind} --list"
                ) from exc
            with progress(f"Run {run_id}", as_json=self.as_json) as show:
                run = await self._work(engine, run_id, stop, show)
            if self.afterwards is not None:
                run["also"] = await self.afterwards(engine, stop, run)
            if wait:
                with progress("Scoring", as_json=self.as_json) as show:
                    run["unscored"] = await self._wait(engine, run, stop, show)
        return run

    async def _work(
        self, engine: AsyncEngine, run_id: int, stop: asyncio.Event, show: Progress
    ) -> dict[str, Any]:
        async def advance(conn: AsyncConnection) -> dict[str, Any]:
            # Whether the commit before happened or not: the cursor knows.
            return await advance_run(conn, run_id, kind=self.kind, actor=self.actor, work=self.work)

        while True:
            run = await persistently(engine, stop, advance, how_to_go_on=self._how_to_resume(run_id))
            if run["finished_at"] is not None:
                return run
            counted = f"{run['changed']:,} of about {run['expected']:,} answers {self.done}"
            show(run["last_response_id"], run["until_response_id"], counted)
            if stop.is_set():
                raise InterruptedCommandError(f"Stopped: {counted}. {self._how_to_resume(run_id)}")

    def _how_to_resume(self, run_id: int) -> str:
        return f"Go on with: scoring {self.kind} --resume {run_id}"

    async def _wait(
        self, engine: AsyncEngine, run: Mapping[str, Any], stop: asyncio.Event, show: Progress
    ) -> dict[str, int]:
        while True:
            left = await persistently(
                engine, stop, partial(unscored_of, run=run), how_to_go_on=f"Run {run['run_id']} is done."
            )
            if not left["waiting"]:
                return left
            asked = max(run["changed"], left["waiting"])
            show(asked - left["waiting"], asked, f"{left['waiting']:,} answers wait for their score")
            if stop.is_set():
                said = f"Run {run['run_id']} is done; {left['waiting']:,} answers wait for their score, and workers go on."
                raise InterruptedCommandError(said)
            await pause(stop, _LOOK_SECONDS)


async def survey(
    engine: AsyncEngine,
    stop: asyncio.Event,
    look: Callable[[AsyncConnection, int], Awaitable[tuple[int, list[dict[str, Any]]]]],
    *,
    until: int,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Look at everything, part by part, and gather what each part tells.

    Args:
        engine: Where.
        stop: Asks for the end.
        look: Looks at the part that begins after an id; returns where it ends, and what it tells.
        until: The id at which to end.
        as_json: Progress as lines of JSON.

    Raises:
        InterruptedCommandError: The end was asked for.
    """
    told: list[dict[str, Any]] = []
    after = 0
    with progress("Looking", as_json=as_json) as show:
        while after < until:
            with translated():
                async with engine.begin() as conn:
                    after, part = await look(conn, after)
            told += part
            show(after, until, "nothing is changed yet")
            if stop.is_set():
                raise InterruptedCommandError("Stopped before anything was changed.")
    return told


def describe(filters: Mapping[str, Any]) -> str:
    """A run's filters in a line, without the bounds that are ours."""
    ours = ("until_score_id", "after_handoff_id")
    said = [f"{name} {value}" for name, value in filters.items() if name not in ours]
    return ", ".join(said) or "everything"
