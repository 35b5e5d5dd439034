"""Drafts: what a student has written and not submitted. They are never scored.

A draft carries the key under which it will be submitted. Once there is a response under that key, the draft is spent:
it is not read any more, and a save that comes late does not bring it back. So whoever submits need not delete it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.errors import DraftChangedError
from storage.limits import max_answer_chars
from storage.rows import as_dicts
from storage.translation import translated
from storage.validation import checked_key, checked_owner, checked_submission_key, storable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

_COLUMNS = "draft_id, user_id, anonymous_token, module_slug, question_id, answer_text, submission_key, created_at, saved_at"

# Is this the version that the caller has seen, or does he not mind?
_SEEN = """
    (
        CAST(:versions AS text[]) IS NULL OR '*' = ANY (CAST(:versions AS text[]))
        OR {version} = ANY (CAST(:versions AS text[]))
    )
"""
# A draft that is stored anew after it was discarded has another id; one that is saved again has another time.
_VERSION = "concat(d.draft_id, '-', CAST(extract(epoch FROM d.saved_at) * 1000000 AS bigint))"

# Has this draft not been submitted?
_UNSPENT = """
    NOT EXISTS (SELECT 1 FROM assessment_responses AS r WHERE r.submission_key = {key})
"""

_WHOSE = """
    (user_id = CAST(:user_id AS integer) OR anonymous_token = CAST(:anonymous_token AS text))
    AND module_slug = :module_slug AND question_id = :question_id
"""

# A save that had to wait for one which began later changes nothing: it is the older text. (A time in the future is that
# of a clock which was wrong.)
_NOT_NEWER = "NOT (d.saved_at > statement_timestamp() AND d.saved_at <= clock_timestamp())"


def _save(owner: str) -> TextClause:
    # Keep what the student wrote, in place of what he wrote before.
    return text(f"""
        INSERT INTO assessment_drafts AS d (
            user_id, anonymous_token, module_slug, question_id, answer_text, submission_key
        )
        SELECT
            CAST(:user_id AS integer), CAST(:anonymous_token AS text), CAST(:module_slug AS text),
            CAST(:question_id AS text), CAST(:answer_text AS text), CAST(:submission_key AS uuid)
        WHERE {_UNSPENT.format(key="CAST(:submission_key AS uuid)")}
        ON CONFLICT ({owner}, module_slug, question_id) WHERE {owner} IS NOT NULL
        DO UPDATE SET
            answer_text = excluded.answer_text,
            submission_key = excluded.submission_key,
            saved_at = statement_timestamp()
        WHERE {_NOT_NEWER}
        RETURNING {_COLUMNS}, {_VERSION} AS version
    """)


_SAVE_OF_USER = _save("user_id")
_SAVE_OF_TOKEN = _save("anonymous_token")

# The same in place of a version that the caller has seen. It never inserts: a draft that somebody discards, or claims,
# while this waits for him is not there any more.
_REPLACE = text(f"""
    UPDATE assessment_drafts AS d SET
        answer_text = CAST(:answer_text AS text),
        submission_key = CAST(:submission_key AS uuid),
        saved_at = statement_timestamp()
    WHERE {_WHOSE} AND {_SEEN.format(version=_VERSION)} AND {_NOT_NEWER}
        AND {_UNSPENT.format(key="CAST(:submission_key AS uuid)")}
    RETURNING {_COLUMNS}, {_VERSION} AS version
""")

# What the student can go on with.
_READ = text(f"""
    SELECT {_COLUMNS}, {_VERSION} AS version FROM assessment_drafts AS d
    WHERE {_WHOSE} AND {_UNSPENT.format(key="d.submission_key")}
""")

# Forget it.
_DISCARD = text(f"DELETE FROM assessment_drafts AS d WHERE {_WHOSE} AND {_SEEN.format(version=_VERSION)}")

# Is there another version than the caller has seen, or was his submitted?
_STANDS = text(f"""
    SELECT
        EXISTS (SELECT 1 FROM assessment_drafts AS d WHERE {_WHOSE}) AS is_there,
        NOT {_UNSPENT.format(key="CAST(:submission_key AS uuid)")} AS is_submitted
""")


def _whose(
    user_id: int | None, anonymous_token: str | UUID | None, module_slug: str, question_id: str
) -> dict[str, Any]:
    owner = checked_owner(user_id, anonymous_token)
    return {
        "user_id": owner.user_id,
        "anonymous_token": owner.anonymous_token,
        "module_slug": checked_key("module_slug", module_slug),
        "question_id": checked_key("question_id", question_id),
    }


async def save_draft(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    module_slug: str,
    question_id: str,
    answer_text: str,
    submission_key: UUID | str,
    max_chars: int | None = None,
    versions: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """Keep what a student has written so far, in place of his earlier draft of this question.

    Args:
        conn: The caller's connection; nothing is committed here.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.
        module_slug: Which module.
        question_id: Which question, within its module.
        answer_text: What he wrote. May be empty: then that is what he left.
        submission_key: Under which it will be submitted.
        max_chars: Longest accepted text, characters; by default ``SCORING_MAX_ANSWER_CHARS``.
        versions: Only in place of one of these: ``version`` of rows that were returned before; ``*`` is any.

    Returns:
        The stored row, with its ``version``. None where nothing was stored: an answer was submitted under this key,
        or another save, which began later, was quicker.

    Raises:
        InvalidInputError: A rule is broken; nothing was stored.
        DraftChangedError: There is another version, or none any more; nothing was stored.
        UnknownUserError: There is no such user; nothing was stored, the transaction is lost.
        StorageUnavailableError: PostgreSQL cannot be reached or cannot write.
    """
    given = _whose(user_id, anonymous_token, module_slug, question_id) | {
        "answer_text": storable(
            "answer_text", answer_text, max_chars=max_chars or max_answer_chars(), may_be_blank=True
        ),
        "submission_key": checked_submission_key(submission_key),
        "versions": None if versions is None else list(versions),
    }
    save = _SAVE_OF_TOKEN if user_id is None else _SAVE_OF_USER
    statement = save if versions is None else _REPLACE
    with translated():
        row = next(as_dicts(await conn.execute(statement, given)), None)
        if row is None and versions is not None:
            stands = (await conn.execute(_STANDS, given)).one()
            if not stands.is_submitted:
                raise DraftChangedError
    return row


async def get_draft(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    module_slug: str,
    question_id: str,
) -> dict[str, Any] | None:
    """Read a student's draft of one question.

    Args:
        conn: The caller's connection.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.
        module_slug: Which module.
        question_id: Which question, within its module.

    Returns:
        The stored row, with its ``version``; None where there is none, or an answer was submitted under its key.

    Raises:
        InvalidInputError: Both or neither identity, or a question that cannot be.
    """
    given = _whose(user_id, anonymous_token, module_slug, question_id)
    with translated():
        return next(as_dicts(await conn.execute(_READ, given)), None)


async def discard_draft(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    module_slug: str,
    question_id: str,
    versions: Sequence[str] | None = None,
) -> bool:
    """Forget a student's draft of one question.

    Args:
        conn: The caller's connection; nothing is committed here.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret.
        module_slug: Which module.
        question_id: Which question, within its module.
        versions: Only one of these: ``version`` of rows that were returned before.

    Returns:
        Whether there was one.

    Raises:
        InvalidInputError: Both or neither identity, or a question that cannot be.
        DraftChangedError: There is another version; it stays.
    """
    given = _whose(user_id, anonymous_token, module_slug, question_id)
    with translated():
        discard = given | {"versions": None if versions is None else list(versions)}
        discarded = (await conn.execute(_DISCARD, discard)).rowcount > 0
        if not discarded and versions is not None:
            stands = (await conn.execute(_STANDS, given | {"submission_key": None})).one()
            if stands.is_there:
                raise DraftChangedError
    return discarded
