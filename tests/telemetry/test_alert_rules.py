"""The tests of the alert rules notice what may be wrong with a rule: each is spoilt in every way, and found out."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import yaml

from tests.telemetry.test_deploy import PATIENCE_SECONDS, PROMETHEUS, promtool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["promtool"]  # a fixture


def spoilt(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way to get a rule a little wrong, with its name."""
    if "for" in rule:
        number, unit = rule["for"][:-1], rule["for"][-1]
        minutes = int(number) * {"m": 1, "d": 24 * 60}[unit]
        yield "no for", {name: value for name, value in rule.items() if name != "for"}
        for other in (minutes - 1, minutes + 1):
            yield f"for {other}m", rule | {"for": f"{other}m"}
    for query in spoilt_queries(rule["expr"]):
        yield query, rule | {"expr": query}
    yield "severity", rule | {"labels": {"severity": "none"}}


def spoilt_queries(query: str) -> Iterator[str]:
    """Every way to get a query a little wrong."""
    replacements = (
        (r"(?<= )\d+$", lambda number: (str(int(number) - 1), str(int(number) + 1))),
        (r"\b(?:max|min|sum)(?=\()", lambda name: {"max", "min", "sum"} - {name}),
        (r"(?<= )(?:==|>)(?= )", lambda sign: {"==": ("!=",), ">": (">=", "<")}[sign]),
        (r"(?<=\[)\d+(?=h\])", lambda hours: (str(2 * int(hours)),)),
        (r'(?<=[{,])\w+="\w+"', lambda _: ("",)),
    )
    for pattern, others in replacements:
        for found in re.finditer(pattern, query):
            for other in sorted(others(found[0])):
                if found[0] == "max" and other == "sum" and query.endswith("> 0"):
                    continue  # of what is never negative, both say the same
                yield (query[: found.start()] + other + query[found.end() :]).replace("{,", "{")


def test_the_tests_find_out_every_spoilt_rule(promtool: str, tmp_path: Path) -> None:
    """Other thresholds, times, aggregations, comparisons, ranges and labels: for each some test fails."""
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())

    def survives(number: int, name: str, alert: str, rule: dict[str, Any]) -> str | None:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "spoilt", "rules": [rule]}]}))
        about = []
        for test in tests["tests"]:
            checks = [each for each in test["alert_rule_test"] if each["alertname"] == alert]
            if checks:
                about.append(test | {"alert_rule_test": checks})
        (folder / "alerts.test.yml").write_text(yaml.safe_dump(tests | {"tests": about}))
        done = subprocess.run(
            [promtool, "test", "rules", "alerts.test.yml"],
            cwd=folder,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return f"{alert}: {name}" if done.returncode == 0 else None

    chosen = [(name, rule["alert"], other) for rule in rules for name, other in spoilt(rule)]
    whole = [("as it is", rule["alert"], rule) for rule in rules]
    with ThreadPoolExecutor(4) as threads:
        survivors = list(threads.map(lambda each: survives(each[0], *each[1]), enumerate(chosen + whole)))

    assert survivors[len(chosen) :] == [f"{rule['alert']}: as it is" for rule in rules]
    assert not (found := [name for name in survivors[: len(chosen)] if name]), "\n".join(found)
