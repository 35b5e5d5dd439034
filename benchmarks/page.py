"""Puts the measured tables into the page for people: nothing there is copied by hand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

GOALS, MACHINE = "goals", "machine"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _sections(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    goals: list[Sequence[str]] = []
    machines: set[str] = set()
    for name, part in results.items():
        shown = part["shown"]
        notes = "\n".join(shown["notes"])
        yield name, f"{shown['title']}:\n\n{table(shown['columns'], shown['rows'])}\n\n{notes}".rstrip()
        goals += part["goals"]
        machines.add(", ".join(f"{key} {value}" for key, value in part["machine"].items()))
    yield GOALS, table(["", "measured", "wanted", "reached"], goals)
    yield MACHINE, "\n".join(f"- {machine}" for machine in sorted(machines))


def write(results: Mapping[str, Any], page: Path) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` by what was measured last.

    Args:
        results: As ``results.json`` holds them.
        page: A Markdown file; places without a result stay as they are.
    """
    sections = dict(_sections(results))

    def replaced(place: re.Match[str]) -> str:
        name = place["name"]
        return f"<!-- {name} -->\n{sections[name]}\n<!-- /{name} -->" if name in sections else place[0]

    places = re.compile(r"<!-- (?P<name>\w+) -->.*?<!-- /(?P=name) -->", re.DOTALL)
    page.write_text(places.sub(replaced, page.read_text()))
