"""The check itself: whatever a crash could do wrong is noticed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.crashes.accounts import Books
from tests.crashes.script import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Response 1 was scored by handoff 11 after a failed attempt, response 2 is dead in handoff 12.
SOUND = Books(
    responses={1: (1, None), 2: (3, None)},
    scores=Counter({11: 1}),
    scored=Counter({1: 1}),
    dead={12: (2, "hopeless")},
    left={},
    handed_off={11: (1, "d"), 12: (2, "d")},
    events=Counter({("attempt", 1): 1, ("attempt", 2): 1}),
    by_handoff=Counter({(1, "d"): 2, (2, "d"): 1}),
    claims={5: (3, True)},
    calls=[Call(100, 1, "d", "failure"), Call(100, 1, "d", "score"), Call(100, 2, "d", "hopeless")],
)
EXPECTED = {1: (1, None), 2: (0, "hopeless")}
FIRST, SECOND = 100, 200


def found(books: Books) -> Iterator[str]:
    yield from books.lost_or_scored_twice(EXPECTED)
    yield from books.unscripted({"attempt": {1, 2}}, all_of_it=True)
    yield from books.claims_not_applied({5: 3}, {"token"})
    yield from books.paid_without_need({FIRST})


def test_sound_books_are_sound() -> None:
    """What happened as scripted is not complained about."""
    assert list(found(SOUND)) == []
    assert SOUND.paid_twice == 0


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda it: replace(it, responses={1: (1, None)}), "acknowledged and not stored: responses [2]"),
        (lambda it: replace(it, responses=it.responses | {9: (1, None)}), "though nobody submitted it"),
        (lambda it: replace(it, scores=Counter({11: 2})), "handoff 11 of response 1 ended 2 times"),
        (lambda it: replace(it, scores=Counter({11: 1, 12: 1})), "handoff 12 of response 2 ended 2 times"),
        (
            lambda it: replace(it, scores=Counter()),
            "handoff 11 of response 1 ended 0 times: 0 scores, deleted",
        ),
        (lambda it: replace(it, dead={}, left={12: "open"}), "ended 0 times: 0 scores, open"),
        (lambda it: replace(it, scores=Counter({11: 1, 99: 1})), "handoffs that never were: [99]"),
        (lambda it: replace(it, scored=Counter({1: 2})), "response 1 has 2 scores"),
        (lambda it: replace(it, dead={12: (2, "lost its worker")}), "dead because of 'lost its worker'"),
        (
            lambda it: replace(it, events=it.events + Counter({("attempt", 1): 1})),
            "response 1: attempt, 2 times",
        ),
        (
            lambda it: replace(it, events=it.events + Counter({("postponement", 2): 1})),
            "postponement, 1 times",
        ),
        (lambda it: replace(it, events=Counter({("attempt", 2): 1})), "response 1: attempt, 0 times"),
        (lambda it: replace(it, calls=it.calls[1:]), "response 1: attempt without the scorer's word"),
        (lambda it: replace(it, claims={}), "claim 5 is None"),
        (lambda it: replace(it, claims={5: (3, False)}), "claim 5 is (3, False)"),
        (lambda it: replace(it, responses={1: (1, None), 2: (None, "token")}), "still lies under its token"),
        (
            lambda it: replace(it, calls=[*it.calls, Call(FIRST, 1, "d", "score")]),
            "response 1 was paid for 1 times in vain, after 0 lost leases",
        ),
        (
            lambda it: replace(
                it,
                calls=[*it.calls, Call(SECOND, 2, "e", "score"), Call(SECOND, 2, "e", "score")],
                events=it.events + Counter({("lost lease", 2): 2}),
            ),
            "response 2 was paid for 2 times in vain, after 0 lost leases",
        ),
    ],
)
def test_what_is_wrong_is_noticed(wrong: Callable[[Books], Books], complaint: str) -> None:
    """Each thing that may go wrong is complained about in words of its own."""
    assert complaint in "\n".join(found(wrong(SOUND)))


def test_a_lost_lease_excuses_one_call_of_the_first_worker() -> None:
    """It had the answer in hand when it died, or stalled: paid twice, which is promised to nobody."""
    books = replace(
        SOUND,
        calls=[*SOUND.calls, Call(FIRST, 1, "d", "score")],
        events=SOUND.events + Counter({("lost lease", 1): 1}),
    )
    assert list(found(books)) == []
    assert books.paid_twice == 1
