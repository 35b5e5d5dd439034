"""Scores answers by the words they share with the reference answer or the rubric: no network, no model, no cost.

For trying the pipeline, for load tests, and as a stopgap. It knows nothing of meaning: a contradiction or a
negation of the reference answer scores as well as the reference answer does.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import snowballstemmer  # type: ignore[import-untyped]
from rapidfuzz import process
from rapidfuzz.distance import Indel

from worker.scorers.protocol import Answer, DimensionScore, Question, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

# Change it with anything that lets the same answer score differently.
MODEL_ID: Final = "lexical-1"

# Round values. The first and the last were tried on 4,969 human-scored answers; anything near does as well.
_QUESTION_WEIGHT: Final = 0.25  # what an expected word counts that the question already gave away
_RUBRIC_WEIGHT: Final = 0.25  # a bonus: a rubric's words describe a good answer, and need not stand in one
_SPELLING_SIMILARITY: Final = 0.75  # from here on a word is taken for a misspelt other one

_MIN_FUZZY_CHARS: Final = 4  # shorter words resemble too many others
_MAX_ANSWER_CHARS: Final = 20_000
_MAX_ANSWER_WORDS: Final = (
    400  # distinct ones; with these bounds the longest answer holds the loop for some ms
)
_MAX_EXPECTED_WORDS: Final = 80
_MAX_WORD_CHARS: Final = 40
_PREFIX_CHARS: Final = 3
_MAX_LISTED: Final = 8
_KEPT_QUESTIONS: Final = 256

_WORD: Final = re.compile(r"[^\W_]+")
_STOP_TEXT: Final = """
    a about also an and are as at be because been but by can could did do does for from had has have
    he her him his how i if in into is it its just me more most my no not of on one or our out she
    so some than that the their them then there these they this those to too very was we were what
    when where which while who why will with would you your
"""
# The words of marking. An answer that asks for marks must find nothing in a rubric to match.
_MARKING_TEXT: Final = """
    accurate answer answers assign award awarded best complete correct correctly credit deserve
    excellent full fully give given gives good grade grades grader highest mark marking marks
    maximum partial perfect please point points rate rating response right rubric score scored
    scores scoring student students teacher top wrong
"""
_IGNORED: Final = frozenset(f"{_STOP_TEXT} {_MARKING_TEXT}".split())


@dataclass(frozen=True, slots=True)
class _Expected:
    """The words that one text asks for, by stem, in the order of the text; and which of them the question gave away."""

    source: str
    words: Mapping[str, str]
    given: frozenset[str]

    @property
    def own(self) -> list[str]:
        """The stems that are not in the question."""
        return [stem for stem in self.words if stem not in self.given]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A question, ready to compare answers with."""

    asked: AbstractSet[str]
    expected: tuple[_Expected, ...]
    dimensions: tuple[_Expected, ...]
    prefixes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Comparison:
    """How much of what was expected an answer has."""

    expected: _Expected
    coverage: float
    found: AbstractSet[str]


class LexicalScorer:
    """Scores an answer by the share of expected words that it has.

    Words are compared by their English stems; common words and the words of marking count nowhere, and a slightly
    misspelt word counts as the right one. With ``E`` the expected words that are not in the question, ``G`` those
    that are, ``A`` the answer's words and ``own`` those of them that are not in the question::

        coverage = (|E found| + 0.25 * trust * |G found|) / (|E| + 0.25 * |G|)
        trust    = min(1, (|own| / |A|) / (|E| / |E and G|)), or |own| / |A| where E is empty
        total    = min(1, coverage of the reference answer + 0.25 * coverage of the rubric)
        score    = scale_min + total * (scale_max - scale_min), rounded to 0.5

    So words from the question count little, and only as far as the answer brings words of its own: a copy of the
    question gets the lowest score. Without a reference answer the total is the coverage of the rubric. A dimension
    is compared with its name and description, and scored like the whole where these say nothing.
    """

    def __init__(self) -> None:
        self._stemmer = snowballstemmer.stemmer("english")
        self._prepared = lru_cache(_KEPT_QUESTIONS)(self._prepare)

    async def score(self, question: Question, answer: Answer) -> Score:
        """Score one answer at once; raises nothing."""
        started = time.monotonic()
        prepared = self._prepared(question)
        words = self._words(answer.text[:_MAX_ANSWER_CHARS], _MAX_ANSWER_WORDS, prepared.prefixes)
        found = [_compare(words.keys(), prepared.asked, expected) for expected in prepared.expected]
        whole = min(1.0, found[0].coverage + _RUBRIC_WEIGHT * sum(other.coverage for other in found[1:]))
        dimensions = [_compare(words.keys(), prepared.asked, expected) for expected in prepared.dimensions]
        return Score(
            overall_score=_on_scale(whole, question),
            reasoning=_reasoning(found, whole),
            dimensions=tuple(
                DimensionScore(
                    name=dimension.name,
                    score=_on_scale(comparison.coverage if comparison.expected.words else whole, question),
                    note=f"{_counted(comparison)}."
                    if comparison.expected.words
                    else "Scored like the whole.",
                )
                for dimension, comparison in zip(question.dimensions, dimensions, strict=True)
            ),
            key_observations=_observations(found[0]),
            model_id=MODEL_ID,
            prompt_version=MODEL_ID,
            usage=Usage(cost_usd=0.0, seconds=time.monotonic() - started),
        )

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _prepare(self, question: Question) -> _Prepared:
        asked = self._words(question.question_text).keys()
        reference = self._expected("the reference answer", question.reference_answer or "", asked)
        rubric = self._expected("the rubric", question.rubric, asked)
        expected = (reference, rubric) if reference.words else (rubric,)
        dimensions = tuple(
            self._expected("the dimension's description", f"{dimension.name} {dimension.description}", asked)
            for dimension in question.dimensions
        )
        stems = asked | {stem for each in (*expected, *dimensions) for stem in each.words}
        return _Prepared(asked, expected, dimensions, frozenset(stem[:_PREFIX_CHARS] for stem in stems))

    def _expected(self, source: str, text: str, asked: AbstractSet[str]) -> _Expected:
        words = self._words(text, _MAX_EXPECTED_WORDS)
        return _Expected(source, words, frozenset(words.keys() & asked))

    def _words(
        self, text: str, limit: int | None = None, prefixes: AbstractSet[str] | None = None
    ) -> dict[str, str]:
        """The words of a text that count, each once: its stem, and how it stands there.

        Stemming is most of the work, so that words of an answer whose beginning nothing expects are left as they are.
        """
        plain = dict.fromkeys(word[:_MAX_WORD_CHARS] for word in _WORD.findall(text.lower()))
        counted = [word for word in plain if word not in _IGNORED][:limit]
        stems: dict[str, str] = {}
        for word in counted:
            relevant = prefixes is None or word[:_PREFIX_CHARS] in prefixes
            stems.setdefault(self._stemmer.stemWord(word) if relevant else word, word)
        return stems


def _compare(words: AbstractSet[str], asked: AbstractSet[str], expected: _Expected) -> _Comparison:
    own_words = words - asked
    if not own_words or not expected.words:
        return _Comparison(expected, 0.0, frozenset())
    own_expected = expected.own
    found = {stem for stem in own_expected if stem in own_words or _misspelt(stem, own_words)}
    given_found = expected.given & words
    # 1 for an answer whose share of words of its own is the expected text's; for one with less, as much less.
    usual_share = len(own_expected) / len(expected.words) or 1.0
    trust = min(1.0, len(own_words) / len(words) / usual_share)
    reached = len(found) + _QUESTION_WEIGHT * trust * len(given_found)
    coverage = reached / (len(own_expected) + _QUESTION_WEIGHT * len(expected.given))
    return _Comparison(expected, coverage, found | given_found)


def _misspelt(stem: str, words: AbstractSet[str]) -> bool:
    """Whether one of the words resembles the stem; it begins alike, or "vapour" would be a misspelt "evaporate"."""
    if len(stem) < _MIN_FUZZY_CHARS:
        return False
    alike = [word for word in words if word[0] == stem[0]]
    scorer = Indel.normalized_similarity
    return process.extractOne(stem, alike, scorer=scorer, score_cutoff=_SPELLING_SIMILARITY) is not None


def _on_scale(coverage: float, question: Question) -> float:
    """The score of a coverage, rounded to halves from the lower end of the scale, the middle upwards."""
    span = question.scale_max - question.scale_min
    return min(question.scale_min + math.floor(coverage * span * 2 + 0.5) / 2, question.scale_max)


def _counted(comparison: _Comparison) -> str:
    return (
        f"{len(comparison.found)} of {len(comparison.expected.words)} words of {comparison.expected.source}"
    )


def _reasoning(comparisons: list[_Comparison], whole: float) -> str:
    return (
        f"{whole:.0%} covered: {' and '.join(_counted(comparison) for comparison in comparisons)}. "
        "This is a lexical comparison of words, not a judgement of what the answer means."
    )


def _observations(comparison: _Comparison) -> tuple[str, ...]:
    words = comparison.expected.words
    found = [word for stem, word in words.items() if stem in comparison.found]
    missing = [words[stem] for stem in comparison.expected.own if stem not in comparison.found]
    listed = (("Found", found), ("Missing", missing))
    return tuple(f"{label}: {', '.join(some[:_MAX_LISTED])}." for label, some in listed if some)
