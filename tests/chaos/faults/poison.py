"""An answer that kills every worker which touches it: the last act of a run, because it takes a lease each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.chaos.faults.base import SLACK_SECONDS, START_SECONDS, TAKEN_OVER_SECONDS, Fault
from tests.chaos.terms import KILLS, POISON

if TYPE_CHECKING:
    import random

    from tests.chaos.arena import Arena

# So many leases it may lose before it is buried; see storage.leases.
LOSSES = 10
# A short run mends the scorer after so many, and has the answer scored.
DEATHS_OF_A_SHORT_RUN = 2

_OPEN = text("""
    SELECT count(*) FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.state = 'open' AND r.answer_text = :answer_text
""")


class AnswerThatKills(Fault):
    """The worker dies of it, and so does whoever takes over, until the answer is buried or the scorer mended.

    Args:
        draw: As for every fault.
        mended: Whether the scorer is mended before the answer is buried.
    """

    name = "answer that kills its worker"
    victim = "worker"
    recovery = "it is dead, or scored where the scorer was mended, and pickup is prompt"
    bound_seconds = LOSSES * (TAKEN_OVER_SECONDS + START_SECONDS)
    usual_seconds = LOSSES * TAKEN_OVER_SECONDS

    def __init__(self, draw: random.Random, *, mended: bool) -> None:
        super().__init__(draw)
        self._mended = mended
        if mended:
            self.bound_seconds = 2 * TAKEN_OVER_SECONDS + SLACK_SECONDS

    @property
    def target(self) -> str:
        return "all workers"

    async def begin(self, arena: Arena) -> None:
        arena.poison_fault = self.number
        since = arena.now()
        arena.crowd.order(f"poison {KILLS}")
        if not self._mended:
            return

        async def enough() -> bool:
            return arena.poison_deaths(since=since) >= DEATHS_OF_A_SHORT_RUN

        await arena.observer.until(enough)

    async def end(self, arena: Arena) -> None:
        if self._mended:
            await arena.provider.heal(KILLS)

    async def recovered(self, arena: Arena, *, since: float) -> float:  # noqa: ARG002 - every fault's
        async def over() -> bool:
            died = arena.poison_deaths(since=0.0) > 0
            rows = await arena.observer.rows(_OPEN, answer_text=POISON + KILLS)
            return died and not rows[0]["count"]

        ended = await arena.observer.until(over)
        return max(ended, await arena.observer.prompt(since=ended))
