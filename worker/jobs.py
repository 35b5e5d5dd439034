"""The arq jobs. Each takes a message, passes it on, and is over within milliseconds.

A job never raises: arq would log a traceback and delete the message, and nothing would be gained, because
what the message names is due in PostgreSQL anyway.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from arq.worker import Function, func
from pydantic import BaseModel, ValidationError

from producers.contract import (
    CLAIM_RESPONSES,
    DRAIN,
    SCORE_RESPONSES,
    ClaimResponses,
    Drain,
    ScoreResponses,
)

if TYPE_CHECKING:
    from worker.runtime import Runtime

logger = logging.getLogger(__name__)

PayloadT = TypeVar("PayloadT", bound=BaseModel)

# A lease statement takes milliseconds; with PostgreSQL away it takes its own time-out.
JOB_TIMEOUT_SECONDS = 30.0
# A worker that was killed in the middle of a job leaves the message; it is read again, not for ever.
MAX_TRIES = 3


def _read(kind: type[PayloadT], arguments: tuple[Any, ...]) -> PayloadT | None:
    """Read a payload; one that breaks the contract is logged without its content and dropped."""
    try:
        (payload,) = arguments
        return kind.model_validate(payload)
    except (ValidationError, ValueError):
        logger.warning("A message broke the contract and was dropped.", extra={"payload": kind.__name__})
        return None


async def score_responses(ctx: dict[str, Any], *arguments: Any) -> None:
    """Lease what the message names, as far as there are slots; the pool does the work."""
    runtime: Runtime = ctx["runtime"]
    if payload := _read(ScoreResponses, arguments):
        await runtime.take(payload.response_ids)


async def drain(ctx: dict[str, Any], *arguments: Any) -> None:
    """Remember that a lane holds more; the intake pulls when it has room."""
    runtime: Runtime = ctx["runtime"]
    if payload := _read(Drain, arguments):
        runtime.intake.rung_for(payload.lane)


async def claim_responses(ctx: dict[str, Any], *arguments: Any) -> None:
    """Apply the claims that the message names."""
    runtime: Runtime = ctx["runtime"]
    if payload := _read(ClaimResponses, arguments):
        await runtime.claimer.apply(payload.claim_ids)


def functions() -> list[Function]:
    """The jobs under the names of the contract."""
    jobs = {SCORE_RESPONSES: score_responses, DRAIN: drain, CLAIM_RESPONSES: claim_responses}
    return [
        func(job, name=name, timeout=JOB_TIMEOUT_SECONDS, max_tries=MAX_TRIES, keep_result=0)
        for name, job in jobs.items()
    ]
