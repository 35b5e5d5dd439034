"""What stands at the top of the console."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from storage.statistics import COUNT_LIMIT
from worker.http.acting import Rights
from worker.http.looks import Seen
from worker.http.verdict import NAMED, remarks

NOW = datetime(2030, 1, 1, tzinfo=UTC)
REFUSED = Rights(may_act=False, problem="Nobody can act here.", actions=[])


def worker(pid: int, note: str | None) -> dict[str, Any]:
    return {"host": "pod", "pid": pid, "note": note, "provider": None}


def seen(*workers: dict[str, Any], problem: str | None = None, **changes: Any) -> Seen:
    """What a look finds where all is well, but for the changes."""
    status: dict[str, Any] = {
        "workers": workers or (worker(1, None),),
        "dead": 0,
        "unpublished": 0,
        "unpublished_questions": [],
        "longest_due_seconds": None,
    }
    return Seen(status | changes, NOW, problem)


def test_nothing_is_said_where_all_is_well() -> None:
    """Neither with rights nor without."""
    assert remarks(seen()) == []
    assert remarks(seen(), Rights(may_act=True, problem=None, actions=[])) == []


def test_a_count_that_ended_at_its_limit_says_so() -> None:
    """As the tile below it does; the number one above the limit is no count."""
    [remark] = remarks(seen(dead=COUNT_LIMIT + 1))

    assert remark.text == "More than 10,000 answers could not be scored and need a person."
    assert remark.section == "dead"


def test_what_many_workers_say_is_said_once() -> None:
    """Fifty workers without Redis would hide everything else."""
    many = [worker(number, "Redis is away") for number in range(50)]

    texts = [remark.text for remark in remarks(seen(*many, worker(99, "stops")))]

    assert texts == ["50 of 51 workers: Redis is away.", "Worker pod/99: stops."]


def test_questions_that_are_missing_are_named() -> None:
    """The first few, for who has to publish them."""
    questions = [{"module_slug": "cells", "question_id": f"q{number}", "answers": 1} for number in range(5)]

    [remark] = remarks(seen(unpublished=5, unpublished_questions=questions))

    assert remark.text.endswith("not published: cells/q0, cells/q1, cells/q2, ….")
    [remark] = remarks(seen(unpublished=1, unpublished_questions=questions[:NAMED]))
    assert remark.text.endswith("not published: cells/q0, cells/q1, cells/q2.")


def test_what_a_login_may_not_is_said_while_postgresql_is_there() -> None:
    """While it is away, that alone is the trouble, and rights are as unknown as all else."""
    assert [remark.text for remark in remarks(seen(), REFUSED)] == ["Nobody can act here."]
    [remark] = remarks(seen(problem="PostgreSQL cannot be reached."), REFUSED)
    assert remark.text.startswith("PostgreSQL cannot be reached. What stands here is of 2030-01-01")
