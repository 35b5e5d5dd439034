"""Which faults come in which order: drawn from a seed, before anything happens."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.chaos.faults import FAULTS
from tests.chaos.faults.poison import AnswerThatKills

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.faults.base import Fault

# Between two steps; each is waited for until all is well again.
PAUSE_SECONDS = 0.5

# An answer that kills its workers takes ten of them, each for a lease; shorter runs mend the scorer instead.
LONG_RUN_SECONDS = 100.0

Step = tuple["Fault", ...]


def make_plan(seed: int, seconds: float, *, only: str | None = None) -> list[Step]:
    """Draw the steps of a run: cycles of all faults, each once, the last two of a cycle at the same time.

    A run that is too short for all of them has as many as fit, and no fault twice; a longer one has whole cycles
    only. Last comes, on top of the time, an answer that kills its workers.

    Args:
        seed: The same seed draws the same steps for the same time.
        seconds: How long all of it may take on an idle machine.
        only: Draw only faults whose name contains this, over and over, one at a time.

    Returns:
        The faults of each step: one, or two that strike different things.
    """
    draw = random.Random(seed)
    left = seconds
    steps: list[Step] = []
    if only is not None:
        return _repeated([kind for kind in FAULTS if only in kind.name], draw, seconds)
    whole = True
    while whole:
        order = draw.sample(FAULTS, len(FAULTS))
        pair = _pair(order)
        left -= _usual_seconds(pair)
        alone = []
        for kind in order:
            if kind not in pair and _usual_seconds((kind,)) <= left:
                alone.append((kind,))
                left -= _usual_seconds((kind,))
        whole = len(alone) + len(pair) == len(FAULTS)
        if whole or not steps:
            steps += [tuple(kind(random.Random(draw.random())) for kind in kinds) for kinds in (*alone, pair)]
    steps.append((AnswerThatKills(draw, mended=seconds < LONG_RUN_SECONDS),))
    return _numbered(steps)


def _repeated(kinds: Sequence[type[Fault]], draw: random.Random, seconds: float) -> list[Step]:
    rounds = max(1, int(seconds / sum(_usual_seconds((kind,)) for kind in kinds)))
    return _numbered([(kind(random.Random(draw.random())),) for _ in range(rounds) for kind in kinds])


def _numbered(steps: list[Step]) -> list[Step]:
    for number, fault in enumerate(fault for step in steps for fault in step):
        fault.number = number
    return steps


def _pair(order: Sequence[type[Fault]]) -> tuple[type[Fault], ...]:
    """The last of an order, and the last before it that strikes something else."""
    last = order[-1]
    other = next(kind for kind in reversed(order) if kind.victim != last.victim)
    return other, last


def _usual_seconds(kinds: Sequence[type[Fault]]) -> float:
    return max(kind.usual_seconds for kind in kinds) + PAUSE_SECONDS
