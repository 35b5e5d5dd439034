"""The provider of the model is in trouble, for all workers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.chaos.faults.base import SLACK_SECONDS, Fault
from tests.chaos.model import FAILING, HANGING, LIMITED, WELL
from tests.chaos.terms import CALL_LONGEST_SECONDS, MODEL_TIMEOUT_SECONDS
from worker.breaker import LONGEST_PAUSE_SECONDS

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

# What gathered meanwhile and during the breakers' pause has to be worked off.
BACKLOG_SECONDS = 12.0


class _ProviderTrouble(Fault):
    victim = "provider"
    mode: ClassVar[str]
    recovery = "breakers are closed, the backlog is gone, pickup is prompt"
    bound_seconds = LONGEST_PAUSE_SECONDS + CALL_LONGEST_SECONDS + BACKLOG_SECONDS + SLACK_SECONDS

    async def begin(self, arena: Arena) -> None:
        await arena.provider.behave(self.mode)

    async def end(self, arena: Arena) -> None:
        await arena.provider.behave(WELL)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        return await arena.observer.prompt(since=since)


class ProviderLimits(_ProviderTrouble):
    """429 with Retry-After."""

    name = "provider answers 429"
    mode = LIMITED
    hold_seconds = 2.5
    usual_seconds = 8.0


class ProviderFails(_ProviderTrouble):
    """500 for everything."""

    name = "provider answers 500"
    mode = FAILING
    hold_seconds = 2.5
    usual_seconds = 8.0


class ProviderHangs(_ProviderTrouble):
    """No reply until the workers lose patience."""

    name = "provider hangs"
    mode = HANGING
    hold_seconds = MODEL_TIMEOUT_SECONDS + 1.0
    usual_seconds = 8.0
