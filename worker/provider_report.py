"""What a worker reports about its model provider, for people; written by the heartbeat, read by status and console."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable


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


@dataclass(frozen=True, slots=True)
class ProviderSummary:
    """What all workers of one provider report together.

    ``open_workers`` of ``workers`` see the breaker open, the first of them for ``open_seconds``. ``limits`` and
    ``counted`` are None where no limit is set.
    """

    name: str
    workers: int
    open_workers: int
    open_seconds: float | None
    reason: str | None
    limits: str | None
    counted: str | None


def summarize_providers(workers: Iterable[dict[str, Any]]) -> list[ProviderSummary]:
    """Sum up by provider what workers report; what another version reports in another form is left out."""
    by_name: dict[str, list[ProviderReport]] = {}
    for worker in workers:
        with suppress(ValidationError):
            report = ProviderReport.model_validate(worker["provider"])
            by_name.setdefault(report.name, []).append(report)
    return [_summary(name, seen) for name, seen in sorted(by_name.items())]


def _summary(name: str, seen: list[ProviderReport]) -> ProviderSummary:
    is_open = [each for each in seen if each.breaker == "open"]
    limits = next((each.rate_limits for each in seen if each.rate_limits), None)
    per_minute = []
    if limits and limits.requests_per_minute:
        per_minute.append(f"{limits.requests_per_minute:,} requests")
    if limits and limits.tokens_per_minute:
        per_minute.append(f"{limits.tokens_per_minute:,} tokens")
    return ProviderSummary(
        name=name,
        workers=len(seen),
        open_workers=len(is_open),
        open_seconds=max((each.open_seconds or 0.0 for each in is_open), default=None),
        reason=is_open[0].reason if is_open else None,
        limits=", ".join(per_minute) or None,
        counted=None
        if not limits
        else "for all workers"
        if limits.shared
        else "each its share: Redis is away",
    )
