"""Makes pages of what was seen; templates hold the words, this module the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worker.heartbeat import REDIS_IS_AWAY
from worker.http import charts, wording
from worker.http.verdict import remarks
from worker.printable import visible
from worker.provider_report import summarize_providers

if TYPE_CHECKING:
    from worker.http.acting import Rights
    from worker.http.looks import Seen

_FOLDER = Path(__file__).parent
_STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def static_file(name: str) -> tuple[bytes, str] | None:
    """A file that pages refer to, with its media type; None where there is no such file."""
    media_type = _STATIC.get(name)
    return None if media_type is None else ((_FOLDER / "static" / name).read_bytes(), media_type)


def _used(worker: dict[str, Any]) -> int | None:
    """How many slots hold an answer; None where nobody knows.

    A worker says how much it would take. With its breaker open, or while it stops, that is little though it holds nothing.
    """
    if worker["note"] not in {None, REDIS_IS_AWAY}:
        return None
    return max(int(worker["slots"] - worker["free_slots"]), 0)


def _shown(value: object) -> object:
    """Reasons, names and hosts with what would turn the direction of writing made visible; what is a page's own stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


class Pages:
    """Renders the templates beside this module, with everything escaped that comes from elsewhere."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "count": wording.count,
            "bounded": wording.bounded,
            "duration": wording.duration,
            "money": wording.money,
            "decimal": wording.decimal,
            "moment": wording.moment,
            "clock": wording.clock,
            "answers": wording.answers,
            "used": _used,
        }
        self._live: tuple[tuple[object, ...], str] | None = None

    def render(self, template: str, **values: Any) -> str:
        """Render one template."""
        return self._environment.get_template(template).render(**values)

    def live(self, status: Seen, hour: Seen, dead: Seen, rights: Rights | None) -> str:
        """Render the sections that change; the same for all who watch, so rendered once for what was seen once.

        Args:
            status: What waits and who works.
            hour: What happened lately.
            dead: What could not be scored.
            rights: What the visitor may do; None for one who only looks.
        """
        # By identity: what is looked at anew is a new object.
        key = (status, hour, dead, rights)
        if self._live is not None and all(a is b for a, b in zip(self._live[0], key, strict=True)):
            return self._live[1]
        rendered = self.render(
            "sections.html",
            status=status,
            hour=hour,
            dead=dead,
            rights=rights,
            remarks=remarks(status, rights),
            providers=summarize_providers(status.value["workers"]) if status.value else [],
            charts=_charts(hour.value) if hour.value else [],
            spreads=[charts.spread(question) for question in hour.value["questions"]] if hour.value else [],
        )
        self._live = key, rendered
        return rendered


def _charts(hour: dict[str, Any]) -> list[charts.Chart]:
    return [
        charts.throughput(hour),
        charts.times(
            hour, "pickup_seconds", "Pickup", "From an answer's submission until a worker has taken it."
        ),
        charts.times(
            hour,
            "scoring_seconds",
            "Scoring",
            "From there until its score is stored, the model's time included.",
        ),
    ]
