"""The class of the demo holds what a lesson brings, so that the demo shows what it claims to show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from demo.classroom import CLASSROOM, SIGN_INS, STUDENTS, Submission
from worker.question_files import read_question_files

QUESTIONS = Path(__file__).parents[2] / "demo" / "questions"
STORED = [submission for submission in CLASSROOM if not submission.is_refused]


def of(*, user_id: int | None = None, nickname: str | None = None) -> list[Submission]:
    return [
        submission
        for submission in STORED
        if (submission.user_id, submission.nickname) == (user_id, nickname)
    ]


def test_at_least_forty_answers_cover_every_question_of_both_modules() -> None:
    """Every question gets several answers, and every answer belongs to a question that is published."""
    published = {
        (question["module_slug"], question["question_id"]) for question in read_question_files(QUESTIONS)
    }
    answered = Counter((submission.module_slug, submission.question_id) for submission in STORED)

    assert len(STORED) >= 40
    assert len(published) >= 6
    assert len({module for module, _ in published}) == 2
    assert answered.keys() == published
    assert min(answered.values()) >= 5


def test_each_student_is_signed_in_or_anonymous() -> None:
    """Each has exactly one identity, no two share one, and both kinds are there in number."""
    identities = [(student.user_id, student.nickname) for student in STUDENTS]
    speakers = {submission.student for submission in CLASSROOM}

    assert all((user_id is None) != (nickname is None) for user_id, nickname in identities)
    assert len(set(identities)) == len(identities)
    assert len({student.name for student in STUDENTS}) == len(STUDENTS)
    assert speakers <= set(STUDENTS)
    assert 6 <= sum(student.user_id is not None for student in speakers) <= 8
    assert 3 <= sum(student.nickname is not None for student in speakers) <= 4


def test_every_kind_of_answer_occurs_once() -> None:
    """One off topic, one copied from the question, one that asks for full marks, and one blank, which is refused."""
    kinds = Counter(submission.kind for submission in CLASSROOM if submission.kind != "ordinary")
    texts = {
        (question["module_slug"], question["question_id"]): question["question_text"]
        for question in read_question_files(QUESTIONS)
    }
    (copied,) = (submission for submission in CLASSROOM if submission.kind == "copied from the question")

    assert kinds == {"off topic": 1, "copied from the question": 1, "asks for full marks": 1, "blank": 1}
    assert [submission.kind for submission in CLASSROOM if submission.is_refused] == ["blank"]
    assert copied.answer_text == texts[copied.module_slug, copied.question_id]


def test_some_students_try_again_with_another_answer() -> None:
    """Several attempts at one question by one student, none of them a repetition."""
    attempts = Counter((submission.student, submission.asked) for submission in STORED)

    assert sum(count > 1 for count in attempts.values()) >= 3
    assert len({submission.answer_text for submission in STORED}) == len(STORED)


def test_two_anonymous_students_sign_in() -> None:
    """Both nicknames hold answers to claim; both users exist."""
    nicknames = [sign_in.nickname for sign_in in SIGN_INS]
    users = {student.user_id for student in STUDENTS}

    assert len(set(nicknames)) == len(SIGN_INS) == 2
    assert all(of(nickname=nickname) for nickname in nicknames)
    assert {sign_in.user_id for sign_in in SIGN_INS} <= users


def test_one_claim_skips_a_question_that_the_user_has_answered() -> None:
    """Exactly one of the two has answered, before signing in, what the user had answered; the rest moves."""
    overlaps = []
    for sign_in in SIGN_INS:
        before = {submission.asked for submission in of(nickname=sign_in.nickname)}
        own = {submission.asked for submission in of(user_id=sign_in.user_id)}
        assert before - own
        overlaps.append(len(before & own))

    assert sorted(overlaps) == [0, 1]
