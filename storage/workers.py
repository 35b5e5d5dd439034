"""Which workers run, and what they hold; for status, verify and health checks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB

from storage.translation import translated

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

# Silent for so long, a worker does not count as running; so much longer, its row is deleted.
ALIVE_SECONDS = 15.0
_FORGET_SECONDS = 3600.0

# Say that this worker runs. Nothing depends on it but what people are shown: no wait for the disk.
_REPORT = text(f"""
    WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS done),
    forgotten AS (
        DELETE FROM scoring_workers
        WHERE seen_at < statement_timestamp() - make_interval(secs => {_FORGET_SECONDS}) AND worker_id <> :worker_id
    )
    INSERT INTO scoring_workers AS w (worker_id, host, pid, version, slots, free_slots, note, provider)
    SELECT :worker_id, :host, :pid, :version, :slots, :free_slots, :note, CAST(:provider AS jsonb) FROM relaxed
    ON CONFLICT (worker_id) DO UPDATE SET
        seen_at = statement_timestamp(), free_slots = excluded.free_slots, note = excluded.note,
        provider = excluded.provider
    RETURNING 1 + (
        SELECT count(*) FROM scoring_workers AS other
        WHERE other.worker_id <> :worker_id AND other.provider ->> 'name' = CAST(:provider AS jsonb) ->> 'name'
            AND other.seen_at > statement_timestamp() - make_interval(secs => {ALIVE_SECONDS})
    ) AS fleet
""")

# Say that this worker is gone.
_LEAVE = text("DELETE FROM scoring_workers WHERE worker_id = :worker_id")

# Which workers have reported lately.
_ALIVE = text(f"""
    SELECT worker_id, host, pid, version, started_at, slots, free_slots, note, provider,
        EXTRACT(epoch FROM statement_timestamp() - seen_at)::double precision AS silent_seconds
    FROM scoring_workers
    WHERE seen_at > statement_timestamp() - make_interval(secs => {ALIVE_SECONDS})
        AND (CAST(:host AS text) IS NULL OR host = :host)
    ORDER BY host, pid
""").columns(provider=JSONB)


async def report_worker(
    conn: AsyncConnection,
    *,
    worker_id: UUID,
    host: str,
    pid: int,
    version: str,
    slots: int,
    free_slots: int,
    note: str | None,
    provider: dict[str, Any] | None,
) -> int:
    """Report that a worker runs.

    Args:
        conn: The caller's connection; nothing is committed here.
        worker_id: Made anew by every process.
        host: Its machine or container.
        pid: Its process there.
        version: Of this package.
        slots: How many answers it scores at a time.
        free_slots: How many more it would take now.
        note: Why it takes less than it could, if it does.
        provider: What it knows of its model provider, with the ``name`` that all who share it give; None where it
            asks none.

    Returns:
        How many workers share that provider, this one included.
    """
    given = {
        "worker_id": worker_id,
        "host": host,
        "pid": pid,
        "version": version,
        "slots": slots,
        "free_slots": free_slots,
        "note": note,
        "provider": None if provider is None else json.dumps(provider),
    }
    with translated():
        return int((await conn.execute(_REPORT, given)).scalar_one())


async def remove_worker(conn: AsyncConnection, *, worker_id: UUID) -> None:
    """Report that a worker stops; one that was killed is forgotten after an hour."""
    with translated():
        await conn.execute(_LEAVE, {"worker_id": worker_id})


async def list_workers(conn: AsyncConnection, *, host: str | None = None) -> list[dict[str, Any]]:
    """List the workers that reported within the last 15 seconds.

    Args:
        conn: The caller's connection.
        host: Only those of this machine or container.

    Returns:
        One mapping each, with ``silent_seconds`` since its last report.
    """
    with translated():
        return [dict(row) for row in (await conn.execute(_ALIVE, {"host": host})).mappings()]
