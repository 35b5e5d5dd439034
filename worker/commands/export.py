"""``scoring export``: all that is stored about one student, as JSON Lines."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections import Counter
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from storage.actions import record_action
from storage.holdings import FORMAT, begin_snapshot, count_holdings, find_student, read_holdings
from storage.translation import translated
from worker.commands.acting import By, actor, examples
from worker.commands.printing import AsJson, abandon_output, json_line, print_json
from worker.commands.stopping import interruptible
from worker.commands.students import Named, TokenOption, UserOption, named
from worker.commands.transactions import own_engine
from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = examples(
    "scoring export --user 4711 --output student.jsonl",
    "scoring export --user 4711 | jq 'select(.record == \"response\")'",
    "scoring export --anonymous-token-stdin < token.txt",
)


class UnwritableError(WorkerError):
    """The file exists already, or cannot be written."""

    exit_status = 2


def export(
    *,
    user: UserOption = None,
    token_from_stdin: TokenOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Write into a new file that only you may read; it is there whole or not at all.",
        ),
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Write all that is stored about one student, as of one moment, one JSON document a line.

    The first line is {"record": "export", "format": 1, "exported_at", "user_id"}; then come lines whose record is
    response, score, handoff, draft, claim or action, each with its columns; the last is {"record": "end", "counts"}:
    where it is missing, something was cut off. Tokens are secrets and are never written; an answer under one says
    "anonymous": true. Who exported is recorded before the first line is written. With --json, the summary that
    follows on standard error (or, with --output, on standard output) is JSON.
    """
    who = actor(by)
    student = named(user, token_from_stdin=token_from_stdin)
    if output is None:
        with interruptible("Stopped; what was written is not complete."), _standard_output() as file:
            counts = asyncio.run(_export(student, file, who))
    else:
        with interruptible("Stopped; nothing was written."), _new_file(output) as file:
            counts = asyncio.run(_export(student, file, who))
    if as_json and output is not None:
        print_json({"output": str(output), "counts": counts})
        return
    said = ", ".join(f"{number:,} {record}s" for record, number in counts.items()) or "nothing is stored"
    line = json_line({"counts": counts}).rstrip() if as_json else f"Exported about {student.label}: {said}."
    typer.echo(line, err=True)


async def _export(student: Named, file: TextIO, who: str) -> dict[str, int]:
    whose: dict[str, Any] = {"user_id": student.user_id, "anonymous_token": student.anonymous_token}
    counts: Counter[str] = Counter()
    async with own_engine() as engine:
        with translated():
            # First, and for itself: nobody shall have read what nobody has recorded.
            async with engine.begin() as conn:
                held = await count_holdings(conn, await find_student(conn, **whose))
                details = {} if student.user_id is None else {"user_id": student.user_id}
                affected = held["assessment_responses"]
                await record_action(conn, actor=who, action="export", affected=affected, details=details)
            conn = await engine.connect()
        # What follows is not translated: a file that cannot be written is no trouble of PostgreSQL's.
        try:
            await begin_snapshot(conn)
            found = await find_student(conn, **whose)
            head: dict[str, Any] = {
                "record": "export",
                "format": FORMAT,
                "exported_at": datetime.now(UTC),
                "user_id": student.user_id,
            }
            file.write(json_line(head))
            async with aclosing(read_holdings(conn, found)) as rows:
                async for row in rows:
                    file.write(json_line(row))
                    counts[row["record"]] += 1
            file.write(json_line({"record": "end", "counts": counts}))
        finally:
            await conn.close()
    return dict(counts)


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    if sys.stdout is None:
        raise UnwritableError("Standard output is closed; nothing was written.")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON's, whatever the terminal's may be
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BaseException as exc:
        # Nobody reads any more, or a signal came.
        abandon_output()
        if isinstance(exc, BrokenPipeError):
            raise typer.Exit(1) from None
        if isinstance(exc, OSError):
            raise UnwritableError(f"Standard output cannot be written: {exc.strerror}.") from exc
        raise


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """A file that appears under its name when it is complete, and never in place of another one."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - its mode is set from the first moment
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, path)
        finally:
            unfinished.unlink()
    except FileExistsError:
        raise UnwritableError(f"{path} exists already; nothing was written.") from None
    except OSError as exc:
        raise UnwritableError(f"{path} cannot be written: {exc.strerror}.") from exc
