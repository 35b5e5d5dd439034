"""arq tuned: a hundred jobs at a time, and a look a hundred times a second, which costs a tenth of a core while idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import arq
from benchmarks.peers.arq import prepare, submitting

if TYPE_CHECKING:
    from benchmarks.peers.settings import Settings

__all__ = ["prepare", "submitting", "work"]

SLOTS = 100
# Shorter pauses were no quicker.
POLL_SECONDS = 0.01


def work(settings: Settings) -> None:
    """Run arq's worker in this process."""
    arq.work(settings, slots=SLOTS, poll_seconds=POLL_SECONDS)
