"""``scoring verify``: the invariants, each with what breaks it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError

from producers.contract import (
    CLAIM_RESPONSES,
    DRAIN,
    QUEUE_NAME,
    SCORE_RESPONSES,
    ClaimResponses,
    Drain,
    ScoreResponses,
    deserialize,
    message_key,
)
from storage.translation import translated
from storage.verification import verify_settlement, verify_timeliness
from storage.workers import list_workers
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.settings import VerifySettings

EXAMPLES = 5
# A sweep finds it, a message travels, a worker leases it: so much longer than a sweep is still in time.
TRAVEL_SECONDS = 1.0
# How many messages are looked at, unless all are asked for.
MESSAGES = 1000
_PAYLOADS: dict[str, type[BaseModel]] = {
    SCORE_RESPONSES: ScoreResponses,
    DRAIN: Drain,
    CLAIM_RESPONSES: ClaimResponses,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant, and whether it holds. ``holds`` is None where it could not be checked."""

    number: int
    invariant: str
    holds: bool | None
    count: int = 0
    examples: tuple[Any, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def _finding(number: int, invariant: str, broken: list[Any], note: str = "") -> Finding:
    return Finding(number, invariant, not broken, len(broken), tuple(broken[:EXAMPLES]), note)


async def verify(engine: AsyncEngine, settings: VerifySettings, *, full: bool = False) -> list[Finding]:
    """Check all invariants.

    Args:
        engine: Where the tables are.
        settings: Those of the workers: what counts as overdue depends on them. Where they say nothing of Redis, the last
            invariant is not checked.
        full: Look at everything, not only at what is unsettled and what came since the last time.

    Returns:
        One finding an invariant, in the order of their numbers.

    Raises:
        StorageError: PostgreSQL is away, or lacks our tables.
    """
    with translated():
        async with engine.begin() as conn:
            settled = await verify_settlement(conn, full=full)
    scope = "everything was looked at"
    if not full:
        scope = f"responses above {settled['checked_from']} and all handoffs were looked at"
    return [
        _finding(1, "Every response has a score or a handoff", settled["orphans"], scope),
        _finding(2, "No handoff was settled by two scores", settled["settled_twice"]),
        *await _timely(engine, settings),
        await _queue_is_clean(settings, full=full),
    ]


async def _timely(engine: AsyncEngine, settings: VerifySettings) -> list[Finding]:
    """Look, and where something lies about look again after a sweep: only what is still there is broken."""
    patience_seconds = settings.sweep_seconds + TRAVEL_SECONDS
    found, workers = await _look(engine, settings, patience_seconds)
    if workers and any(found.values()):
        await asyncio.sleep(patience_seconds)
        again, workers = await _look(engine, settings, patience_seconds)
        found = {name: [item for item in items if item in set(again[name])] for name, items in found.items()}
    running = bool(workers)
    free = any(worker["free_slots"] > 0 for worker in workers)

    def finding(number: int, invariant: str, name: str, *, applies: bool, otherwise: str) -> Finding:
        if applies or not found[name]:
            return _finding(number, invariant, found[name])
        return Finding(number, invariant, None, len(found[name]), tuple(found[name][:EXAMPLES]), otherwise)

    no_worker = "no worker runs"
    return [
        finding(
            3,
            "While a worker has free slots, no due handoff is older than one sweep",
            "left_lying",
            applies=free,
            otherwise="no worker has free slots" if running else no_worker,
        ),
        finding(
            4,
            "No handoff waits as unpublished although its question exists",
            "missed_publication",
            applies=running,
            otherwise=no_worker,
        ),
        finding(
            5,
            "No requested claim stays unapplied longer than one sweep",
            "late_claims",
            applies=running,
            otherwise=no_worker,
        ),
    ]


async def _look(
    engine: AsyncEngine, settings: VerifySettings, patience_seconds: float
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    with translated():
        async with engine.connect() as conn:
            found = await verify_timeliness(
                conn, lease_seconds=settings.lease_seconds, sweep_seconds=patience_seconds
            )
            return found, await list_workers(conn)


def _is_contract(message: bytes) -> bool:
    try:
        job = deserialize(message)
        (payload,) = job["a"]
        _PAYLOADS[job["f"]].model_validate(payload)
    except (ValidationError, ValueError, KeyError):
        return False
    return True


async def _queue_is_clean(settings: VerifySettings, *, full: bool) -> Finding:
    """Every message is JSON of the contract, which has no room for answer text."""
    invariant = "Nothing in Redis contains answer text, and no payload is pickled"
    if not isinstance(settings, ScoringSettings):
        return Finding(6, invariant, None, note="SCORING_REDIS_URL is not set")
    redis = settings.redis()
    try:
        ids = await redis.zrange(QUEUE_NAME, 0, -1 if full else MESSAGES - 1)
        keys = [message_key(message_id.decode(errors="replace")) for message_id in ids]
        messages = await redis.mget(keys) if keys else []
        broken = [
            key for key, message in zip(keys, messages, strict=True) if message and not _is_contract(message)
        ]
    except (RedisError, OSError, TimeoutError) as exc:
        return Finding(6, invariant, None, note=f"Redis could not be asked ({type(exc).__name__})")
    finally:
        await redis.aclose()
    return _finding(6, invariant, broken, f"{len(keys)} messages were looked at")
