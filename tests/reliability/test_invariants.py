"""The invariants of the state machines tell what is broken, and cry no wolf."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from tests.reliability.invariants import Ledger
from tests.reliability.picture import Picture, Response, Score

QUESTION = ("biology", "light")


def answer(response_id: int, *, user_id: int | None = None) -> Response:
    token = None if user_id else f"token {response_id}"
    return Response(response_id, user_id, token, QUESTION, UUID(int=response_id), "d", "Sugar.")


def picture(*answers: Response) -> Picture:
    """Scored answers, and nothing else."""
    return Picture(
        datetime.now(UTC),
        {row.response_id: row for row in answers},
        {},
        tuple(Score(row.response_id, row.response_id, "d", "m") for row in answers),
        {},
        {QUESTION: "d"},
    )


def claimed(row: Response) -> Response:
    return replace(row, user_id=3, token=None)


def test_a_second_first_answer_is_told() -> None:
    """One claim brought an answer to a question, and another brings one more."""
    ledger = Ledger()
    one, other = answer(1), answer(2)

    assert ledger.broken(picture(one, other), picture(claimed(one), other)) == []
    said = ledger.broken(picture(claimed(one), other), picture(claimed(one), claimed(other)))

    assert said == ["user 3 got two first answers to ('biology', 'light') by claims"]


def test_what_was_erased_in_the_same_transaction_does_not_count() -> None:
    """The first answer is erased and another one claimed, and both are seen at once."""
    ledger = Ledger()
    one, other = answer(1), answer(2)

    assert ledger.broken(picture(one, other), picture(claimed(one), other)) == []
    assert ledger.broken(picture(claimed(one), other), picture(claimed(other))) == []
