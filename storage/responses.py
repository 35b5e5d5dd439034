"""Read back what students answered, with its score, one owner at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, lateral, select, true

from storage.errors import InvalidInputError
from storage.rows import as_dicts
from storage.tables import handoffs, questions, responses, scores
from storage.translation import translated
from storage.validation import Owner, checked_owner

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

DEFAULT_PAGE = 50
MAX_PAGE = 1000

# The newest score of a response; the index on (response_id, score_id DESC) gives it in one step.
_CURRENT_SCORE = lateral(
    select(
        scores.c.score_id,
        scores.c.score_data,
        scores.c.model_id,
        scores.c.prompt_version,
        scores.c.question_digest,
        scores.c.picked_up_at,
        scores.c.created_at,
        questions.c.scale_min,
        questions.c.scale_max,
    )
    .select_from(scores.join(questions, questions.c.question_digest == scores.c.question_digest))
    .where(scores.c.response_id == responses.c.response_id)
    .order_by(scores.c.score_id.desc())
    .limit(1)
).alias("current_score")

# The same columns of every score.
_EVERY_SCORE: dict[str, ColumnElement[Any]] = {
    **{column.name: column for column in scores.c},
    "scale_min": questions.c.scale_min,
    "scale_max": questions.c.scale_max,
}

# What a student may be told. A handoff that ended badly shows as failed, whoever ended it and why.
_SCORING_STATE: ColumnElement[str] = case(
    (handoffs.c.handoff_id.is_(None), "scored"),
    (handoffs.c.state != "open", "failed"),
    (handoffs.c.question_digest.is_(None), "unpublished"),
    (handoffs.c.lease_token.is_not(None) & (handoffs.c.due_at > func.now()), "scoring"),
    else_="waiting",
)


def _owned_by(owner: Owner) -> ColumnElement[bool]:
    if owner.user_id is not None:
        return responses.c.user_id == owner.user_id
    return responses.c.anonymous_token == owner.anonymous_token


def _page(owner: Owner, *, before_response_id: int | None, limit: int) -> Select[Any]:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInputError("limit", f"expected a number from 1 to {MAX_PAGE}")
    query = (
        select(
            responses,
            _SCORING_STATE.label("scoring_state"),
            *(column.label(f"current_{column.name}") for column in _CURRENT_SCORE.c),
        )
        .select_from(
            responses.outerjoin(handoffs, handoffs.c.response_id == responses.c.response_id).outerjoin(
                _CURRENT_SCORE, true()
            )
        )
        .where(_owned_by(owner))
        .order_by(responses.c.response_id.desc())
        .limit(limit)
    )
    if before_response_id is not None:
        query = query.where(responses.c.response_id < before_response_id)
    return query


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """Move the score's columns into a mapping of their own, or None where there is no score yet."""
    score = {
        name.removeprefix("current_"): row.pop(name) for name in list(row) if name.startswith("current_")
    }
    row["score"] = score if score["score_id"] is not None else None
    return row


async def get_responses(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    module_slug: str | None = None,
    question_id: str | None = None,
    before_response_id: int | None = None,
    limit: int = DEFAULT_PAGE,
) -> list[dict[str, Any]]:
    """Read one owner's responses, newest first, each with its current score.

    Args:
        conn: The caller's connection.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.
        module_slug: Only those of this module.
        question_id: Only those to this question.
        before_response_id: For the next page, the last ``response_id`` of the page before.
        limit: Rows on a page, 1 to 1000.

    Returns:
        The stored rows, each with ``scoring_state`` (waiting, unpublished, scoring, scored or failed) and
        ``score``: None, or a mapping with ``score_id``, ``score_data``, ``model_id``, ``prompt_version``,
        ``question_digest``, ``picked_up_at``, ``created_at``, and the question's ``scale_min`` and ``scale_max``. A
        response that is scored again keeps its score meanwhile.

    Raises:
        InvalidInputError: Both or neither identity, or a limit out of range.
    """
    query = _page(checked_owner(user_id, anonymous_token), before_response_id=before_response_id, limit=limit)
    if module_slug is not None:
        query = query.where(responses.c.module_slug == module_slug)
    if question_id is not None:
        query = query.where(responses.c.question_id == question_id)
    with translated():
        return [_nested(row) for row in as_dicts(await conn.execute(query))]


async def get_responses_for_question(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    question_id: str,
    module_slug: str | None = None,
    before_response_id: int | None = None,
    limit: int = DEFAULT_PAGE,
) -> list[dict[str, Any]]:
    """Read one owner's attempts at one question, newest first, each with its current score.

    Args:
        conn: The caller's connection.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.
        question_id: The question.
        module_slug: Its module, where the same id is used in several.
        before_response_id: For the next page, the last ``response_id`` of the page before.
        limit: Rows on a page, 1 to 1000.

    Returns:
        As :func:`get_responses`.

    Raises:
        InvalidInputError: Both or neither identity, or a limit out of range.
    """
    return await get_responses(
        conn,
        user_id=user_id,
        anonymous_token=anonymous_token,
        module_slug=module_slug,
        question_id=question_id,
        before_response_id=before_response_id,
        limit=limit,
    )


async def get_response(
    conn: AsyncConnection,
    *,
    response_id: int,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
) -> dict[str, Any] | None:
    """Read one response with all its scores, as they were at one moment.

    Args:
        conn: The caller's connection.
        response_id: Which response.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.

    Returns:
        A row as of :func:`get_responses`, and ``scores``, newest first, each as ``score`` is. None where the response
        is somebody else's or does not exist: nobody can tell which.

    Raises:
        InvalidInputError: Both or neither identity.
    """
    owner = checked_owner(user_id, anonymous_token)
    # One statement: of two, the second could know a score of which the state in the first says nothing.
    query = (
        select(
            responses,
            _SCORING_STATE.label("scoring_state"),
            *(_EVERY_SCORE[column.name].label(f"current_{column.name}") for column in _CURRENT_SCORE.c),
        )
        .select_from(
            responses.outerjoin(handoffs, handoffs.c.response_id == responses.c.response_id)
            .outerjoin(scores, scores.c.response_id == responses.c.response_id)
            .outerjoin(questions, questions.c.question_digest == scores.c.question_digest)
        )
        .where(responses.c.response_id == response_id, _owned_by(owner))
        .order_by(scores.c.score_id.desc())
    )
    with translated():
        rows = [_nested(row) for row in as_dicts(await conn.execute(query))]
    if not rows:
        return None
    return rows[0] | {"scores": [row["score"] for row in rows if row["score"] is not None]}


async def get_scores(
    conn: AsyncConnection,
    *,
    response_id: int,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
) -> list[dict[str, Any]]:
    """Read all scores of one response, newest first; the first one is current.

    Args:
        conn: The caller's connection.
        response_id: Which response.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.

    Returns:
        The rows of ``assessment_scores``; none where the response is somebody else's or does not exist.

    Raises:
        InvalidInputError: Both or neither identity.
    """
    owner = checked_owner(user_id, anonymous_token)
    query = (
        select(scores)
        .join(responses, responses.c.response_id == scores.c.response_id)
        .where(responses.c.response_id == response_id, _owned_by(owner))
        .order_by(scores.c.score_id.desc())
    )
    with translated():
        return list(as_dicts(await conn.execute(query)))
