"""``make demo``: the whole pipeline on this machine, from an answer to its score.

Starts PostgreSQL and a Redis-compatible server of its own, unless SCORING_DATABASE_URL and SCORING_REDIS_URL
name real ones; migrates, publishes the sample questions, starts a real worker as a process of its own, plays a
class of students, prints what came of it, verifies that nothing was lost, and stops everything.

``make demo SERVE=1``: the same servers and worker behind a page in which a student answers, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from demo.play import Played, add_users, answers_expected, play, wait_for_worker
from demo.report import print_report
from demo.servers import ServerStartError, embedded_servers
from demo.site.processes import BreakableServer, BreakableWorker
from demo.site.serving import DEFAULT_PORT, PortTakenError, listening_socket, serve
from demo.worker_process import SCORING, WorkerFailedError, tail, with_console, worker_process
from producers import ProducerSettings, open_producer
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Server
    from demo.site.processes import Breakable

QUESTIONS = Path(__file__).parent / "questions"
URLS = ("SCORING_DATABASE_URL", "SCORING_REDIS_URL")


class DemoFailedError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything stands on: the environment of each process, and the Redis that is ours to break."""

    environment: dict[str, str]
    redis: Server | None = None


@contextmanager
def _servers(screen: Console) -> Iterator[Ground]:
    environment = dict(os.environ) | {"SCORING_SCORER": os.environ.get("SCORING_SCORER", "lexical")}
    given = [name for name in URLS if os.environ.get(name)]
    if len(given) == len(URLS):
        screen.print("Using the servers that SCORING_DATABASE_URL and SCORING_REDIS_URL name.")
        yield Ground(environment)
    elif given:
        raise DemoFailedError(f"Set both {' and '.join(URLS)}, or neither.")
    else:
        screen.print("Starting PostgreSQL and Valkey ...", end=" ")
        with embedded_servers() as servers:
            screen.print("done.")
            urls = dict(zip(URLS, (servers.database_url, servers.redis_url), strict=True))
            yield Ground(environment | urls, servers.redis)


def _scoring(screen: Console, environment: Mapping[str, str], *words: str, show: bool = False) -> None:
    """Run a ``scoring`` command as a person would."""
    screen.print(f"[bold]$ scoring {' '.join(words)}[/bold]")
    # Rich tables of the child are as wide as ours.
    environment = dict(environment) | {"COLUMNS": str(screen.width)}
    finished = subprocess.run(
        [*SCORING, *words], env=environment, capture_output=True, text=True, check=False
    )
    if show or finished.returncode:
        screen.out(finished.stdout.rstrip(), highlight=False)
    if finished.returncode:
        raise DemoFailedError(f"It exited with {finished.returncode}. {finished.stderr.strip()}")
    if not show:
        screen.print(
            f"[dim]{finished.stdout.strip().splitlines()[-1] if words[0] == 'migrate' else 'done.'}[/dim]"
        )


async def _worker_ready(engine: AsyncEngine, worker: subprocess.Popen[bytes], log: Path) -> None:
    try:
        await wait_for_worker(engine)
    except TimeoutError:
        raise WorkerFailedError(
            f"The worker does not report (exit status {worker.poll()}):\n{tail(log)}"
        ) from None


async def _play(
    screen: Console, settings: ProducerSettings, worker: subprocess.Popen[bytes], log: Path
) -> Played:
    engine = settings.engine()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    )
    try:
        with translated():
            await add_users(engine)
            await _worker_ready(engine, worker, log)
        async with open_producer(settings) as producer:
            with Progress(*columns, TimeElapsedColumn(), console=screen) as progress:
                submitting = progress.add_task("answers submitted", total=answers_expected())
                scoring = progress.add_task("answers scored   ", total=answers_expected())

                def on_progress(submitted: int, scored: int) -> None:
                    progress.update(submitting, completed=submitted)
                    progress.update(scoring, completed=scored)
                    if worker.poll() is not None:
                        raise WorkerFailedError(f"The worker exited with {worker.returncode}:\n{tail(log)}")

                return await play(producer, engine, on_progress)
    finally:
        await engine.dispose()


def _prepare(screen: Console, environment: Mapping[str, str]) -> ProducerSettings:
    """Migrate and publish the sample questions."""
    _scoring(screen, environment, "migrate")
    _scoring(screen, environment, "questions", "sync", os.path.relpath(QUESTIONS))
    return ProducerSettings.model_validate(
        {"database_url": environment[URLS[0]], "redis_url": environment[URLS[1]]}
    )


def run(screen: Console) -> None:
    """Run the demo.

    Raises:
        DemoFailedError: A command failed.
        ServerStartError: An embedded server did not start.
        WorkerFailedError: The worker ended by itself or not in peace.
    """
    with tempfile.TemporaryDirectory(prefix="scoring-demo-") as folder, _servers(screen) as ground:
        environment = ground.environment
        settings = _prepare(screen, environment)
        log = Path(folder) / "worker.log"
        for_worker, console = with_console(environment)
        screen.print(
            f"[bold]$ scoring worker[/bold] [dim](a process of its own; until it stops, its console is {console})[/dim]"
        )
        with worker_process(for_worker, log) as worker:
            played = asyncio.run(_play(screen, settings, worker, log))
            print_report(screen, played)
            _scoring(screen, environment, "verify", show=True)
        screen.print("The worker was told to stop and exited with 0.")


async def _make_ready(settings: ProducerSettings, worker: BreakableWorker, log: Path) -> None:
    engine = settings.engine()
    try:
        with translated():
            await add_users(engine)
            await _worker_ready(engine, worker.process, log)
    finally:
        await engine.dispose()


def run_site(screen: Console, port: int) -> None:
    """Serve the student's page until Ctrl-C, with a worker behind it.

    Raises:
        DemoFailedError: A command failed.
        PortTakenError: Somebody else listens on the port.
        ServerStartError: An embedded server did not start.
        WorkerFailedError: The worker did not start, or did not end in peace.
    """
    with (
        # First, so that a port that is taken costs nobody a wait.
        closing(listening_socket(port)) as listening,
        tempfile.TemporaryDirectory(prefix="scoring-demo-") as folder,
        _servers(screen) as ground,
    ):
        settings = _prepare(screen, ground.environment)
        log = Path(folder) / "worker.log"
        screen.print("[bold]$ scoring worker[/bold] [dim](a process of its own)[/dim]")
        with BreakableWorker(ground.environment, log) as worker:
            asyncio.run(_make_ready(settings, worker, log))
            breakables: list[Breakable] = [worker]
            if ground.redis is not None:
                breakables.append(BreakableServer("redis", ground.redis))
            serve(screen, settings, listening, breakables)


def main() -> int:
    """Run the demo; what a person can mend is said in a sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help="serve the student's page until Ctrl-C instead")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="where to serve it, on 127.0.0.1")
    given = parser.parse_args()
    screen = Console(highlight=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Console(highlight=False, width=160)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        if given.serve:
            run_site(screen, given.port)
        else:
            run(screen)
    except KeyboardInterrupt:
        screen.print("\nStopped; everything that the demo started is gone.")
        return 130
    except (DemoFailedError, PortTakenError, ServerStartError, WorkerFailedError, TimeoutError) as exc:
        screen.print(f"[red]The demo failed.[/red] {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
