"""Writes what the pages say about settings and commands out of the code: ``python -m tests.docs.pages``."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any, Final

import typer
from pydantic_core import PydanticUndefined

from producers.settings import ENV_PREFIX, ProducerSettings
from tests.databases import ROOT
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo

OPERATIONS: Final = ROOT / "docs" / "operations.md"
COMMANDS: Final = ROOT / "docs" / "reference" / "commands.md"
_UNITS: Final = ("seconds", "characters", "tokens", "days", "bytes")
# (heading, what the names begin with); whatever no line names belongs to the worker.
_WORKER_GROUPS: Final = (
    ("The model scorer", ("llm_",)),
    ("Limits of the provider", ("requests_", "tokens_")),
    ("Console, health checks and metrics over HTTP", ("http_", "console_")),
    ("Traces", ("otel_", "trace_", "traces_", "tracing")),
    ("Logs", ("log_",)),
)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None or field.default == "":
        return "unset"
    value = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"
    return f"`{value.removesuffix('.0')}`"


def _allowed(field: FieldInfo) -> str:
    bounds = {
        attribute: f"{getattr(rule, attribute):,}"
        for rule in field.metadata
        for attribute in ("ge", "gt", "le", "lt")
        if hasattr(rule, attribute)
    }
    low = bounds.get("ge") or (f"above {bounds['gt']}" if "gt" in bounds else "")
    high = bounds.get("le") or (f"below {bounds['lt']}" if "lt" in bounds else "")
    if low and high:
        return f"{low}, at most {high}" if "gt" in bounds else f"{low} to {high}"
    return f"{low} or more" if low else high


def _meaning_and_unit(description: str) -> tuple[str, str]:
    meaning, _, rest = description.partition(";")
    for unit in _UNITS:
        if meaning.endswith(f", {unit}"):
            meaning = meaning.removesuffix(f", {unit}")
            return (f"{meaning};{rest}" if rest else meaning), unit
    return description, ""


def _rows(fields: dict[str, FieldInfo]) -> list[list[str]]:
    rows = []
    for name, field in fields.items():
        meaning, unit = _meaning_and_unit(field.description or "")
        # URLs and words in capitals would be read as markup or links.
        meaning = re.sub(r"\b[\w+]+://\S+[^\s,]", lambda found: f"`{found[0]}`", meaning)
        rows.append([f"`{ENV_PREFIX}{name.upper()}`", _default(field), unit, _allowed(field), meaning])
    return rows


def settings_tables() -> str:
    """Every setting: variable, default, unit, what is allowed, and what it means, grouped by who reads it."""
    everything = ScoringSettings.model_fields
    shared = {name: field for name, field in everything.items() if name in ProducerSettings.model_fields}
    groups = {"Web processes, workers and commands": shared, "Workers": {}}
    groups |= {heading: {} for heading, _ in _WORKER_GROUPS}
    for name, field in everything.items():
        if name not in shared:
            fitting = (heading for heading, starts in _WORKER_GROUPS if name.startswith(starts))
            groups[next(fitting, "Workers")][name] = field
    columns = ("variable", "default", "unit", "allowed", "meaning")
    return "\n\n".join(
        f"### {heading}\n\n{_table(columns, _rows(fields))}" for heading, fields in groups.items() if fields
    )


def _help(text: str | None) -> str:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    prose = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return re.sub(r"\bSCORING_[A-Z_]*[A-Z](?!\w)", lambda found: f"`{found[0]}`", prose)


def _parameter(parameter: Any) -> list[str]:
    is_option = parameter.param_type_name == "option"
    name = ", ".join(parameter.opts) if is_option else (parameter.metavar or parameter.name.upper())
    default = parameter.default
    if default is None or default is False or callable(default) or default in ([], ()):
        shown = "**required**" if parameter.required else ""
    else:
        shown = f"`{default}`"
    return [f"`{name}`", shown, _help(getattr(parameter, "help", ""))]


def _commands(command: Any, path: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _commands(inner, f"{path} {name}")
        return
    rows = [_parameter(each) for each in command.params if each.name != "help" and not each.hidden]
    parts = [f"## {path}", _help(command.help)]
    if rows:
        parts.append(_table(("option or argument", "default", "meaning"), rows))
    yield "\n\n".join(parts)


def commands_text() -> str:
    """Every command of ``scoring``, as its help describes it."""
    app = typer.main.get_command(importlib.import_module("worker.cli").app)
    return "\n\n".join(_commands(app, "scoring"))


def written(page: Path) -> str:
    """The page with its generated parts as they must be now."""
    parts = {"settings": settings_tables, "commands": commands_text}
    text = page.read_text()
    for name, made in parts.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = place.sub(lambda found, made=made: f"{found[1]}\n{made()}\n{found[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for stale in (OPERATIONS, COMMANDS):
        stale.write_text(written(stale))
