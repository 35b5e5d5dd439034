"""The contract between producers and workers: what goes through Redis, and under which names.

The queue's name carries the contract's version. A worker reads the queue of its own version only; what an
older or newer producer rings into another queue is found by the sweep. Payloads are JSON and carry ids, never
answers, so that whoever can read or write Redis learns nothing and runs nothing.
"""

from __future__ import annotations

import json
import os
import time
from typing import Annotated, Any, Literal

from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from pydantic import BaseModel, ConfigDict, Field

CONTRACT_VERSION = 1
QUEUE_NAME = f"scoring:v{CONTRACT_VERSION}"
WAKE_CHANNEL = f"{QUEUE_NAME}:wake"

SCORE_RESPONSES = "score_responses"
DRAIN = "drain"
CLAIM_RESPONSES = "claim_responses"

# Ids in one message: a worker leases them in one statement, and no message grows beyond a few kilobytes.
MAX_IDS = 500
# Messages only save time; long before this the sweep has found what they name.
MESSAGE_EXPIRES_MS = 24 * 60 * 60 * 1000
# Every message is due since 1970: a producer whose clock is ahead cannot hide it from a worker. Zero would
# mean "not queued" to arq.
MESSAGE_SCORE = 1

Id = Annotated[int, Field(strict=True, gt=0, lt=2**63)]
Lane = Literal["live", "bulk", "suspect"]


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Frame(_Payload):
    """A job as arq writes it: try, function, arguments, keyword arguments, enqueue time in milliseconds."""

    t: Annotated[int, Field(strict=True, ge=0, le=1000)] | None
    f: Annotated[str, Field(strict=True, max_length=100)]
    a: list[Any]
    k: dict[str, Any]
    et: Annotated[int, Field(strict=True, ge=0, lt=2**43)]  # until the year 2248


class ScoreResponses(_Payload):
    """These responses were stored and await their score."""

    response_ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_IDS)]


class Drain(_Payload):
    """Something in this lane is overdue; ``suspect`` asks to score a group of suspicious answers by themselves."""

    lane: Lane


class ClaimResponses(_Payload):
    """These claims were stored and await being applied."""

    claim_ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_IDS)]


Payload = ScoreResponses | Drain | ClaimResponses
_JOB_NAMES: dict[type[_Payload], str] = {
    ScoreResponses: SCORE_RESPONSES,
    Drain: DRAIN,
    ClaimResponses: CLAIM_RESPONSES,
}


def serialize(job: dict[str, Any]) -> bytes:
    """Write an arq job as JSON; arq's default would be pickle, which runs code when it is read."""
    return json.dumps(job, separators=(",", ":")).encode()


def deserialize(message: bytes) -> dict[str, Any]:
    """Read an arq job from JSON, and check its frame.

    arq trusts the frame: a job whose enqueue time is no number, for example, would end its main loop each
    time it is read, and be read for ever.

    Raises:
        ValueError: This is no job. arq drops the message then; what it named is due in PostgreSQL.
    """
    return _Frame.model_validate_json(message).model_dump()


def job_name(payload: Payload) -> str:
    """The arq function that takes this payload."""
    return _JOB_NAMES[type(payload)]


def job_id(payload: Payload) -> str:
    """An id for the message: unique for ids, always the same for a drain, so that drains don't pile up.

    Ids of equal score are read in lexical order; the time in front keeps the older message first.
    """
    if isinstance(payload, Drain):
        return f"{QUEUE_NAME}:{DRAIN}:{payload.lane}"
    return f"{QUEUE_NAME}:{time.time_ns() // 1_000_000:013x}{os.urandom(8).hex()}"


def message(payload: Payload) -> bytes:
    """The message as arq stores it; the payload is its only positional argument."""
    arguments = (payload.model_dump(mode="json"),)
    return serialize_job(
        job_name(payload), arguments, {}, None, time.time_ns() // 1_000_000, serializer=serialize
    )


def message_key(message_id: str) -> str:
    """Where arq looks for the message."""
    return job_key_prefix + message_id
