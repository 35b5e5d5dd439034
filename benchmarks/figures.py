"""What every part of the benchmarks measures with: quantiles, tables, and where the results go."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Figures:
    """What one part found out: rows for a table, and the same for programs."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def show(self) -> None:
        """Print the table."""
        grid = Table(title=self.title, title_justify="left", title_style="bold", header_style="bold")
        for position, column in enumerate(self.columns):
            grid.add_column(column, justify="right" if position else "left")
        for row in self.rows:
            grid.add_row(*row)
        console = Console(highlight=False, width=120)
        console.print(grid)
        for note in self.notes:
            console.print(note)
        console.print()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies (inclusive method).

    Args:
        values: At least two.
        share: 0 to 1, in hundredths.
    """
    return statistics.quantiles(values, n=100, method="inclusive")[min(98, max(0, round(share * 100) - 1))]
