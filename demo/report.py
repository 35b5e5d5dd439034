"""Print what came of the class."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from demo.classroom import Submission
    from demo.play import Played


WIDE = 110  # columns


def _milliseconds(later: Any, earlier: Any) -> str:
    return f"{(later - earlier).total_seconds() * 1000:,.0f}"


def print_report(screen: Console, played: Played) -> None:
    """Print one row an answer, then refusals and claims."""
    grid = Table(
        title="The class and its scores", title_justify="left", title_style="bold", header_style="bold"
    )
    names = max(len(submission.student_name) for submission, _ in played.answers)
    # Narrow terminals get more lines instead of less text.
    wide = screen.width >= WIDE
    overflow: Literal["ellipsis", "fold"] = "ellipsis" if wide else "fold"
    grid.add_column("student", no_wrap=True, min_width=names)
    grid.add_column("question", no_wrap=wide, ratio=1, overflow=overflow)
    for column in ("try", "score"):
        grid.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    grid.add_column("reasoning", no_wrap=wide, ratio=2, overflow=overflow)
    for column in ("pickup, ms", "score, ms"):
        grid.add_column(column, justify="right", min_width=len(column))
    grid.expand = True
    attempts: Counter[tuple[str, str]] = Counter()
    for submission, row in played.answers:
        key = submission.student_name, submission.question_id
        attempts[key] += 1
        grid.add_row(*_cells(submission, row, attempts[key]))
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


def _cells(submission: Submission, row: dict[str, Any], attempt: int) -> tuple[str, ...]:
    asked = (escape(submission.student_name), escape(submission.question_id), str(attempt))
    # What is odd about an answer, so that its score can be judged without reading it.
    oddity = "" if submission.kind == "ordinary" else f"[bold]({submission.kind})[/bold] "
    score = row["score"]
    if score is None:
        return (*asked, "-", oddity + row["scoring_state"], "-", "-")
    return (
        *asked,
        f"{score['score_data']['overall_score']:g}",
        # One line of it; the rest is in the database.
        oddity + escape(score["score_data"]["reasoning"].partition(". ")[0]) + ".",
        _milliseconds(score["picked_up_at"], row["created_at"]),
        _milliseconds(score["created_at"], row["created_at"]),
    )
