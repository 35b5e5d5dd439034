"""``python -m benchmarks.peers NAME prepare|worker|throughput|submit|pickup [N]``: one part of one measurement."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from benchmarks.peers import INTERPRETERS, by_hand, measurements
from benchmarks.peers.answers import create_tables
from benchmarks.peers.processes import die_with_parent, run
from benchmarks.peers.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from benchmarks.peers.contract import Queue

BY_HAND: dict[str, Callable[[Settings, int], Coroutine[Any, Any, dict[str, Any]]]] = {
    "by_hand": by_hand.singly,
    "by_hand_batched": by_hand.batched,
}
MEASUREMENTS: dict[str, Callable[[Queue, Settings, int], Coroutine[Any, Any, dict[str, Any]]]] = {
    "throughput": measurements.throughput,
    "submit": measurements.submit,
    "pickup": measurements.pickup,
}


async def _prepare(queue: Queue | None, settings: Settings) -> None:
    await create_tables(settings)
    if queue is not None:
        await queue.prepare(settings)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("name", choices=INTERPRETERS)
    parser.add_argument("action", choices=["prepare", "worker", *MEASUREMENTS])
    parser.add_argument("answers", type=int, nargs="?", default=1000, help="how many answers")
    asked = parser.parse_args()
    die_with_parent()
    settings = Settings.from_environment()
    queue = None if asked.name in BY_HAND else cast("Queue", import_module(f"benchmarks.peers.{asked.name}"))
    if asked.action == "prepare":
        run(_prepare(queue, settings))
    elif queue is None:
        if asked.action != "throughput":
            parser.error("by hand there is nothing but throughput")
        print(json.dumps(run(BY_HAND[asked.name](settings, asked.answers))), flush=True)
    elif asked.action == "worker":
        queue.work(settings)
    else:
        print(json.dumps(run(MEASUREMENTS[asked.action](queue, settings, asked.answers))), flush=True)


if __name__ == "__main__":
    main()
