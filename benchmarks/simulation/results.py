"""Where measured service times come from."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.simulation.service import ServiceTimes

RESULTS = Path(__file__).parents[1] / "results.json"


def service_times() -> ServiceTimes:
    """What ``make bench`` measured last; where it has not, what was measured once."""
    return ServiceTimes.from_results(json.loads(RESULTS.read_text()) if RESULTS.exists() else {})
