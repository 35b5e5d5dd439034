"""``make bench``: measure on this machine, print tables, write them down for programs and as a picture."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import (
    churn,
    deadline,
    events,
    flat,
    lanes,
    model_bound,
    pickup,
    processor,
    runs,
    service_times,
    simulation,
    start,
    submit,
    throughput,
)
from benchmarks.figures import show_goals
from benchmarks.page import write
from benchmarks.plot import draw
from benchmarks.progress import Bar, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from benchmarks.figures import Figures, Goal


class Part(NamedTuple):
    """A part, how long it is expected to take, and how many steps it says."""

    measure: Callable[[Step], Coroutine[Any, Any, Figures]]
    seconds: float
    steps: int


PARTS = {
    "throughput": Part(throughput.measure, 330, throughput.STEPS),
    "pickup": Part(pickup.measure, 210, pickup.STEPS),
    "model": Part(model_bound.measure, 300, model_bound.STEPS),
    "submit": Part(submit.measure, 60, submit.STEPS),
    "flat": Part(flat.measure, 240, flat.STEPS),
    "deadline": Part(deadline.measure, 45, deadline.STEPS),
    "events": Part(events.measure, 50, events.STEPS),
    "start": Part(start.measure, 15, start.STEPS),
    "profile": Part(processor.measure, 60, processor.STEPS),
    "service": Part(service_times.measure, 20, service_times.STEPS),
    "simulation": Part(simulation.measure, 60, simulation.STEPS),
    "lanes": Part(lanes.measure, 170, lanes.STEPS),
    "churn": Part(churn.measure, 200, churn.STEPS),
    "runs": Part(runs.measure, 400, runs.STEPS),
}
RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "performance.png"


def _machine() -> dict[str, str | int | None]:
    """Where this is measured."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("sqlalchemy", "asyncpg", "arq", "redis")},
    }


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {name: known[name] for name in PARTS if "shown" in known.get(name, {})}
    goals: list[Goal] = []
    with Bar(sum(PARTS[name].seconds for name in chosen)) as bar:
        for name in chosen:
            part = PARTS[name]
            figures = asyncio.run(part.measure(bar.part(name, seconds=part.seconds, steps=part.steps)))
            figures.show()
            goals += figures.goals
            results[name] = figures.values | {
                "shown": {
                    "title": figures.title,
                    "columns": figures.columns,
                    "rows": figures.rows,
                    "notes": figures.notes,
                },
                "goals": [goal.row for goal in figures.goals],
                "machine": _machine(),
            }
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    show_goals(goals)
    draw(results, PICTURE)
    write(results, PAGE)


if __name__ == "__main__":
    main()
