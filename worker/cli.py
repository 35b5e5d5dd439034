"""The ``scoring`` command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from producers.errors import ProducerError
from storage.errors import StorageError, StorageUnavailableError
from worker.commands import (
    backfill,
    database,
    dead,
    erase,
    export,
    history,
    process,
    purge,
    questions,
    rescore,
    stats,
    status,
)
from worker.commands.printing import abandon_output, is_of_output, print_whatever_the_terminal_knows
from worker.errors import WorkerError

app = typer.Typer(
    name="scoring",
    help="Score students' answers: run the worker, look at it, mend what needs a person.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    process.worker,
    process.health,
    status.status,
    status.verify,
    stats.stats,
    database.migrate,
    database.grant,
):
    app.command()(command)
for command, examples in (
    (rescore.rescore, rescore.EXAMPLES),
    (backfill.backfill, backfill.EXAMPLES),
    (purge.purge, purge.EXAMPLES),
    (erase.erase, erase.EXAMPLES),
    (export.export, export.EXAMPLES),
    (history.history, history.EXAMPLES),
):
    app.command(epilog=examples)(command)
app.add_typer(dead.app)
app.add_typer(questions.app)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(version("assessment-scoring"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _print_version(wanted=wanted),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Settings come from SCORING_... environment variables; see .env.example."""


def main() -> None:
    """Run a command. What a person can mend is said in a sentence, and ends the process with 2 or 1.

    Exit status: 0 done; 1 a check failed, a server is away, or nobody reads what is printed any more; 2 settings, input or
    usage are wrong, or nothing can be printed; 130 a signal ended it, and it said where it stands.
    """
    print_whatever_the_terminal_knows()
    try:
        app()
    except StorageUnavailableError as exc:
        sys.exit(_complain(f"{exc} Is SCORING_DATABASE_URL right, and is the server running?", 1))
    except (ProducerError, StorageError) as exc:
        sys.exit(_complain(str(exc), 2))
    except WorkerError as exc:
        sys.exit(_complain(str(exc), exc.exit_status))
    except OSError as exc:
        if not is_of_output(exc):
            raise
        abandon_output()
        sys.exit(_complain(f"Standard output cannot be written: {exc.strerror}.", 2))


def _complain(message: str, exit_status: int) -> int:
    typer.echo(message, err=True)
    return exit_status
