"""``make bench``: measure on this machine, print tables, write them down for programs."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import churn, lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from benchmarks.figures import Figures

PARTS: dict[str, Callable[[], Coroutine[Any, Any, Figures]]] = {
    "lanes": lanes.measure,
    "churn": churn.measure,
}
RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="which parts; all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen:
        figures = asyncio.run(PARTS[name]())
        figures.show()
        results[name] = figures.values | {"python": platform.python_version(), "machine": platform.machine()}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
