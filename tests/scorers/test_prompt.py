from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.scorers import prompt
from worker.scorers.prompt import (
    DimensionVerdict,
    Verdict,
    build_prompt,
    by_dimension,
    fresh_nonce,
    problem_of,
)
from worker.scorers.protocol import Answer, Dimension, Question

QUESTION = Question(
    digest="d",
    module_slug="weather",
    question_id="q1",
    question_text="Where does the water of a puddle go?",
    rubric="Names evaporation and what drives it.",
    dimensions=(Dimension("Accuracy", "is it true"), Dimension("Clarity")),
    reference_answer="It evaporates: the sun's heat turns it into vapour.",
    learning_outcome_name="The water cycle",
)
BARE = Question(digest="d", module_slug="m", question_id="q", question_text="Why?", rubric="Says why.")

_BOUNDARY = re.compile(r"^===== ([0-9a-f]{16}) ANSWER (?:BEGINS|ENDS) =====$", re.MULTILINE)


def verdict(score: float = 3.0, **scores: float) -> Verdict:
    dimensions = [DimensionVerdict(name=name, score=score) for name, score in scores.items()]
    return Verdict(reasoning="Because.", overall_score=score, dimensions=dimensions)


def test_the_system_text_is_the_same_for_every_answer() -> None:
    """What can be cached is byte for byte the same for every answer to a question, and holds no nonce."""
    first = build_prompt(QUESTION, Answer(1, "zebra"))
    second = build_prompt(QUESTION, Answer(2, "two"))

    assert first.system == second.system
    assert first.user != second.user
    assert "zebra" not in first.system


def test_everything_about_the_question_is_in_the_system_text() -> None:
    """Question, rubric, scale, dimensions, reference answer and learning outcome are given when they exist."""
    text = build_prompt(QUESTION, Answer(1, "a")).system

    for part in (
        QUESTION.question_text,
        QUESTION.rubric,
        "from 1 (lowest) to 5 (highest)",
        '- "Accuracy": is it true',
        '- "Clarity"',
        QUESTION.reference_answer,
        QUESTION.learning_outcome_name,
    ):
        assert part is not None
        assert part in text


def test_what_a_question_lacks_is_not_announced() -> None:
    """A question without reference answer, outcome or dimensions has no empty headings for them."""
    text = build_prompt(BARE, Answer(1, "a")).system

    assert "# Reference answer" not in text
    assert "# Learning outcome" not in text
    assert "has none" in text


def test_metadata_is_not_sent() -> None:
    """What the web app knows about a student does not reach the model."""
    built = build_prompt(QUESTION, Answer(1, "a", metadata={"email": "CANARY@example.org"}))

    assert "CANARY" not in built.system + built.user


@given(text=st.text() | st.from_regex(r"(===== [0-9a-f]{16} ANSWER (BEGINS|ENDS) =====\n?.*){1,3}"))
def test_an_answer_cannot_forge_a_boundary(text: str) -> None:
    """Whatever an answer holds, it stands whole between the only two lines that carry the nonce."""
    user = build_prompt(QUESTION, Answer(1, text)).user
    nonce = re.search(r"with the code ([0-9a-f]{16})\.", user)
    assert nonce is not None
    code = nonce[1]

    assert code not in text
    assert [found[1] for found in _BOUNDARY.finditer(user)].count(code) == 2
    inside = user.partition(f"===== {code} ANSWER BEGINS =====\n")[2].partition(
        f"\n===== {code} ANSWER ENDS ====="
    )[0]
    assert inside == text


def test_a_nonce_that_occurs_in_the_text_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code that the answer happens to hold is thrown away for another one."""
    codes = iter(["aaaa", "bbbb"])
    monkeypatch.setattr("worker.scorers.prompt.secrets.token_hex", lambda _: next(codes))

    assert fresh_nonce("the answer holds aaaa") == "bbbb"


def test_a_given_nonce_that_occurs_in_the_answer_is_refused() -> None:
    """Nobody builds a prompt whose boundary the answer already holds."""
    with pytest.raises(ValueError, match="occurs in the answer"):
        build_prompt(QUESTION, Answer(1, "x aaaa y"), nonce="aaaa")


def test_two_prompts_for_one_answer_have_different_codes() -> None:
    """A code seen once, as in a leaked log, says nothing about the next."""
    assert build_prompt(QUESTION, Answer(1, "a")).user != build_prompt(QUESTION, Answer(1, "a")).user


def test_the_repr_carries_no_text() -> None:
    """A traceback that shows local variables shows no answer."""
    assert "CANARY" not in repr(build_prompt(QUESTION, Answer(1, "CANARY")))


@pytest.mark.parametrize("name", ["_INSTRUCTIONS", "_ANSWER"])
def test_the_version_follows_the_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody can change what the model is told and forget to change the version."""
    before = prompt._digest()
    monkeypatch.setattr(prompt, name, getattr(prompt, name) + " Be kind.")

    assert prompt._digest() != before


def test_the_version_follows_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed rendering counts as a changed prompt, though no template changed."""
    before = prompt._digest()
    monkeypatch.setattr(prompt, "_dimension_line", lambda dimension: f"* {dimension.name}")

    assert prompt._digest() != before


def test_the_version_does_not_depend_on_chance() -> None:
    """Every process of one release states the same version, whatever its nonces."""
    assert f"v1-{prompt._digest()}" == prompt.PROMPT_VERSION


@pytest.mark.parametrize("score", [0.9, 5.1, -1.0])
def test_a_score_off_the_scale_is_a_problem(score: float) -> None:
    """A score outside the question's scale is never accepted."""
    assert problem_of(verdict(score), BARE) == "overall_score is off the scale from 1 to 5"


@pytest.mark.parametrize("score", [1.0, 5.0])
def test_both_ends_belong_to_the_scale(score: float) -> None:
    """The lowest and the highest score are scores."""
    assert problem_of(verdict(score), BARE) is None


@pytest.mark.parametrize(
    "dimensions",
    [{}, {"Accuracy": 3.0}, {"Accuracy": 3.0, "Style": 3.0}, {"Accuracy": 3.0, "Clarity": 3.0, "Style": 3.0}],
)
def test_dimensions_must_be_exactly_the_questions(dimensions: dict[str, float]) -> None:
    """A missing, foreign or additional dimension makes a verdict unusable."""
    problem = problem_of(verdict(**dimensions), QUESTION)

    assert problem is not None
    assert "dimensions must be exactly these" in problem
    assert "Style" not in problem


def test_a_dimension_scored_twice_is_a_problem() -> None:
    """Two scores for one dimension leave open which one counts."""
    twice = verdict(Accuracy=3.0, Clarity=3.0)
    twice.dimensions.append(DimensionVerdict(name="clarity", score=4.0))

    assert problem_of(twice, QUESTION) is not None


def test_a_dimension_off_the_scale_is_a_problem() -> None:
    """A dimension's score obeys the scale like the overall one, and NaN lies on no scale."""
    assert problem_of(verdict(Accuracy=3.0, Clarity=9.0), QUESTION) is not None
    assert problem_of(verdict(Accuracy=3.0, Clarity=float("nan")), QUESTION) is not None


def test_dimensions_come_back_in_the_questions_order_and_names() -> None:
    """A model's own order and capitals do not reach what is stored."""
    found = by_dimension(verdict(CLARITY=4.0, accuracy=2.0), QUESTION)

    assert [(name, dimension.score) for name, dimension in found.items()] == [
        ("Accuracy", 2.0),
        ("Clarity", 4.0),
    ]


@pytest.mark.parametrize("score", ["nan", "inf", "-Infinity"])
def test_a_score_is_finite(score: str) -> None:
    """NaN and infinity are no scores."""
    with pytest.raises(ValidationError):
        Verdict.model_validate({"reasoning": "r", "overall_score": score})


@pytest.mark.parametrize("reasoning", ["", "  \n", "\0", "x" * 2001])
def test_reasoning_is_there_and_bounded(reasoning: str) -> None:
    """A score without a reason, or with a flood of it, is not accepted."""
    with pytest.raises(ValidationError):
        Verdict(reasoning=reasoning, overall_score=3)


def test_nul_characters_are_dropped() -> None:
    """A NUL in a reply, which PostgreSQL cannot store, does not cost the score."""
    assert Verdict(reasoning="a\0b", overall_score=3).reasoning == "ab"
