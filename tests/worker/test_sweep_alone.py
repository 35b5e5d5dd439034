"""The sweep without Redis: it rings for nobody, so this worker serves whatever is found."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from demo.servers import free_port
from storage.claims import request_claim, requested_claims
from tests.factories import submit, token
from tests.producers.proxy import Proxy
from tests.producers.waiting import eventually
from tests.worker.scripted import change, in_background, scored_once, submit_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers.contract import Payload
    from worker.runtime import Runtime

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

pytestmark = pytest.mark.commits


async def test_without_redis_the_sweeping_worker_takes_what_is_due(
    running: Running, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis was never there: answers are scored and claims applied, with a few warnings and no more."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with running(redis_url=url):
        ids = await submit_answers(engine, 60)
        await eventually(lambda: scored_once(engine, ids))
        secret = token()
        async with engine.begin() as conn:
            row = await submit(conn, anonymous_token=secret)
            await request_claim(conn, anonymous_token=secret, user_id=9)

        async def moved() -> bool:
            async with engine.connect() as conn:
                found = await conn.execute(
                    text("SELECT user_id FROM assessment_responses WHERE response_id = :id"),
                    {"id": row["response_id"]},
                )
                return bool(found.scalar_one() == 9)

        await eventually(moved)
        await eventually(lambda: scored_once(engine, [*ids, row["response_id"]]))

    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 3


async def test_no_sweep_waits_for_a_redis_that_hangs(
    make_runtime: Callable[..., Runtime],
    engine: AsyncEngine,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One ring hangs; the sweeps go on, ring no second time, and this worker serves what they find."""
    monkeypatch.setattr("worker.sweep.OVERDUE_SECONDS", 0)
    async with Proxy(make_url(redis_url).port or 6379) as redis_proxy:
        redis_proxy.silent = True
        hanging = make_url(redis_url).set(host="127.0.0.1", port=redis_proxy.port)
        runtime = make_runtime(
            redis_url=hanging.render_as_string(hide_password=False),
            redis_timeout_seconds=60,  # longer than any test
            sweep_seconds=0.02,
        )
        ids = await submit_answers(engine, 3)
        await change(engine, *ids, due_at="yesterday")
        await change(engine, ids[0], lease_losses=3)
        rung: list[int] = []
        ring = runtime.bell.ring

        async def counted(payloads: Sequence[Payload]) -> None:
            rung.append(len(payloads))
            await ring(payloads)

        monkeypatch.setattr(runtime.bell, "ring", counted)

        async with in_background(runtime.settler.run(), runtime.intake.run(), runtime.sweep.run()):
            await eventually(lambda: scored_once(engine, ids))  # the suspect, too
            async with engine.begin() as conn:
                await request_claim(conn, anonymous_token=token(), user_id=1)

            async def applied() -> bool:
                async with engine.connect() as conn:
                    return not await requested_claims(conn, age_seconds=0, limit=1)

            await eventually(applied)
            late = await submit_answers(engine, 3)
            await change(engine, *late, due_at="yesterday")
            await eventually(lambda: scored_once(engine, ids + late))

            assert len(rung) == 1
        # The ring ended with the loop: nothing uses the connection that is closed now.
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("sweep-")]
