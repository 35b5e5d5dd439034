"""What a worker reports about its model provider, for people; written by the heartbeat, read by ``scoring status``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class RateLimitReport(BaseModel):
    """The limits, and what was left of the present window of seconds when last asked; None where there is no limit."""

    model_config = ConfigDict(frozen=True)

    shared: bool
    requests_per_minute: int | None = None
    requests_left_in_window: int | None = None
    tokens_per_minute: int | None = None
    tokens_left_in_window: int | None = None


class ProviderReport(BaseModel):
    """One worker's view. ``shared``: the breaker is open for all workers, and not for this one alone."""

    model_config = ConfigDict(frozen=True)

    name: str
    breaker: Literal["open", "closed"]
    shared: bool
    reason: str | None
    open_seconds: float | None
    rate_limits: RateLimitReport | None
