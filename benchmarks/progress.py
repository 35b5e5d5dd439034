"""One progress bar for everything that is measured, by the time that each part is expected to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from types import TracebackType

# Says what comes next.
Step = Callable[[str], None]


class Bar:
    """A bar whose length is time.

    Args:
        seconds: What all parts are expected to take together.
    """

    def __init__(self, seconds: float) -> None:
        self._progress = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=seconds)
        self._ahead = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._progress.stop()

    def part(self, name: str, *, seconds: float, steps: int) -> Step:
        """Begin a part.

        Args:
            name: Stands before what each step says.
            seconds: What the part is expected to take.
            steps: How many there will be.
        """

        def step(text: str) -> None:
            # What began before is over now.
            self._progress.update(self._task, advance=self._ahead, description=f"{name}: {text}")
            self._ahead = seconds / steps

        return step
