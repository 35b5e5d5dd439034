"""Requests that are cancelled anywhere: a middleware or a server that stops does that to them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.factories import count, publish
from tests.producers.waiting import eventually
from tests.races import committed
from tests.web.factories import answer, keyed

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.web.host import Host

pytestmark = pytest.mark.commits

DRAFT = "/drafts/biology/photosynthesis"
# How many steps of the event loop later the next request is cancelled, and after how many at most.
STRIDE = 12
MOST_STEPS = 3_000

# Answers without a handoff, and handoffs without an answer.
_ALONE = text("""
    SELECT count(*) FROM assessment_responses AS r FULL JOIN scoring_handoffs AS h USING (response_id)
    WHERE h.handoff_id IS NULL OR r.submission_key IS NULL
""")


def _requests() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("POST", "/responses", {"json": answer(), "headers": keyed()}),
        ("GET", "/responses", {}),
        ("PUT", DRAFT, {"json": {"answer_text": "It tur", "submission_key": str(uuid4())}}),
        ("GET", DRAFT, {}),
        ("DELETE", DRAFT, {"headers": {"If-Match": '"1-1"'}}),
        ("POST", "/claims", {"json": {}, "headers": {"x-held": "mine"}}),
    ]


@pytest.mark.parametrize(
    "number", range(len(_requests())), ids=lambda number: " ".join(_requests()[number][:2])
)
async def test_a_request_that_is_cancelled_anywhere_leaves_nothing_behind(
    host: Host, client: httpx.AsyncClient, engine: AsyncEngine, number: int
) -> None:
    """Every connection comes back, in a state in which the next one can use it, and no answer is without a handoff."""
    await committed(engine, publish)
    pool: Any = host.engine.pool
    method, path, options = _requests()[number]
    await client.request(method, path, **options)  # from now on there is a connection
    requests = 1

    for steps in range(0, MOST_STEPS, STRIDE):
        method, path, options = _requests()[number]
        request = asyncio.create_task(client.request(method, path, **options))
        for _ in range(steps):
            await asyncio.sleep(0)
        is_over = not request.cancel()
        requests += 1
        with contextlib.suppress(asyncio.CancelledError):
            assert (await request).status_code < 500
        if is_over:
            break

    await eventually(lambda: pool.checkedout() == 0)
    method, path, options = _requests()[number]
    assert (await client.request(method, path, **options)).status_code < 500
    assert await committed(engine, _alone) == 0
    assert await committed(engine, lambda conn: count(conn, "assessment_responses")) <= requests + 1


async def _alone(conn: AsyncConnection) -> int:
    return int((await conn.execute(_ALONE)).scalar_one())
