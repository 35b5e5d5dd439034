"""The record of what people did to other people's answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text

from storage.rows import as_dicts
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

Action = Literal["retry", "dismiss", "rescore", "backfill", "purge", "erase", "export"]

# A name, a login or an address; nothing longer identifies a person better.
MAX_ACTOR_CHARS = 200

# Write down who did what, in the transaction that does it.
_RECORD = text("""
    INSERT INTO scoring_actions (actor, action, affected, details)
    VALUES (:actor, :action, :affected, CAST(:details AS jsonb))
    RETURNING action_id
""")

# What was done lately.
_LATEST = text("""
    SELECT action_id, acted_at, actor, action, affected, details
    FROM scoring_actions
    WHERE CAST(:before AS bigint) IS NULL OR action_id < :before
    ORDER BY action_id DESC LIMIT :limit
""")


async def record_action(
    conn: AsyncConnection,
    *,
    actor: str,
    action: Action,
    affected: int,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Record what a person did, in the transaction in which it is done: either both are stored or neither.

    Args:
        conn: The caller's connection; nothing is committed here.
        actor: Who, as the command or the console knows it; at most 200 characters.
        action: What.
        affected: How many answers it changed.
        details: What else tells it apart: filters, ids, a reason. Never answer text, tokens or keys.

    Returns:
        The ``action_id``.

    Raises:
        InvalidInputError: The actor is blank, too long or no text.
    """
    given = {
        "actor": storable("actor", actor, max_chars=MAX_ACTOR_CHARS),
        "action": action,
        "affected": affected,
        "details": json.dumps(dict(details or {})),
    }
    with translated():
        return int((await conn.execute(_RECORD, given)).scalar_one())


async def latest_actions(
    conn: AsyncConnection, *, limit: int = 50, before_action_id: int | None = None
) -> list[dict[str, Any]]:
    """List what people did lately, newest first.

    Args:
        conn: The caller's connection.
        limit: At most so many.
        before_action_id: For the next page, the last ``action_id`` of the page before.

    Returns:
        ``action_id``, ``acted_at``, ``actor``, ``action``, ``affected`` and ``details`` of each.
    """
    with translated():
        return list(as_dicts(await conn.execute(_LATEST, {"limit": limit, "before": before_action_id})))
