from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage.settlements import settle_handoffs
from tests.factories import bury, lease, publish, settlement, submit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = pytest.mark.commits


async def test_an_hour_without_anything(commands: Commands) -> None:
    """It is shown all the same."""
    result = await commands.run("stats")

    assert result.exit_code == 0, (result.output, result.exception)
    assert "The last hour: 0 answers, 0 scores. Pickup -. Scoring -." in result.stdout
    seen = await commands.json("stats")
    assert len(seen["minutes"]) == 60


async def test_the_last_hour(commands: Commands, engine: AsyncEngine) -> None:
    """How much, how fast, how scores spread, and why answers died: for people, and all of it for programs."""
    async with engine.begin() as conn:
        await publish(conn)
        scored, dead = [(await submit(conn, answer_text="canary"))["response_id"] for _ in range(2)]
        leases = await lease(conn, scored)
        await settle_handoffs(conn, [settlement(held) for held in leases])
        await bury(conn, dead, reason="refused")

    result = await commands.run("stats")
    seen = await commands.json("stats")

    assert result.exit_code == 0, (result.output, result.exception)
    for shown in (
        "2 answers, 1 scores",
        "photosynthesis",
        "0 0 0 0 0 0 0 1 0 0",
        "refused",
        "no price is known",
    ):
        assert shown in result.stdout, shown
    assert (seen["hour"]["answers"], seen["hour"]["scores"]) == (2, 1)
    assert seen["hour"]["pickup_seconds"].keys() == {"p50", "p95", "p99"}
    assert seen["questions"][0]["mean"] == 4.0
    assert seen["dead_kinds"][0]["answers"] == 1
    assert "canary" not in result.stdout + str(seen)
