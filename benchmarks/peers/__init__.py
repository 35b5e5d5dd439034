"""The same work done by other queues, each with the settings that serve it best, and by hand without any queue.

Every one stores an answer, hands it off, scores it in another process and stores
the score. None of them promises what we promise; each promise that it makes is kept switched on.
"""

from __future__ import annotations

from typing import Final, Literal

Interpreter = Literal["project", "peers"]

#: Which interpreter each one needs: the project's own, or the one of ``environment.peers_python()``. arq allows
#: only Redis clients older than those the others ask for. By hand is at its best with uvloop.
INTERPRETERS: Final[dict[str, Interpreter]] = {
    "arq": "project",
    "arq_tuned": "project",
    "saq": "peers",
    "taskiq": "peers",
    "streaq": "peers",
    "dramatiq": "peers",
    "procrastinate": "peers",
    "pgqueuer": "peers",
    "by_hand": "peers",
    "by_hand_batched": "peers",
}
