"""``scoring questions sync``: publish questions and rubrics from files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from producers.settings import DatabaseSettings
from storage.questions import publish_questions
from worker.commands.database import connection
from worker.commands.printing import AsJson, console, print_json, table

app = typer.Typer(name="questions", help="Publish questions and rubrics.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Publish questions and rubrics."""


@app.command()
def sync(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIRECTORY",
            exists=True,
            file_okay=False,
            help="A folder of YAML files, searched recursively.",
        ),
    ],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the files and publish nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish the questions of a folder.

    What has not changed is left alone. New answers are scored against the new content, and answers that waited for a question become due. Answers
    given to earlier content are still scored against that.
    """
    from worker.question_files import read_question_files  # noqa: PLC0415 - YAML is only needed here

    questions = read_question_files(directory)
    if dry_run:
        if as_json:
            print_json(questions)
        else:
            typer.echo(f"Well-formed questions: {len(questions)}; nothing was published.")
        return

    async def run() -> list[dict[str, Any]]:
        async with connection(DatabaseSettings.from_environment()) as conn:
            return await publish_questions(conn, questions)

    published = asyncio.run(run())
    if as_json:
        print_json(published)
        return
    rows = [
        (
            each["module_slug"],
            each["question_id"],
            each["question_digest"][:12],
            "published" if each["published"] else "unchanged",
        )
        for each in published
    ]
    console().print(table("Questions", ("module", "question", "digest", "result"), rows))
