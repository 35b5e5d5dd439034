"""``make chaos``: load, real workers, and one fault after the other; then an audit of every answer.

Exits with 0 only if nothing was lost, nothing scored twice, and nothing paid twice without a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from rich.console import Console

from demo.servers import Servers, ServerStartError, embedded_servers
from demo.worker_process import SCORING
from storage import create_engine
from tests.chaos import processes
from tests.chaos.arena import Arena
from tests.chaos.audit import judge
from tests.chaos.crowd import Crowd
from tests.chaos.editions import Editions
from tests.chaos.evidence import gather
from tests.chaos.faults import FAULTS
from tests.chaos.fleet import Fleet
from tests.chaos.observer import Observer
from tests.chaos.plan import make_plan
from tests.chaos.provider import Provider
from tests.chaos.report import list_of_faults, print_report, settings_line, write_json
from tests.chaos.run import come_to_rest, play
from tests.chaos.terms import QUESTIONS, worker_settings
from tests.databases import add_users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.audit import Verdict

OPEN_SECONDS = 60.0


class ChaosFailedError(RuntimeError):
    """The run cannot begin; the message says why."""


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults happen")
    parser.add_argument("--seed", type=int, help="of the order of the faults; drawn if not given")
    parser.add_argument("--only", help="only faults whose name contains this, over and over")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--keep", type=Path, help="leave journals, ledger and logs in this folder")
    parser.add_argument(
        "--list", action="store_true", help="only say which faults there are, and what recovered means"
    )
    options = parser.parse_args(arguments)
    if options.only and not any(options.only in kind.name for kind in FAULTS):
        parser.error("--only: no fault has this in its name; see --list")
    return options


async def _scoring(environment: dict[str, str], folder: Path, *words: str) -> int:
    process = await processes.start((*SCORING[1:], *words), environment, folder / f"{words[0]}.log")
    return await process.wait()


async def _run(screen: Console, servers: Servers, folder: Path, options: argparse.Namespace) -> Verdict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCORING_")}
    environment |= {"SCORING_DATABASE_URL": servers.database_url, "SCORING_REDIS_URL": servers.redis_url}
    if await _scoring(environment, folder, "migrate"):
        raise ChaosFailedError((folder / "migrate.log").read_text())
    await add_users(servers.database_url)
    async with AsyncExitStack() as stack:
        engine = create_engine(servers.database_url, pool_size=4)
        stack.push_async_callback(engine.dispose)
        redis = await stack.enter_async_context(Redis.from_url(servers.redis_url, socket_timeout=5))
        provider = Provider(folder, environment, options.seed)
        stack.push_async_callback(provider.close)
        await provider.open()
        ports = (servers.postgres.port, servers.redis.port, provider.port)
        fleet = Fleet(folder, environment, ports)
        stack.push_async_callback(fleet.close)
        crowd = Crowd(folder, environment, options.seed)
        stack.push_async_callback(crowd.close)
        arena = Arena(servers, redis, fleet, crowd, provider, Observer(engine), Editions(engine))
        fleet.on_ending = arena.worker_ended
        # A server that was stopped must go on before it can end.
        stack.callback(_go_on, servers)
        await arena.editions.publish(*QUESTIONS)
        async with asyncio.timeout(OPEN_SECONDS):
            await fleet.open()
        await crowd.open()
        watching = asyncio.create_task(arena.observer.watch(arena.backlog))
        stack.callback(watching.cancel)
        steps = make_plan(options.seed, options.seconds, only=options.only)
        await play(arena, steps, lambda line: screen.print(line, markup=False))
        screen.print("The load stops; waiting until everything has come to rest ...")
        await come_to_rest(arena)
        status = await _scoring(environment | worker_settings(), folder, "verify", "--full")
        evidence = await gather(arena, verify_status=status)
        arena.problems += await fleet.stop()
        return judge(evidence)


def _go_on(servers: Servers) -> None:
    if servers.redis.process is not None:
        with suppress(ProcessLookupError):
            servers.redis.process.send_signal(signal.SIGCONT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and judge.

    Returns:
        0 passed, 1 failed, 130 interrupted.
    """
    options = _options(sys.argv[1:] if arguments is None else arguments)
    screen = Console(highlight=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Console(highlight=False, width=160)
    if options.list:
        screen.print(list_of_faults())
        return 0
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    # Told to stop is told to stop: everything is cleaned up as after Ctrl-C. So it is where a shell has started us in the
    # background, and had SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    screen.print(f"Seed {options.seed}. {settings_line()}")
    try:
        with tempfile.TemporaryDirectory(prefix="scoring-chaos-") as made, embedded_servers() as servers:
            folder = options.keep or Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            verdict = asyncio.run(_run(screen, servers, folder, options))
    except KeyboardInterrupt:
        screen.print("\nStopped; everything that was started is gone.")
        return 130
    except (ChaosFailedError, ServerStartError, TimeoutError) as exc:
        screen.print(f"[red]The run failed.[/red] {exc}")
        return 1
    print_report(screen, verdict)
    if options.json is not None:
        write_json(options.json, verdict, seed=options.seed, seconds=options.seconds)
    screen.print(f"Seed {options.seed}.")
    return 1 if verdict.reasons else 0


if __name__ == "__main__":
    sys.exit(main())
