from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from storage.claims import apply_claim
from tests.factories import count, token
from tests.races import committed
from tests.web.factories import as_token, as_user, fields, refusal, submitted

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.commits


async def test_a_claim_is_stored_for_a_worker(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """What the browser's token has becomes the user's once a worker applies it."""
    mine = token()
    response_id = await submitted(client, headers=as_token(mine))

    reply = await client.post("/claims", json={}, headers=as_user(5) | {"x-held": mine})

    assert reply.status_code == 202
    assert await committed(engine, lambda conn: apply_claim(conn, reply.json()["claim_id"])) is not None
    assert (await client.get(f"/responses/{response_id}", headers=as_user(5))).status_code == 200
    assert refusal(await client.get(f"/responses/{response_id}", headers=as_token(mine))) == (404, [])


@pytest.mark.parametrize("caller", [as_user(5), as_token("mine"), as_token("mine") | {"x-held": "theirs"}])
async def test_who_may_not_claim(
    client: httpx.AsyncClient, engine: AsyncEngine, caller: dict[str, str]
) -> None:
    """Nobody who is not signed in, and nothing that the host does not allow."""
    assert refusal(await client.post("/claims", json={}, headers=caller)) == (403, [])
    assert await committed(engine, lambda conn: count(conn, "assessment_claims")) == 0


async def test_a_token_in_the_body_claims_nothing(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Whoever knows a token could send it."""
    reply = await client.post("/claims", json={"anonymous_token": "theirs"}, headers={"x-held": "mine"})

    assert fields(reply) == (422, ["body"])
    assert await committed(engine, lambda conn: count(conn, "assessment_claims")) == 0


async def test_a_user_who_is_gone_claims_nothing(client: httpx.AsyncClient) -> None:
    """His session outlived him; the reply does not call that his mistake in a field."""
    reply = await client.post("/claims", json={}, headers=as_user(999_999) | {"x-held": "mine"})

    assert refusal(reply) == (403, [])


async def test_a_claim_may_be_repeated(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A double click stores two requests, of which the second finds nothing to move."""
    for _ in range(2):
        assert (await client.post("/claims", json={}, headers={"x-held": "mine"})).status_code == 202

    async with engine.connect() as conn:
        found = await conn.execute(text("SELECT user_id, anonymous_token FROM assessment_claims"))
        assert found.all() == [(1, "mine")] * 2
