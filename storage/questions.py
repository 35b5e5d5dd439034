"""Questions: published by ops, addressed by the digest of their content, never changed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from storage.errors import InvalidInputError
from storage.tables import questions
from storage.translation import translated
from storage.validation import checked_question

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

_PUBLISH_LOCK = int.from_bytes(b"publish", "big")

# Publications pass one by one, so that "current" has one meaning.
_TAKE_TURN = text("SELECT pg_advisory_xact_lock(:key)")

# Which content is current for each of these questions.
_CURRENT = text("""
    SELECT DISTINCT ON (q.module_slug, q.question_id) q.question_digest
    FROM unnest(CAST(:module_slugs AS text[]), CAST(:question_ids AS text[])) AS given (module_slug, question_id)
    JOIN assessment_questions AS q USING (module_slug, question_id)
    ORDER BY q.module_slug, q.question_id, q.publication DESC
""")

# Publish content. What was published before and replaced since becomes current again.
_PUBLISH = text("""
    INSERT INTO assessment_questions (
        question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max,
        dimensions, reference_answer, learning_outcome_name
    )
    SELECT
        question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max,
        dimensions, reference_answer, learning_outcome_name
    FROM jsonb_to_recordset(CAST(:contents AS jsonb)) AS given (
        question_digest text, module_slug text, question_id text, question_text text, rubric text,
        scale_min double precision, scale_max double precision, dimensions jsonb,
        reference_answer text, learning_outcome_name text
    )
    ON CONFLICT (question_digest) DO UPDATE SET publication = DEFAULT, published_at = now()
""")

# What students are asked now. Rubric and reference answer are not for them.
_ASKED = text("""
    SELECT module_slug, question_id, question_text, scale_min, scale_max, learning_outcome_name
    FROM (
        SELECT DISTINCT ON (module_slug, question_id) *
        FROM assessment_questions
        ORDER BY module_slug, question_id, publication DESC
    ) AS current
    ORDER BY publication
""")

# Make the handoffs due that waited for these questions.
_REVIVE = text("""
    WITH waiting AS MATERIALIZED (
        SELECT h.handoff_id, given.question_digest
        FROM scoring_handoffs AS h
        JOIN assessment_responses AS r USING (response_id)
        JOIN unnest(
            CAST(:module_slugs AS text[]), CAST(:question_ids AS text[]), CAST(:question_digests AS text[])
        ) AS given (module_slug, question_id, question_digest)
            ON given.module_slug = r.module_slug AND given.question_id = r.question_id
        WHERE h.state = 'open' AND h.question_digest IS NULL
        ORDER BY h.handoff_id FOR UPDATE OF h
    )
    UPDATE scoring_handoffs AS h
    SET question_digest = waiting.question_digest, due_at = statement_timestamp()
    FROM waiting WHERE h.handoff_id = waiting.handoff_id
""")


def question_digest(content: Mapping[str, Any]) -> str:
    """The address of a question: SHA-256 over its canonical content, in hexadecimal."""
    canonical = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


async def publish_questions(
    conn: AsyncConnection, given: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Publish questions; publishing what is current changes nothing.

    New submissions are pinned to the new content, and answers that waited for one of these questions become
    due. Answers that were pinned to older content are still scored against that.

    Args:
        conn: The caller's connection, in READ COMMITTED; nothing is committed here.
        given: Mappings with ``module_slug``, ``question_id``, ``question_text`` and ``rubric``, and
            optionally ``scale_min`` and ``scale_max`` (1 and 5), ``dimensions`` (a list of mappings with
            ``name`` and ``description``), ``reference_answer`` and ``learning_outcome_name``.

    Returns:
        One mapping a question, in the order given, with ``module_slug``, ``question_id``, ``question_digest``
        and ``published``, which is false where this content was current already.

    Raises:
        InvalidInputError: A question breaks a rule, or one is given twice; nothing was published.
    """
    contents = [checked_question(question) for question in given]
    names = [(content["module_slug"], content["question_id"]) for content in contents]
    if len(set(names)) != len(names):
        raise InvalidInputError("question_id", "the same question is given twice")
    if not contents:
        return []
    digests = [question_digest(content) for content in contents]
    address = {"module_slugs": [name[0] for name in names], "question_ids": [name[1] for name in names]}
    with translated():
        await conn.execute(_TAKE_TURN, {"key": _PUBLISH_LOCK})
        current = frozenset((await conn.execute(_CURRENT, address)).scalars())
        changed = [
            content | {"question_digest": digest}
            for content, digest in zip(contents, digests, strict=True)
            if digest not in current
        ]
        if changed:
            await conn.execute(_PUBLISH, {"contents": json.dumps(changed)})
        await conn.execute(_REVIVE, address | {"question_digests": digests})
    return [
        {
            "module_slug": content["module_slug"],
            "question_id": content["question_id"],
            "question_digest": digest,
            "published": digest not in current,
        }
        for content, digest in zip(contents, digests, strict=True)
    ]


async def get_questions(conn: AsyncConnection, digests: Sequence[str]) -> list[dict[str, Any]]:
    """Read questions by digest.

    Args:
        conn: The caller's connection.
        digests: Which.

    Returns:
        The rows of ``assessment_questions``, in no particular order; none for unknown digests.
    """
    with translated():
        result = await conn.execute(select(questions).where(questions.c.question_digest.in_(digests)))
        return [dict(row) for row in result.mappings()]


async def list_asked_questions(conn: AsyncConnection) -> list[dict[str, Any]]:
    """Read what students are asked now, in the order of publication.

    Of every question only its current content, and of that only what a student may see: neither rubric nor
    reference answer nor the descriptions of dimensions.

    Args:
        conn: The caller's connection.

    Returns:
        Mappings with ``module_slug``, ``question_id``, ``question_text``, ``scale_min``, ``scale_max`` and
        ``learning_outcome_name``.
    """
    with translated():
        return [dict(row) for row in (await conn.execute(_ASKED)).mappings()]
