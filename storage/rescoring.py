"""Score answers again, chosen by their current score: what that would cost, and the steps of the run that does it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import text

from storage.dead import rescore_responses
from storage.errors import InvalidInputError
from storage.limits import MAX_KEY_CHARS
from storage.rows import as_dicts
from storage.runs import BATCH, Step, filters_of, window_end
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

# The current score of each response of a window, where the choice fits it. LATERAL with LIMIT: one step in the index for
# each response, however many scores there are.
_CHOSEN = """
    SELECT r.response_id, score.model_id, score.prompt_version, score.usage, EXISTS (
        SELECT 1 FROM scoring_handoffs AS h WHERE h.response_id = r.response_id AND h.state = 'open'
    ) AS outstanding
    FROM assessment_responses AS r CROSS JOIN LATERAL (
        SELECT s.score_id, s.model_id, s.prompt_version, s.question_digest, s.created_at,
            CASE WHEN jsonb_typeof(s.score_data -> 'usage') = 'object' THEN s.score_data -> 'usage' END AS usage,
            CASE WHEN jsonb_typeof(s.score_data -> 'overall_score') = 'number'
                THEN CAST(s.score_data ->> 'overall_score' AS double precision) END AS overall_score
        FROM assessment_scores AS s WHERE s.response_id = r.response_id
        ORDER BY s.score_id DESC LIMIT 1
    ) AS score
    WHERE r.response_id > :after AND r.response_id <= :last AND score.score_id <= :until_score_id
        AND (CAST(:module_slug AS text) IS NULL OR r.module_slug = :module_slug)
        AND (CAST(:question_id AS text) IS NULL OR r.question_id = :question_id)
        AND (CAST(:answered_from AS timestamptz) IS NULL OR r.created_at >= :answered_from)
        AND (CAST(:answered_before AS timestamptz) IS NULL OR r.created_at < :answered_before)
        AND (CAST(:scored_from AS timestamptz) IS NULL OR score.created_at >= :scored_from)
        AND (CAST(:scored_before AS timestamptz) IS NULL OR score.created_at < :scored_before)
        AND (CAST(:min_score AS double precision) IS NULL OR score.overall_score >= :min_score)
        AND (CAST(:max_score AS double precision) IS NULL OR score.overall_score <= :max_score)
        AND (CAST(:model_id AS text) IS NULL OR score.model_id = :model_id)
        AND (CAST(:not_model_id AS text) IS NULL OR score.model_id <> :not_model_id)
        AND (CAST(:prompt_version AS text) IS NULL OR score.prompt_version = :prompt_version)
        AND (CAST(:not_prompt_version AS text) IS NULL OR score.prompt_version <> :not_prompt_version)
        AND (NOT :outdated OR score.question_digest <> (
            SELECT q.question_digest FROM assessment_questions AS q
            WHERE q.module_slug = r.module_slug AND q.question_id = r.question_id
            ORDER BY q.publication DESC LIMIT 1
        ))
"""

# The next that shall be scored again.
_NEXT = text(f"SELECT response_id FROM ({_CHOSEN}) AS chosen ORDER BY response_id LIMIT :limit")


def _number(name: str) -> str:
    return f"""CASE WHEN jsonb_typeof(usage -> '{name}') = 'number'
        THEN CAST(usage ->> '{name}' AS double precision) END"""


# What a window's scores have cost, by who gave them. Where nothing is said of the cost, it is not known.
_SURVEY = text(f"""
    SELECT model_id, prompt_version, count(*) AS answers, count(*) FILTER (WHERE outstanding) AS outstanding,
        count(tokens) AS with_tokens, coalesce(sum(tokens), 0) AS tokens,
        count(cost_usd) AS with_cost, coalesce(sum(cost_usd), 0) AS cost_usd
    FROM (
        SELECT model_id, prompt_version, outstanding,
            nullif({_number("input_tokens")} + {_number("output_tokens")}, 0) AS tokens, {_number("cost_usd")} AS cost_usd
        FROM ({_CHOSEN}) AS chosen
    ) AS told
    GROUP BY model_id, prompt_version
""")

# What stands in a run's filters beside its choice.
_BOUNDS = ("until_score_id", "after_handoff_id")
_TEXTS = ("module_slug", "question_id", "model_id", "not_model_id", "prompt_version", "not_prompt_version")
_MOMENTS = ("answered_from", "answered_before", "scored_from", "scored_before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which responses are scored again: those whose current score fits everything that is given.

    Scores and moments are bounds: ``from``, ``min`` and ``max`` belong to what is chosen, ``before`` does not.
    ``outdated``: scored against content of the question that is not the current one.
    """

    module_slug: str | None = None
    question_id: str | None = None
    answered_from: datetime | None = None
    answered_before: datetime | None = None
    scored_from: datetime | None = None
    scored_before: datetime | None = None
    min_score: float | None = None
    max_score: float | None = None
    model_id: str | None = None
    not_model_id: str | None = None
    prompt_version: str | None = None
    not_prompt_version: str | None = None
    outdated: bool = False

    @property
    def chooses(self) -> bool:
        """Whether anything is given."""
        return self != Choice()

    def as_json(self) -> dict[str, Any]:
        """What is given, for a run's ``filters``."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
            if value is not None and value is not False
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read it back; the run's own bounds, which stand beside it, are passed over."""
        given = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        for name in given.keys() & set(_MOMENTS):
            given[name] = datetime.fromisoformat(given[name])
        return cls(**given)


async def survey_rescore(
    conn: AsyncConnection, choice: Choice, *, after: int, until: int, until_score_id: int
) -> tuple[int, list[dict[str, Any]]]:
    """Look at the next part of what a rescore would ask for, and at what it has cost.

    Args:
        conn: The caller's connection.
        choice: Which responses.
        after: The id after which to begin.
        until: The id at which to end.
        until_score_id: Scores that came later do not count as current, nor does what stands behind them.

    Returns:
        The id up to which it looked, and for each model and prompt version: ``answers``, how many of them are
        ``outstanding`` (asked for already), ``with_tokens`` and ``tokens``, ``with_cost`` and ``cost_usd``.
    """
    last = await window_end(conn, after=after, until=until)
    given = {"after": after, "last": last, "until_score_id": until_score_id, **asdict(choice)}
    with translated():
        return last, list(as_dicts(await conn.execute(_SURVEY, given)))


async def rescore_step(conn: AsyncConnection, run: Mapping[str, Any]) -> Step:
    """Ask for new scores of the next answers of a run, in the bulk lane.

    What does not fit the run's choice any more is passed over: it was scored, claimed or erased meanwhile.

    Args:
        conn: The caller's connection; nothing is committed here.
        run: The run's row, locked.
    """
    after, filters = run["last_response_id"], filters_of(run, {*Choice.__dataclass_fields__, *_BOUNDS})
    last = await window_end(conn, after=after, until=run["until_response_id"])
    given = {
        "after": after,
        "last": last,
        "until_score_id": filters["until_score_id"],
        "limit": BATCH,
        **asdict(Choice.from_json(filters)),
    }
    with translated():
        ids = list((await conn.execute(_NEXT, given)).scalars())
    changed = await rescore_responses(conn, response_ids=ids) if ids else []
    return Step(last_response_id=ids[-1] if len(ids) == BATCH else last, changed=len(changed))


def checked_choice(choice: Choice) -> Choice:
    """Check that the bounds leave something between them.

    Raises:
        InvalidInputError: A lower bound lies above its upper one, a score is no finite number, a moment has no time
            zone, or a text is blank or too long.
    """
    for name in _TEXTS:
        # An empty variable of a shell: that every model is another one than none would choose all.
        if (given := getattr(choice, name)) is not None:
            storable(name, given, max_chars=MAX_KEY_CHARS)
    for name in ("min_score", "max_score"):
        bound = getattr(choice, name)
        # To PostgreSQL, NaN lies above every score: as an upper bound it would choose all.
        if bound is not None and not isfinite(bound):
            raise InvalidInputError(name, "expected a finite number")
    for name in _MOMENTS:
        moment = getattr(choice, name)
        if moment is not None and moment.tzinfo is None:
            raise InvalidInputError(name, "expected a time with its zone")
    for lower, upper in (
        ("answered_from", "answered_before"),
        ("scored_from", "scored_before"),
        ("min_score", "max_score"),
    ):
        bounds = getattr(choice, lower), getattr(choice, upper)
        if None not in bounds and bounds[0] > bounds[1]:
            raise InvalidInputError(lower, f"lies above {upper}")
    return choice
