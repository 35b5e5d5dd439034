"""What every part of the benchmarks measures with: quantiles, tables, goals, and where the results go."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 120


@dataclass(frozen=True, slots=True)
class Goal:
    """What we mean to reach, and what was measured."""

    what: str
    measured: float
    bound: float
    at_least: bool = False
    unit: str = "times"

    @property
    def is_met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What, measured, wanted, met: as a person reads it."""
        wanted = f"{'at least' if self.at_least else 'at most'} {self.bound:,g} {self.unit}"
        return self.what, f"{self.measured:,.2f} {self.unit}", wanted, "yes" if self.is_met else "no"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one part found out: rows for a table, and the same for programs."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    def show(self) -> None:
        """Print the table."""
        show_table(self.title, self.columns, self.rows, self.notes)


def show_goals(goals: Sequence[Goal]) -> None:
    """Print what was to be reached and what was, in one table."""
    if goals:
        rows = [goal.row for goal in goals]
        show_table("What was to be reached", ("", "measured", "wanted", "reached"), rows)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> None:
    """Print a table: its first column is words, the others are numbers."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for position, column in enumerate(columns):
        grid.add_column(column, justify="right" if position else "left")
    for row in rows:
        grid.add_row(*row)
    console = Console(highlight=False, width=WIDTH)
    console.print(grid)
    for note in notes:
        console.print(note)
    console.print()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies (inclusive method).

    Args:
        values: At least two.
        share: 0 to 1, in hundredths.
    """
    return statistics.quantiles(values, n=100, method="inclusive")[min(98, max(0, round(share * 100) - 1))]
