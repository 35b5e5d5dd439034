"""Store what students answered, each answer with its handoff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB

from storage.errors import StorageUnavailableError, SubmissionKeyConflictError
from storage.keys import time_ordered_uuid
from storage.rows import as_dicts
from storage.translation import translated
from storage.validation import Submission, checked_submission

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.selectable import TextualSelect

_COLUMNS = (
    "response_id, user_id, anonymous_token, module_slug, question_id, learning_outcome_id, content_id, "
    "answer_text, answer_metadata, submission_key, question_digest, created_at"
)

# What is given, as rows: of arrays, however many there are, or of single values.
_MANY = """
    SELECT * FROM unnest(
        CAST(:user_ids AS integer[]), CAST(:tokens AS text[]), CAST(:module_slugs AS text[]),
        CAST(:question_ids AS text[]), CAST(:learning_outcome_ids AS text[]), CAST(:content_ids AS text[]),
        CAST(:answer_texts AS text[]), CAST(:answer_metadata AS text[]), CAST(:submission_keys AS uuid[])
    ) WITH ORDINALITY AS given (
        user_id, anonymous_token, module_slug, question_id, learning_outcome_id, content_id,
        answer_text, answer_metadata, submission_key, position
    )
"""
_ONE = """
    SELECT
        CAST(:user_ids AS integer) AS user_id, CAST(:tokens AS text) AS anonymous_token,
        CAST(:module_slugs AS text) AS module_slug, CAST(:question_ids AS text) AS question_id,
        CAST(:learning_outcome_ids AS text) AS learning_outcome_id, CAST(:content_ids AS text) AS content_id,
        CAST(:answer_texts AS text) AS answer_text, CAST(:answer_metadata AS text) AS answer_metadata,
        CAST(:submission_keys AS uuid) AS submission_key, 1 AS position
"""


# Where a batch's handoffs find the traces that they go on with: by key, each key once, so that a key given twice still
# has one handoff. A single one needs no looking for.
_TRACES = """
    LEFT JOIN unnest(CAST(:traced_keys AS uuid[]), CAST(:trace_contexts AS text[])) AS traced (submission_key, trace_context)
        USING (submission_key)
"""


def _submit(given: str, *, trace_context: str | None = None, traces: str = "") -> TextualSelect:
    # Responses and their handoffs in one statement, so that neither can exist without the other. Each is pinned to the
    # question that is published at this moment; without one its handoff is never due.
    return text(f"""
        WITH given AS MATERIALIZED ({given}), inserted AS (
            INSERT INTO assessment_responses (
                user_id, anonymous_token, module_slug, question_id, learning_outcome_id, content_id,
                answer_text, answer_metadata, submission_key, question_digest
            )
            SELECT
                user_id, anonymous_token, module_slug, question_id, learning_outcome_id, content_id,
                answer_text, CAST(answer_metadata AS jsonb), submission_key,
                (
                    SELECT published.question_digest FROM assessment_questions AS published
                    WHERE published.module_slug = given.module_slug AND published.question_id = given.question_id
                    ORDER BY published.publication DESC LIMIT 1
                )
            FROM given ORDER BY position
            ON CONFLICT (submission_key) DO NOTHING
            RETURNING {_COLUMNS}
        ), handed_off AS (
            INSERT INTO scoring_handoffs (response_id, question_digest, due_at{", trace_context" if trace_context else ""})
            SELECT response_id, question_digest, CASE WHEN question_digest IS NULL THEN 'infinity' ELSE now() END
                {f", CAST({trace_context} AS jsonb)" if trace_context else ""}
            FROM inserted {traces}
        )
        SELECT {_COLUMNS} FROM inserted
    """).columns(answer_metadata=JSONB)


# Store a batch.
_SUBMIT = _submit(_MANY)
# Store a single answer. PostgreSQL plans a statement with arrays anew each time that they hold one row: it takes that
# plan, made for one, for so much cheaper than one made for any number. Without arrays it keeps the plan, which saves a
# third of the time it takes over the answer.
_SUBMIT_ONE = _submit(_ONE)
# The same, with what a trace goes on with. Statements of their own: who does not trace pays nothing for it.
_SUBMIT_TRACED = _submit(_MANY, trace_context="traced.trace_context", traces=_TRACES)
_SUBMIT_ONE_TRACED = _submit(_ONE, trace_context=":trace_contexts")

# Find what earlier calls stored under these keys, and whether it is the asking owner's: his own, stored under his token
# and claimed since, or stored under a token that he claims and no worker has looked at yet: it is his in a moment.
_SUBMITTED_BEFORE = text(f"""
    SELECT {", ".join(f"r.{column}" for column in _COLUMNS.split(", "))},
        CASE WHEN given.user_id IS NOT NULL THEN r.user_id IS NOT DISTINCT FROM given.user_id OR EXISTS (
            SELECT 1 FROM assessment_claims AS claim
            WHERE claim.anonymous_token = r.anonymous_token AND claim.user_id = given.user_id
                AND claim.applied_at IS NULL
        )
        ELSE r.anonymous_token IS NOT DISTINCT FROM given.anonymous_token OR EXISTS (
            SELECT 1 FROM assessment_claims AS claim
            WHERE claim.anonymous_token = given.anonymous_token AND claim.user_id = r.user_id
                AND claim.applied_at IS NOT NULL
        ) END AS is_askers
    FROM unnest(CAST(:submission_keys AS uuid[]), CAST(:user_ids AS integer[]), CAST(:tokens AS text[]))
        AS given (submission_key, user_id, anonymous_token)
    JOIN assessment_responses AS r USING (submission_key)
""").columns(answer_metadata=JSONB)


async def submit_response(
    conn: AsyncConnection,
    *,
    user_id: int | None = None,
    anonymous_token: str | UUID | None = None,
    question_id: str,
    module_slug: str,
    learning_outcome_id: str | UUID | None = None,
    content_id: str | UUID | None = None,
    answer_text: str,
    answer_metadata: dict[str, Any] | None = None,
    submission_key: UUID | str | None = None,
    trace_context: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Store one answer and its handoff, in one statement of the caller's transaction.

    Once that transaction commits, the answer will be scored; tell a worker with ``producer.announce``, or
    leave it to the sweep. Every call is a new attempt, unless it repeats a ``submission_key``.

    Args:
        conn: The caller's connection; nothing is committed here.
        user_id: The signed-in student; exactly one of this and ``anonymous_token``.
        anonymous_token: The anonymous student's secret, text or UUID.
        question_id: Which question, within its module.
        module_slug: Which module.
        learning_outcome_id: The web app's own reference; stored, not interpreted.
        content_id: The web app's own reference; stored, not interpreted.
        answer_text: What the student wrote; at most ``SCORING_MAX_ANSWER_CHARS`` characters.
        answer_metadata: Any JSON mapping of at most 16 KiB.
        submission_key: Makes a retry harmless: the same key gives the same row. Made here if not given.
        trace_context: Where the scoring's trace goes on: ``traceparent`` (at most 128 characters) and perhaps
            ``tracestate`` (at most 512) of the W3C's "Trace Context", as ``producers.tracing.current_trace_context()``
            returns them. Other keys are not stored. Where the key repeats an earlier call, that call's counts.

    Returns:
        The stored row, or the row that an earlier call with this key stored.

    Raises:
        InvalidInputError: A rule is broken; nothing was stored.
        UnknownUserError: There is no such user; nothing was stored, the transaction is lost.
        SubmissionKeyConflictError: The key belongs to another owner's response; nothing was stored.
        StorageUnavailableError: PostgreSQL cannot be reached or cannot write.
        NotMigratedError: The tables are missing.
    """
    given = {
        "user_id": user_id,
        "anonymous_token": anonymous_token,
        "question_id": question_id,
        "module_slug": module_slug,
        "learning_outcome_id": learning_outcome_id,
        "content_id": content_id,
        "answer_text": answer_text,
        "answer_metadata": answer_metadata,
        "submission_key": submission_key,
        "trace_context": trace_context,
    }
    return (await submit_responses(conn, [given]))[0]


async def submit_responses(
    conn: AsyncConnection, submissions: Sequence[Mapping[str, Any] | Submission]
) -> list[dict[str, Any]]:
    """Store many answers and their handoffs at once.

    Args:
        conn: The caller's connection; nothing is committed here.
        submissions: The arguments of :func:`submit_response`, one mapping an answer.

    Returns:
        The stored rows, in the order given.

    Raises:
        InvalidInputError: As for :func:`submit_response`; one bad submission refuses them all. After
            UnknownUserError and SubmissionKeyConflictError the transaction must be rolled back.
    """
    checked = [given if isinstance(given, Submission) else checked_submission(given) for given in submissions]
    if not checked:
        return []
    keys = [submission.submission_key or time_ordered_uuid() for submission in checked]
    with translated():
        given = _arrays(checked, keys)
        traces = _traces(checked, keys)
        if len(keys) == 1:
            one = {name: value for name, (value,) in given.items()}
            if traces:
                result = await conn.execute(_SUBMIT_ONE_TRACED, {**one, "trace_contexts": traces[keys[0]]})
            else:
                result = await conn.execute(_SUBMIT_ONE, one)
        elif traces:
            traced = {"traced_keys": list(traces), "trace_contexts": list(traces.values())}
            result = await conn.execute(_SUBMIT_TRACED, given | traced)
        else:
            result = await conn.execute(_SUBMIT, given)
        rows = {row["submission_key"]: row for row in as_dicts(result)}
        if len(rows) < len(keys):
            rows |= await _submitted_before(conn, checked, keys)
    if not rows.keys() >= set(keys):
        # Erased between the two statements.
        raise StorageUnavailableError("An earlier answer under this key is being erased; repeat the call.")
    return [rows[key] for key in keys]


def _traces(checked: list[Submission], keys: list[UUID]) -> dict[UUID, str]:
    """The trace contexts that are to be stored, by key; of a key given twice that of the first, which is inserted."""
    first = {
        key: submission.trace_context
        for key, submission in zip(reversed(keys), reversed(checked), strict=True)
    }
    return {key: trace_context for key, trace_context in first.items() if trace_context is not None}


def _arrays(checked: list[Submission], keys: list[UUID]) -> dict[str, list[Any]]:
    return {
        "user_ids": [submission.owner.user_id for submission in checked],
        "tokens": [submission.owner.anonymous_token for submission in checked],
        "module_slugs": [submission.module_slug for submission in checked],
        "question_ids": [submission.question_id for submission in checked],
        "learning_outcome_ids": [submission.learning_outcome_id for submission in checked],
        "content_ids": [submission.content_id for submission in checked],
        "answer_texts": [submission.answer_text for submission in checked],
        "answer_metadata": [submission.answer_metadata for submission in checked],
        "submission_keys": keys,
    }


async def _submitted_before(
    conn: AsyncConnection, checked: list[Submission], keys: list[UUID]
) -> dict[UUID, dict[str, Any]]:
    """Read the rows of repeated keys, and refuse those that ask for somebody else's."""
    result = await conn.execute(
        _SUBMITTED_BEFORE,
        {
            "submission_keys": keys,
            "user_ids": [submission.owner.user_id for submission in checked],
            "tokens": [submission.owner.anonymous_token for submission in checked],
        },
    )
    rows: dict[UUID, dict[str, Any]] = {}
    for row in as_dicts(result):
        if not row.pop("is_askers"):
            raise SubmissionKeyConflictError
        rows[row["submission_key"]] = row
    return rows
