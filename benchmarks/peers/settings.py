"""What a run is told through its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Self

StackName = Literal["sqlalchemy", "asyncpg"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are and what the job does."""

    database_url: str
    redis_url: str
    scorer_seconds: float
    #: The file that every job appends ``response_id nanoseconds`` to when it begins.
    starts: str | None
    #: Jobs that a worker may run at the same time, where it is not left to the peer.
    slots: int | None
    #: How it reaches PostgreSQL, and what messages carry: see ``benchmarks.peers.stacks``.
    stack: StackName

    @classmethod
    def from_environment(cls) -> Self:
        """Read the ``BENCH_`` variables.

        Raises:
            KeyError: A URL is missing.
        """
        slots = os.environ.get("BENCH_SLOTS")
        return cls(
            database_url=os.environ["BENCH_DATABASE_URL"],
            redis_url=os.environ["BENCH_REDIS_URL"],
            scorer_seconds=float(os.environ.get("BENCH_SCORER_SECONDS", "0")),
            starts=os.environ.get("BENCH_STARTS") or None,
            slots=int(slots) if slots else None,
            stack="asyncpg" if os.environ.get("BENCH_STACK") == "asyncpg" else "sqlalchemy",
        )
