"""What a person should know first: everything is well, or what is not and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from worker.http import wording
from worker.provider_report import summarize_providers

if TYPE_CHECKING:
    from worker.http.looks import Seen

# The sweep comes every second or two and a lease lasts half a minute; what is due for longer has too few workers.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that is not as it should be; ``bad`` needs a person, ``odd`` may pass by itself."""

    level: Literal["bad", "odd"]
    text: str


def remarks(seen: Seen) -> list[Remark]:
    """Say what is not well, the worst first; nothing where all is well."""
    found: list[Remark] = []
    if seen.problem is not None:
        since = f" What stands here is of {wording.moment(seen.at)} UTC." if seen.at else ""
        found.append(Remark("bad", f"{seen.problem}{since}"))
    status = seen.value
    if status is None:
        return found
    return [*found, *sorted(_of(status), key=lambda remark: remark.level)]


def _of(status: dict[str, Any]) -> list[Remark]:
    found = []
    if not status["workers"]:
        found.append(Remark("bad", "No worker has reported within the last 15 s."))
    if status["dead"]:
        verb = "needs" if status["dead"] == 1 else "need"
        found.append(
            Remark("bad", f"{wording.answers(status['dead'])} could not be scored and {verb} a person.")
        )
    for provider in summarize_providers(status["workers"]):
        if provider.open_workers:
            reason = f": {provider.reason}" if provider.reason else ""
            found.append(Remark("odd", f"{provider.name} is asked by probes only{reason}"))
    late = status["longest_due_seconds"]
    if late is not None and late > LATE_SECONDS:
        found.append(
            Remark(
                "odd", f"The oldest answer that is due has waited {wording.duration(late)} for a free slot."
            )
        )
    if status["unpublished"]:
        verb = "waits for a question that is" if status["unpublished"] == 1 else "wait for questions that are"
        found.append(Remark("odd", f"{wording.answers(status['unpublished'])} {verb} not published."))
    found.extend(
        Remark("odd", f"Worker {worker['host']}/{worker['pid']}: {worker['note']}.")
        for worker in status["workers"]
        if worker["note"]
    )
    return found
