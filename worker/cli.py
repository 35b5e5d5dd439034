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

EPILOG = """\b
Settings are SCORING_... variables of the environment, listed in .env.example;
all commands need SCORING_DATABASE_URL.

\b
Exit status: 0 done; 1 a check failed, or a server is away; 2 settings, input
or usage are wrong; 130 a signal ended it, and it said where it stands."""
app = typer.Typer(
    name="scoring",
    help="Score students' answers: run the worker, look at it, mend what needs a person.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Each with a line that is whole in the list of commands, on a terminal of 80 columns.
for command, line, examples in (
    (process.worker, "Score answers until SIGTERM or Ctrl-C.", None),
    (process.health, "Tell whether a worker runs on this host.", None),
    (status.status, "Show what waits, what is dead, and who works.", None),
    (status.verify, "Check that no answer is lost or scored twice.", None),
    (stats.stats, "Show the last hour: rates, times, cost, scores.", None),
    (database.migrate, "Create or update our tables.", None),
    (database.grant, "Create database roles with their rights.", None),
    (rescore.rescore, "Score answers again.", rescore.EXAMPLES),
    (backfill.backfill, "Hand over answers from before this was installed.", backfill.EXAMPLES),
    (purge.purge, "Delete old anonymous answers and drafts.", purge.EXAMPLES),
    (erase.erase, "Delete all about one student.", erase.EXAMPLES),
    (export.export, "Write all about one student, as JSON Lines.", export.EXAMPLES),
    (history.history, "Show who did what to other people's answers.", history.EXAMPLES),
):
    app.command(short_help=line, epilog=examples)(command)
app.add_typer(dead.app, short_help="List, retry or dismiss answers that could not be scored.")
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
        # Most commands store nothing when all is well either; what a person fears is that something was changed.
        sys.exit(_complain(str(exc).replace("nothing was stored", "nothing was changed"), 2))
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
