"""One run, from the first answer to the last: load, faults, rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.chaos.arena import Happening
from tests.chaos.plan import PAUSE_SECONDS
from tests.chaos.terms import DRAWS_500, FAILS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.arena import Arena
    from tests.chaos.faults.base import Fault
    from tests.chaos.plan import Step

# Before the first fault, the load must flow.
WARM_UP_SECONDS = 2.0
# A fault that is so far beyond its bound is given up, and the run has failed.
GIVE_UP_SECONDS = 60.0
STRIKE_SECONDS = 60.0
REST_SECONDS = 120.0


async def play(arena: Arena, steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Let everything happen that is planned, one step after the other.

    Args:
        arena: The run.
        steps: What happens.
        say: Told about each fault.
    """
    await arena.observer.prompt(since=arena.now() + WARM_UP_SECONDS)
    for poison in (FAILS, DRAWS_500):
        arena.crowd.order(f"poison {poison}")
    for number, step in enumerate(steps, 1):
        happenings = await asyncio.gather(*(_happen(arena, fault, together=len(step) > 1) for fault in step))
        for happening in happenings:
            took = happening.recovery_seconds
            result = "NOT RECOVERED" if took is None else f"recovered after {took:.1f} s"
            say(f"{number}/{len(steps)} {happening.name} ({happening.target}): {result}")
        await asyncio.sleep(PAUSE_SECONDS)


async def _happen(arena: Arena, fault: Fault, *, together: bool) -> Happening:
    happening = Happening(
        fault.name, fault.target, fault.bound_seconds, together=together, recovery=fault.recovery
    )
    arena.happenings.append(happening)
    try:
        async with asyncio.timeout(STRIKE_SECONDS):
            await fault.prepare(arena)
            happening.begun = arena.now()
            await fault.begin(arena)
        await asyncio.sleep(fault.hold_seconds)
    except TimeoutError:
        arena.problems.append(f"{fault.name}: could not be brought about")
    finally:
        await fault.end(arena)
        happening.ended = arena.now()
    try:
        async with asyncio.timeout(fault.bound_seconds + GIVE_UP_SECONDS):
            happening.recovered = await fault.recovered(arena, since=happening.ended)
    except TimeoutError:
        pass
    return happening


async def come_to_rest(arena: Arena) -> None:
    """Stop the load and wait until nothing is open any more."""
    arena.problems += await arena.crowd.stop()
    await arena.provider.heal(DRAWS_500)
    await arena.editions.publish_all()
    # This one waits for up to a minute between its tries. Asked against a new edition, it is due at once.
    await arena.editions.mend(DRAWS_500)

    async def at_rest() -> bool:
        return not await arena.observer.unsettled()

    try:
        async with asyncio.timeout(REST_SECONDS):
            await arena.observer.until(at_rest)
    except TimeoutError:
        arena.problems.append("it did not come to rest")
