"""Print what came of the class."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from demo.classroom import Student
    from demo.play import Played


def _milliseconds(later: Any, earlier: Any) -> str:
    return f"{(later - earlier).total_seconds() * 1000:,.0f}"


def print_report(screen: Console, played: Played) -> None:
    """Print one row an answer, then refusals and claims."""
    grid = Table(
        title="The class and its scores", title_justify="left", title_style="bold", header_style="bold"
    )
    names = max(len(student.name) for student, _ in played.answers)
    grid.add_column("student", no_wrap=True, min_width=names)
    grid.add_column("question", no_wrap=True, ratio=1, overflow="ellipsis")
    for column in ("try", "score"):
        grid.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    grid.add_column("reasoning", no_wrap=True, ratio=2, overflow="ellipsis")
    for column in ("pickup, ms", "score, ms"):
        grid.add_column(column, justify="right", min_width=len(column))
    grid.expand = True
    attempts: Counter[tuple[str, str]] = Counter()
    for student, row in played.answers:
        attempts[student.name, row["question_id"]] += 1
        grid.add_row(*_cells(student, row, attempts[student.name, row["question_id"]]))
    screen.print(grid)
    for student, refusal in played.refused:
        screen.print(
            f"Refused, as it should be: {escape(student.name)}'s answer. [dim]{escape(refusal)}[/dim]"
        )
    for guest, user, moved, skipped in played.claims:
        screen.print(
            f"Claimed: {escape(guest.name)} signed in as {escape(user.name)}; {moved} answers moved, "
            f"{skipped} skipped (already answered as {escape(user.name)})."
        )


def _cells(student: Student, row: dict[str, Any], attempt: int) -> tuple[str, ...]:
    score = row["score"]
    if score is None:
        return (escape(student.name), row["question_id"], str(attempt), "-", row["scoring_state"], "-", "-")
    data = score["score_data"]
    return (
        escape(student.name),
        escape(row["question_id"]),
        str(attempt),
        f"{data['overall_score']:g}",
        escape(data["reasoning"]),
        _milliseconds(score["picked_up_at"], row["created_at"]),
        _milliseconds(score["created_at"], row["created_at"]),
    )
