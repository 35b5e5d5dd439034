"""Simulate a million answers before a deadline, with service times as they were measured."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields, replace
from typing import get_args

from benchmarks.simulation.report import compared, span, summary, timeline
from benchmarks.simulation.results import service_times
from benchmarks.simulation.scenario import HOUR_SECONDS, Law, Scenario
from benchmarks.simulation.system import simulate

_HELP = {
    "answers": "one a student",
    "window_seconds": "from the opening to the deadline, seconds",
    "last_hour_share": "so much of all submits comes in the last hour, 0 to 1",
    "web_processes": "each commits one batch of submits at a time",
    "workers": "worker processes",
    "slots": "answers that one of them scores at a time",
    "requests_per_minute": "the provider's limit for the fleet; 0 for none",
    "model_median_seconds": "half of the model's calls take longer, seconds",
    "model_sigma": "standard deviation of the logarithm of a call's time",
    "database_parallel": "statements that PostgreSQL serves at a time at their measured speed",
    "seed": "of everything that is drawn",
}


def _scenario() -> tuple[Scenario, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Scenario()
    for name, meaning in _HELP.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=meaning)
    parser.add_argument("--law", choices=get_args(Law), default=default.law, help="how submits rise")
    parser.add_argument("--no-what-ifs", action="store_true", help="only the scenario itself")
    given = vars(parser.parse_args())
    chosen = {field.name: given[field.name] for field in fields(Scenario) if field.name in given}
    chosen["requests_per_minute"] = chosen["requests_per_minute"] or None
    return replace(default, **chosen), not given["no_what_ifs"]


def _say(scenario: Scenario) -> None:
    limit = f"{scenario.requests_per_minute:,} requests a minute" if scenario.requests_per_minute else "none"
    rise = "all at once" if scenario.law == "at once" else f"{scenario.law} rise"
    print(
        f"{scenario.answers:,} answers in {scenario.window_seconds / HOUR_SECONDS:g} h, {rise}, "
        f"{scenario.last_hour_share:.0%} in the last hour; {scenario.web_processes} web processes; "
        f"{scenario.workers} workers of {scenario.slots} slots;\n"
        f"model log-normal, median {scenario.model_median_seconds:g} s, sigma {scenario.model_sigma:g}; "
        f"provider's limit: {limit}; PostgreSQL serves {scenario.database_parallel} statements at a time; "
        f"seed {scenario.seed}\n"
    )


def main() -> None:
    """Run the scenario and the what-ifs."""
    scenario, with_what_ifs = _scenario()
    service = service_times()
    _say(scenario)
    began = time.perf_counter()
    runs = [("as above", simulate(scenario, service))]
    timeline(runs[0][1]).show()
    print("\n".join(summary(runs[0][1])), end="\n\n")
    if with_what_ifs:
        unlimited, slower = replace(scenario, requests_per_minute=None), service.slower_database(2)
        cases = (
            ("no provider's limit", unlimited, service),
            ("that, and PostgreSQL twice as slow", unlimited, slower),
            (f"{2 * scenario.workers} workers", replace(scenario, workers=2 * scenario.workers), service),
            ("PostgreSQL twice as slow", scenario, slower),
            ("all at the deadline", replace(scenario, law="at once"), service),
        )
        for name, case, times in cases:
            print(f"\r{name} …".ljust(60), end="", file=sys.stderr, flush=True)
            runs.append((name, simulate(case, times)))
        print("\r".ljust(60), end="\r", file=sys.stderr, flush=True)
        compared(runs).show()
    print(f"Simulated in {span(time.perf_counter() - began)}.")


if __name__ == "__main__":
    main()
