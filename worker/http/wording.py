"""Numbers, durations and moments as the console writes them."""

from __future__ import annotations

from datetime import MAXYEAR, UTC, datetime

from storage.statistics import COUNT_LIMIT

NOTHING = "\N{EN DASH}"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
# From here on a number is written in millions, an amount in full cents.
_MANY, _CENT = 1_000_000, 0.01


def count(value: float | None) -> str:
    """A whole number with its thousands; from a million on in millions."""
    if value is None:
        return NOTHING
    return f"{value / _MANY:,.2f} M" if value >= _MANY else f"{value:,.0f}"


def bounded(number: int) -> str:
    """A count of handoffs, which ends at a limit."""
    return f"> {COUNT_LIMIT:,}" if number > COUNT_LIMIT else count(number)


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits: ``0.4 ms``, ``12 ms``, ``1.4 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    if seconds is None:
        return NOTHING
    # Each bound lies where what is written would round up to the next unit.
    for bound, factor, places, unit in (
        (0.00095, 1000, 1, "ms"),
        (0.9995, 1000, 0, "ms"),
        (9.95, 1, 1, "s"),
        (59.5, 1, 0, "s"),
    ):
        if seconds < bound:
            return f"{seconds * factor:.{places}f} {unit}"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY:,} d {whole % _DAY // _HOUR} h"


def money(dollars: float | None) -> str:
    """Dollars, with as many places as show something."""
    if dollars is None:
        return NOTHING
    return f"${dollars:.5f}" if 0 < dollars < _CENT else f"${dollars:,.2f}"


def decimal(value: float | None) -> str:
    """A score or a bound of its scale."""
    return NOTHING if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def moment(at: datetime | None) -> str:
    """Date and time in UTC, to the second."""
    if at is None or at.year == MAXYEAR:
        return NOTHING
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def clock(at: datetime | None) -> str:
    """The time of day in UTC, to the minute."""
    return NOTHING if at is None else f"{at.astimezone(UTC):%H:%M}"


def answers(number: int) -> str:
    """How many answers, in words that agree; beyond the limit of a count, more than that."""
    if number > COUNT_LIMIT:
        return f"More than {COUNT_LIMIT:,} answers"
    return "1 answer" if number == 1 else f"{count(number)} answers"
