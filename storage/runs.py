"""Runs over many answers that can be stopped anywhere and resumed exactly there.

A run walks over the responses in the order of their ids. Each step is one transaction: it locks the run, does its part,
and moves the cursor. Whatever ends a process, the cursor stands where the work that is committed ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text

from storage.actions import MAX_ACTOR_CHARS, record_action
from storage.errors import InvalidInputError
from storage.rows import as_dicts
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

Kind = Literal["rescore", "backfill", "purge"]

# Responses that one step looks at: some milliseconds, so that whoever waits for one of their rows waits no longer.
WINDOW = 2000
# Responses that one step changes: as many as a settlement, and few enough for nobody to notice the locks.
BATCH = 500

# Where everything ends that is stored now. What comes later is not part of a run.
_HORIZON = text("""
    SELECT
        coalesce((SELECT max(response_id) FROM assessment_responses), 0) AS until_response_id,
        coalesce((SELECT max(score_id) FROM assessment_scores), 0) AS until_score_id,
        greatest((SELECT max(handoff_id) FROM scoring_handoffs), (SELECT max(handoff_id) FROM assessment_scores), 0)
            AS after_handoff_id,
        statement_timestamp() AS read_at
""")

# The id at which the next responses end, by their number: ids may have large gaps.
_WINDOW_END = text("""
    SELECT max(response_id) FROM (
        SELECT response_id FROM assessment_responses
        WHERE response_id > :after AND response_id <= :until
        ORDER BY response_id LIMIT :size
    ) AS next
""")

# Begin a run.
_START = text("""
    INSERT INTO scoring_runs (kind, filters, started_by, until_response_id, expected)
    VALUES (:kind, CAST(:filters AS jsonb), :started_by, :until, :expected)
    RETURNING run_id
""")

# Whoever works on a run holds its row. A statement of its own: what is read afterwards is younger than the step before.
_LOCK = text("SELECT * FROM scoring_runs WHERE run_id = :run_id FOR UPDATE")

# Move the cursor, in the transaction that did the work.
_ADVANCE = text("""
    UPDATE scoring_runs SET
        last_response_id = :last, changed = changed + :changed, updated_at = clock_timestamp(),
        finished_at = CASE WHEN :last >= until_response_id THEN clock_timestamp() END
    WHERE run_id = :run_id
    RETURNING *
""")

# One run, to look at.
_GET = text("SELECT * FROM scoring_runs WHERE run_id = :run_id")

# The latest runs; or the newest that is not finished.
_LATEST = text("""
    SELECT * FROM scoring_runs
    WHERE kind = :kind AND (NOT :unfinished OR finished_at IS NULL)
    ORDER BY run_id DESC LIMIT :limit
""")

# How many of a run's handoffs wait for their score, and how many never will. The handoffs that a run makes are younger
# than all that were there when it began, and those of later answers belong to later answers.
_UNSCORED = text("""
    SELECT
        count(*) FILTER (WHERE state = 'open' AND question_digest IS NOT NULL) AS waiting,
        count(*) FILTER (WHERE state = 'open' AND question_digest IS NULL) AS unpublished,
        count(*) FILTER (WHERE state = 'dead') AS dead
    FROM scoring_handoffs WHERE handoff_id > :after_handoff_id AND response_id <= :until_response_id
""")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: up to which response, and how many it changed."""

    last_response_id: int
    changed: int


async def horizon(conn: AsyncConnection) -> dict[str, Any]:
    """Read where everything ends that is stored now.

    Returns:
        ``until_response_id``, ``until_score_id``, ``after_handoff_id``, and ``read_at`` on the database's clock.
    """
    with translated():
        [row] = as_dicts(await conn.execute(_HORIZON))
    return row


async def window_end(conn: AsyncConnection, *, after: int, until: int, size: int = WINDOW) -> int:
    """Find the id up to which a step may look, so that it looks at no more than ``size`` responses.

    Args:
        conn: The caller's connection.
        after: The id after which the step begins.
        until: The id at which the run ends.
        size: How many responses.

    Returns:
        The id; ``until`` where nothing is left before it.
    """
    with translated():
        found = await conn.execute(_WINDOW_END, {"after": after, "until": until, "size": size})
        return int(found.scalar_one() or until)


async def start_run(
    conn: AsyncConnection,
    *,
    kind: Kind,
    filters: Mapping[str, Any],
    started_by: str,
    until_response_id: int,
    expected: int,
) -> int:
    """Begin a run, and record who began it. Nothing is changed yet: :func:`advance_run` does that, step by step.

    Args:
        conn: The caller's connection; nothing is committed here.
        kind: What is done.
        filters: Which responses; JSON, never answer text or tokens.
        started_by: Who.
        until_response_id: The last response that is part of it.
        expected: How many responses it will change, as far as one knows.

    Returns:
        The ``run_id``.

    Raises:
        InvalidInputError: ``started_by`` is blank or too long.
    """
    given = {
        "kind": kind,
        "filters": json.dumps(dict(filters)),
        "started_by": storable("started_by", started_by, max_chars=MAX_ACTOR_CHARS),
        "until": until_response_id,
        "expected": expected,
    }
    with translated():
        run_id = int((await conn.execute(_START, given)).scalar_one())
    details = {"run": run_id, "step": "started", "expected": expected, "filters": dict(filters)}
    await record_action(conn, actor=started_by, action=kind, affected=0, details=details)
    return run_id


async def advance_run(
    conn: AsyncConnection,
    run_id: int,
    *,
    kind: Kind,
    actor: str,
    work: Callable[[AsyncConnection, Mapping[str, Any]], Awaitable[Step]],
) -> dict[str, Any]:
    """Do the next step of a run. Others who work on the same run wait until the caller's transaction ends.

    The step that comes to the end records that the run is finished, with all that it changed.

    Args:
        conn: The caller's connection, in a READ COMMITTED transaction of its own; nothing is committed here.
        run_id: Which run.
        kind: What it must be.
        actor: Who works on it now.
        work: Does the step, given the connection and the run's row; commits nothing.

    Returns:
        The run's row after the step; unchanged where it is finished.

    Raises:
        InvalidInputError: There is no such run of this kind.
    """
    with translated():
        run = next(as_dicts(await conn.execute(_LOCK, {"run_id": run_id})), None)
        if run is None or run["kind"] != kind:
            raise InvalidInputError("run", f"there is no {kind} run {run_id}")
        if run["finished_at"] is not None:
            return run
        step = await work(conn, run)
        given = {"run_id": run_id, "last": step.last_response_id, "changed": step.changed}
        [run] = as_dicts(await conn.execute(_ADVANCE, given))
    if run["finished_at"] is not None:
        details = {"run": run_id, "step": "finished"}
        await record_action(conn, actor=actor, action=kind, affected=run["changed"], details=details)
    return run


def filters_of(run: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What a run was begun with, where this version knows all of it.

    To pass over what a newer version has narrowed its choice by would score or delete more than was asked for.

    Args:
        run: The run's row.
        known: The names that this version heeds.

    Raises:
        InvalidInputError: There is another one.
    """
    unknown = sorted(run["filters"].keys() - set(known))
    if unknown:
        raise InvalidInputError(
            "run",
            f"run {run['run_id']} was begun by a newer version, with {', '.join(unknown)}, which this one does not know: "
            "go on with that version",
        )
    return dict(run["filters"])


async def record_resumption(conn: AsyncConnection, run: Mapping[str, Any], *, actor: str) -> None:
    """Record who took a run up again, and where it stood."""
    details = {"run": run["run_id"], "step": "resumed", "changed": run["changed"]}
    await record_action(conn, actor=actor, action=run["kind"], affected=0, details=details)


async def get_run(conn: AsyncConnection, run_id: int) -> dict[str, Any] | None:
    """Read one run; None where there is none of this id."""
    with translated():
        return next(as_dicts(await conn.execute(_GET, {"run_id": run_id})), None)


async def latest_runs(
    conn: AsyncConnection, *, kind: Kind, unfinished: bool = False, limit: int = 20
) -> list[dict[str, Any]]:
    """List runs, newest first.

    Args:
        conn: The caller's connection.
        kind: Of which kind.
        unfinished: Only those that were not finished.
        limit: At most so many.

    Returns:
        The rows of ``scoring_runs``.
    """
    with translated():
        given = {"kind": kind, "unfinished": unfinished, "limit": limit}
        return list(as_dicts(await conn.execute(_LATEST, given)))


async def unscored_of(conn: AsyncConnection, run: Mapping[str, Any]) -> dict[str, int]:
    """Count what a rescore or backfill has asked for and what is not scored yet.

    Args:
        conn: The caller's connection.
        run: The run's row.

    Returns:
        ``waiting`` for a worker, ``unpublished`` and ``dead``. Where several runs overlap, each counts what they share.
    """
    given = {
        "after_handoff_id": run["filters"]["after_handoff_id"],
        "until_response_id": run["until_response_id"],
    }
    with translated():
        [row] = as_dicts(await conn.execute(_UNSCORED, given))
    return row
