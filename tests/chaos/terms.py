"""The numbers of a run: the settings of the workers, the load, and what counts as normal."""

from __future__ import annotations

from typing import Final

WORKERS: Final = 3
SLOTS: Final = 32
# A fifth of the defaults, in the same proportions: so that two minutes hold many faults.
LEASE_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 1.5
# Longer than the longest call, so that a worker which is told to stop can finish everything.
GRACE_SECONDS: Final = 8.0
DATABASE_TIMEOUT_SECONDS: Final = 3.0
REDIS_TIMEOUT_SECONDS: Final = 1.0
MODEL_TIMEOUT_SECONDS: Final = 3.0
MAX_ATTEMPTS: Final = 3

PRODUCERS: Final = 2
ANSWERS_PER_SECOND: Final = 100.0
# While more than so many answers are due and nobody takes them, fewer come: a run on a machine that has other things
# to do, too, must not drown in a backlog of its own.
BACKLOG_ANSWERS, GONE_ANSWERS = 300, 50
ANSWERS_PER_SECOND_IN_BACKLOG: Final = 30.0
CLAIMS_PER_SECOND: Final = 1.0

# How long a model call takes: log-normal, cut off at both ends.
CALL_MEDIAN_SECONDS: Final = 0.4
CALL_SIGMA: Final = 0.5
CALL_SHORTEST_SECONDS, CALL_LONGEST_SECONDS = 0.2, 1.5

# Normal: of the answers submitted within half a second, so many were picked up so quickly. Without the bell an
# answer waits for the sweep instead, which is five times as long.
WINDOW_SECONDS: Final = 0.5
PROMPT_SECONDS: Final = 0.25
PROMPT_SHARE: Final = 0.8
WINDOW_ANSWERS: Final = 5

MODULE: Final = "chaos"
QUESTIONS: Final = ("q-0", "q-1", "q-2")
# Not published before a fault or the end of the run publishes it.
LATE_QUESTION: Final = "q-late"
LATE_SHARE: Final = 0.03
USERS: Final = 20

# How a poisoned answer begins; what follows is what becomes of whoever asks the model about it.
POISON: Final = "poison: "
FAILS, KILLS, DRAWS_500 = "fails", "kills", "draws 500"


def worker_settings() -> dict[str, str]:
    """The ``SCORING_…`` variables that every worker has, besides its addresses."""
    given = {
        "SCORER": "tests.chaos.scorer:factory",
        "SLOTS": SLOTS,
        "LEASE_SECONDS": LEASE_SECONDS,
        "RENEW_SECONDS": RENEW_SECONDS,
        "SWEEP_SECONDS": SWEEP_SECONDS,
        "GRACE_SECONDS": GRACE_SECONDS,
        "DATABASE_TIMEOUT_SECONDS": DATABASE_TIMEOUT_SECONDS,
        "REDIS_TIMEOUT_SECONDS": REDIS_TIMEOUT_SECONDS,
        "LLM_TIMEOUT_SECONDS": MODEL_TIMEOUT_SECONDS,
        "MAX_ATTEMPTS": MAX_ATTEMPTS,
        "LOG_FORMAT": "json",
        "HTTP_PORT": 0,  # there are several on one machine
    }
    return {f"SCORING_{name}": str(value) for name, value in given.items()}
