"""One table, and what follows from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.chaos.causes import Cause
from tests.chaos.faults import FAULTS
from tests.chaos.faults.poison import AnswerThatKills
from tests.chaos.terms import (
    ANSWERS_PER_SECOND,
    ANSWERS_PER_SECOND_IN_BACKLOG,
    BACKLOG_ANSWERS,
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    PROMPT_SECONDS,
    PROMPT_SHARE,
    RENEW_SECONDS,
    SLOTS,
    SWEEP_SECONDS,
    WINDOW_SECONDS,
    WORKERS,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tests.chaos.audit import Row, Verdict
    from tests.chaos.faults.base import Fault

COLUMNS = ("times", "submitted", "scored", "dead", "lost", "scored twice", "paid twice")
PER_KILLS = 1000


def settings_line() -> str:
    """What differs from production, in a sentence."""
    return (
        f"{WORKERS} workers of {SLOTS} slots, {ANSWERS_PER_SECOND:g} answers/s "
        f"({ANSWERS_PER_SECOND_IN_BACKLOG:g} while more than {BACKLOG_ANSWERS} are due); lease {LEASE_SECONDS:g} s, renewed "
        f"every {RENEW_SECONDS:g} s, sweep {SWEEP_SECONDS:g} s, {MAX_ATTEMPTS} attempts; fsync on."
    )


def print_report(screen: Console, verdict: Verdict) -> None:
    """Print the table, the totals, why calls were paid twice, and the verdict."""
    grid = Table(title="Chaos", title_justify="left", title_style="bold", header_style="bold")
    grid.add_column("fault", overflow="fold")
    for column in (*COLUMNS, "recovered, s", "bound, s"):
        grid.add_column(column, justify="right", overflow="fold")
    for row in verdict.rows:
        grid.add_row(*_cells(row))
    grid.add_section()
    grid.add_row(*_cells(verdict.total), style="bold")
    screen.print(grid)
    for line in _causes(verdict):
        screen.print(line)
    for late in verdict.late:
        screen.print(f"Late: {late}", markup=False)
    if verdict.reasons:
        screen.print("[bold red]FAIL[/bold red]")
        for reason in verdict.reasons:
            screen.print(f"  {reason}", markup=False)
    else:
        screen.print(
            "[bold green]PASS[/bold green]: nothing lost, nothing scored twice, nothing unexplained."
        )


def list_of_faults() -> Table:
    """What can happen, and when it counts as over."""
    grid = Table(title="Faults", title_justify="left", title_style="bold", header_style="bold")
    grid.caption = (
        f"Prompt, by the bell: of the answers stored within {WINDOW_SECONDS:g} s, {PROMPT_SHARE:.0%} are picked up "
        f"within {PROMPT_SECONDS:g} s. Measured from the end of the fault."
    )
    for column in ("fault", "what it is", "recovered means", "within, s"):
        grid.add_column(column, overflow="fold")
    kinds: tuple[type[Fault], ...] = (*FAULTS, AnswerThatKills)
    for kind in kinds:
        meaning = (kind.__doc__ or "").partition("\n")[0].replace("`", "")
        grid.add_row(kind.name, meaning, kind.recovery, f"{kind.bound_seconds:g}")
    return grid


def _numbers(row: Row) -> tuple[int, ...]:
    return (row.times, row.submitted, row.scored, row.dead, row.lost, row.scored_twice, row.paid_twice)


def _cells(row: Row) -> tuple[str, ...]:
    recovery = f"{median(row.recoveries):.1f}, {max(row.recoveries):.1f}" if row.recoveries else "-"
    bound = f"{max(row.bounds):.1f}" if row.bounds else "-"
    return (row.name, *(f"{number:,}" for number in _numbers(row)), recovery, bound)


def _causes(verdict: Verdict) -> list[str]:
    causes = Counter(each.wound.cause if each.wound else None for each in verdict.wasted)
    lines = [
        "Submitted: while the fault lasted and until it was over. Recovered: from its end, median and worst of its times.",
        f"Dead: {verdict.total.dead:,}, all of them planted to fail." if not verdict.reasons else "",
        f"Paid twice (a finished model call repeated for one handoff): {sum(causes.values()):,}.",
    ]
    lines += [f"  {causes[cause]:>6,}  {cause}" for cause in Cause if causes[cause]]
    if causes[None]:
        lines.append(f"  {causes[None]:>6,}  [red]nothing explains it[/red]")
    if (rate := per_kills(verdict)) is not None:
        lines.append(
            f"Per {PER_KILLS:,} kills of a worker with {SLOTS} answers in its hands: {rate:,.0f} answers paid twice "
            f"({verdict.kills} kills here)."
        )
    lines.append(f"Calls that were broken off unfinished and begun again: {verdict.broken_off:,}.")
    return lines


def per_kills(verdict: Verdict) -> float | None:
    """Answers paid twice per thousand kills of a full worker; None where none was killed."""
    if not verdict.kills:
        return None
    because = sum(each.wound is not None and each.wound.cause is Cause.KILLED for each in verdict.wasted)
    return because / verdict.kills * PER_KILLS


def write_json(path: Path, verdict: Verdict, *, seed: int, seconds: float) -> None:
    """Write the report for programs."""
    causes = Counter(
        each.wound.cause.name.lower() if each.wound else "unexplained" for each in verdict.wasted
    )
    path.write_text(
        json.dumps(
            {
                "seed": seed,
                "seconds": seconds,
                "settings": settings_line(),
                "passed": not verdict.reasons,
                "reasons": verdict.reasons,
                "late": verdict.late,
                "rows": [_record(row) for row in verdict.rows],
                "happenings": [asdict(each) for each in verdict.happenings],
                "total": _record(verdict.total),
                "paid_twice_by_cause": causes,
                "paid_twice_per_thousand_kills": per_kills(verdict),
                "broken_off": verdict.broken_off,
            },
            indent=2,
        )
        + "\n"
    )


def _record(row: Row) -> dict[str, Any]:
    named = zip((column.replace(" ", "_") for column in COLUMNS), _numbers(row), strict=True)
    return {"fault": row.name, **dict(named), "recovery_seconds": row.recoveries, "bound_seconds": row.bounds}
