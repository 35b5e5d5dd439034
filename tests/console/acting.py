"""Dead answers to act on, and acting as a person does: follow a link, be asked, say yes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from storage import submit_responses
from storage.dead_kinds import dead_kinds
from storage.tables import handoffs
from tests.factories import bury, publish, submission
from tests.races import committed

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

SECRET_ANSWER, SECRET_TOKEN = "canary-answer-c0ffee", "canary-token-c0ffee"
REFUSED, TOO_LONG = "The model refuses <this> answer & says so.", "The reply is too long."
# What a browser says of a form on our own pages.
POST = {"Sec-Fetch-Site": "same-origin"}


async def bury_answers(engine: AsyncEngine, *reasons: str) -> list[int]:
    """Dead answers, whose text and token must be seen nowhere."""

    async def work(conn: AsyncConnection) -> list[int]:
        await publish(conn)
        rows = await submit_responses(
            conn, [submission(anonymous_token=SECRET_TOKEN, answer_text=SECRET_ANSWER) for _ in reasons]
        )
        for row, reason in zip(rows, reasons, strict=True):
            await bury(conn, row["response_id"], reason=reason)
        return [int(row["response_id"]) for row in rows]

    return await committed(engine, work)


async def states(engine: AsyncEngine) -> dict[int, str]:
    async with engine.connect() as conn:
        rows = await conn.execute(handoffs.select())
        return {row.response_id: row.state for row in rows}


async def kind_of(engine: AsyncEngine, reason: str) -> dict[str, Any]:
    async with engine.connect() as conn:
        return next(kind for kind in await dead_kinds(conn) if kind["reason"] == reason)


def field(page: str, name: str) -> str:
    """The value of a hidden field."""
    match = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert match, page
    return match[1]


async def asked_form(client: httpx.AsyncClient, **query: Any) -> dict[str, str]:
    """Follow a link to the question, and fill in what its yes would send."""
    asked = await client.get("/console/ask", params=query)
    assert asked.status_code == 200, asked.text
    names = [
        name
        for name in ("csrf", "action", "response_id", "seen", "kind", "until")
        if f'name="{name}"' in asked.text
    ]
    return {name: field(asked.text, name) for name in names}


async def agreed(client: httpx.AsyncClient, form: dict[str, str]) -> httpx.Response:
    """Answer a question with yes."""
    return await client.post("/console/act", data=form, headers=POST)


async def confirmed(client: httpx.AsyncClient, **query: Any) -> httpx.Response:
    """Follow a link to the question, and answer it with yes."""
    return await agreed(client, await asked_form(client, **query))
