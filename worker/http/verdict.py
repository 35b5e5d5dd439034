"""What a person should know first: everything is well, or what is not and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from worker.http import wording
from worker.provider_report import summarize_providers

if TYPE_CHECKING:
    from worker.http.acting import Rights
    from worker.http.looks import Seen

# The sweep comes every second or two and a lease lasts half a minute; what is due for longer has too few workers.
LATE_SECONDS = 60.0
# Questions that are named; the first is mostly the one that was forgotten.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that is not as it should be; ``bad`` needs a person, ``odd`` may pass by itself.

    ``section`` is where on the page there is more about it.
    """

    level: Literal["bad", "odd"]
    text: str
    section: str | None = None


def remarks(seen: Seen, rights: Rights | None = None) -> list[Remark]:
    """Say what is not well, the worst first; nothing where all is well. With PostgreSQL away, nothing but that is new."""
    found: list[Remark] = []
    if seen.problem is not None:
        since = f" What stands here is of {wording.moment(seen.at)} UTC." if seen.at else ""
        found.append(Remark("bad", f"{seen.problem}{since}"))
    elif rights is not None and rights.problem is not None:
        found.append(Remark("odd", rights.problem))
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
            Remark(
                "bad", f"{wording.answers(status['dead'])} could not be scored and {verb} a person.", "dead"
            )
        )
    for provider in summarize_providers(status["workers"]):
        if provider.open_workers:
            reason = f": {provider.reason}" if provider.reason else ""
            found.append(Remark("odd", f"{provider.name} is asked by probes only{reason}", "providers"))
    late = status["longest_due_seconds"]
    if late is not None and late > LATE_SECONDS:
        found.append(
            Remark(
                "odd", f"The oldest answer that is due has waited {wording.duration(late)} for a free slot."
            )
        )
    if status["unpublished"]:
        verb = "waits for a question that is" if status["unpublished"] == 1 else "wait for questions that are"
        names = [f"{each['module_slug']}/{each['question_id']}" for each in status["unpublished_questions"]]
        more = ", …" if len(names) > NAMED else ""
        found.append(
            Remark(
                "odd",
                f"{wording.answers(status['unpublished'])} {verb} not published: {', '.join(names[:NAMED])}{more}.",
            )
        )
    return [*found, *_notes(status["workers"])]


def _notes(workers: list[dict[str, Any]]) -> list[Remark]:
    """What workers say of themselves; the same said by many is one remark, or it would hide all others."""
    by_note: dict[str, list[str]] = {}
    for worker in workers:
        if worker["note"]:
            by_note.setdefault(worker["note"], []).append(f"{worker['host']}/{worker['pid']}")
    return [
        Remark(
            "odd",
            f"Worker {who[0]}: {note}."
            if len(who) == 1
            else f"{len(who)} of {len(workers)} workers: {note}.",
            "workers",
        )
        for note, who in by_note.items()
    ]
