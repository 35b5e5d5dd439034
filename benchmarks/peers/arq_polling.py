"""arq again, looking a hundred times a second: a tenth of a core while idle, and much quicker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import arq
from benchmarks.peers.arq import prepare, submitting

if TYPE_CHECKING:
    from benchmarks.peers.settings import Settings

__all__ = ["prepare", "submitting", "work"]

# Shorter ones were no quicker.
POLL_SECONDS = 0.01


def work(settings: Settings) -> None:
    """Run arq's worker in this process."""
    arq.work(settings, poll_seconds=POLL_SECONDS)
