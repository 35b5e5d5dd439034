"""Claims are applied one by one, and none that fails keeps another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import create_engine
from storage.claims import request_claim
from tests.factories import submit, token
from worker.claiming import Claimer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.producers.proxy import Proxy

pytestmark = pytest.mark.commits


async def claims(engine: AsyncEngine, number: int, *, user_id: int = 1) -> list[int]:
    """So many tokens with one answer each, to questions of their own, and a claim for each."""
    claim_ids = []
    async with engine.begin() as conn:
        for n in range(number):
            secret = token()
            await submit(conn, anonymous_token=secret, question_id=f"q{n}")
            claim_ids.append(await request_claim(conn, anonymous_token=secret, user_id=user_id))
    return claim_ids


async def owners(engine: AsyncEngine) -> list[int | None]:
    """Who owns what, oldest first."""
    async with engine.connect() as conn:
        query = text("SELECT user_id FROM assessment_responses ORDER BY response_id")
        return list((await conn.execute(query)).scalars())


async def test_claims_move_answers(engine: AsyncEngine) -> None:
    """What lies under the tokens is the user's afterwards; applying again moves nothing."""
    claim_ids = await claims(engine, 3)
    claimer = Claimer(engine)

    assert await claimer.apply(claim_ids) == 3
    assert await claimer.apply([*claim_ids, 2**62]) == 0
    assert await owners(engine) == [1, 1, 1]


async def test_two_workers_apply_a_claim_once(engine: AsyncEngine) -> None:
    """The same message at two workers moves each answer once."""
    claim_ids = await claims(engine, 5)

    moved = await asyncio.gather(*(Claimer(engine).apply(claim_ids) for _ in range(2)))

    assert sum(moved) == 5


async def test_one_that_fails_keeps_no_other(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that cannot be applied is logged with its number; the next one is applied."""
    claim_ids = await claims(engine, 3)
    from storage.claims import apply_claim  # noqa: PLC0415 - the real one, below its replacement

    async def broken(conn: AsyncConnection, claim_id: int) -> dict[str, Any] | None:
        if claim_id == claim_ids[1]:
            raise ZeroDivisionError
        return await apply_claim(conn, claim_id)

    monkeypatch.setattr("worker.claiming.apply_claim", broken)

    assert await Claimer(engine).apply(claim_ids) == 2
    assert await owners(engine) == [1, None, 1]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["claim_id"] == claim_ids[1]


async def test_a_dropped_connection_is_tried_again(
    engine: AsyncEngine, proxied_database_url: str, postgres_proxy: Proxy
) -> None:
    """A connection that ended while it was idle costs a retry, not a claim."""
    claim_ids = await claims(engine, 2)
    own = create_engine(proxied_database_url, pool_size=1)
    claimer = Claimer(own)
    await claimer.apply(claim_ids[:1])

    postgres_proxy.cut()

    assert await claimer.apply(claim_ids[1:]) == 1
    await own.dispose()


async def test_with_postgres_away_claims_wait(
    engine: AsyncEngine, proxied_database_url: str, postgres_proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is one warning for all claims of a message; they stay requested."""
    claim_ids = await claims(engine, 5)
    postgres_proxy.break_down()
    own = create_engine(proxied_database_url)

    assert await Claimer(own).apply(claim_ids) == 0

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert await owners(engine) == [None] * 5
    await own.dispose()


async def test_tokens_are_not_logged(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the claim and its user; the token is a secret."""
    caplog.set_level(logging.DEBUG)
    secret = token()
    async with engine.begin() as conn:
        claim_id = await request_claim(conn, anonymous_token=secret, user_id=1)

    await Claimer(engine).apply([claim_id])

    [record] = [record for record in caplog.records if record.name == "worker.claiming"]
    assert vars(record)["claim_id"] == claim_id
    assert secret not in str(vars(record))
