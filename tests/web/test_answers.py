from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from storage.dead import rescore_responses
from storage.settlements import settle_handoffs
from storage.tables import responses
from tests.factories import QUESTION, handoff_of, publish, settlement, token
from tests.races import committed
from tests.web.factories import answer, as_token, as_user, fields, refusal, submitted

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits


async def score(conn: AsyncConnection, response_id: int, overall_score: float) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff, overall_score=overall_score)])


@pytest.mark.parametrize("owner", [as_user(5), as_token("five")], ids=["user", "anonymous"])
async def test_an_answer_goes_in_and_comes_back(
    client: httpx.AsyncClient, engine: AsyncEngine, owner: dict[str, str]
) -> None:
    """The reply is the answer as it waits; list and single read show it, and its score once there is one."""
    await committed(engine, publish)

    stored = await client.post("/responses", json=answer(), headers=owner)

    assert stored.status_code == 201
    shown = stored.json()
    assert shown.pop("created_at").startswith("20")
    assert shown == {"id": shown["id"], **answer(), "state": "waiting", "score": None}
    listed = await client.get("/responses", headers=owner)
    assert listed.json() == {"items": [stored.json()], "next_cursor": None}
    one = await client.get(f"/responses/{shown['id']}", headers=owner)
    assert one.json() == stored.json() | {"scores": []}

    async with engine.begin() as conn:
        await score(conn, shown["id"], 2.0)
        await rescore_responses(conn, response_ids=[shown["id"]])
        await publish(conn, rubric="another")
        await rescore_responses(conn, response_ids=[shown["id"]])
        await score(conn, shown["id"], 4.0)

    one = await client.get(f"/responses/{shown['id']}", headers=owner)
    scores = one.json()["scores"]
    assert one.json()["state"] == "scored"
    assert one.json()["score"] == scores[0]
    assert [each["overall_score"] for each in scores] == [4.0, 2.0]
    assert (
        scores[0].items()
        >= {
            "scale_min": 1.0,
            "scale_max": 5.0,
            "reasoning": "Names both.",
            "dimensions": [],
            "model_id": "test-model",
        }.items()
    )
    [item] = (await client.get("/responses", headers=owner)).json()["items"]
    assert item == {name: value for name, value in one.json().items() if name != "scores"}
    assert one.headers["cache-control"] == "no-store"


async def test_an_answer_to_an_unpublished_question_is_stored(client: httpx.AsyncClient) -> None:
    """And says so."""
    reply = await client.post("/responses", json=answer(question_id="not yet"))

    assert (reply.status_code, reply.json()["state"]) == (201, "unpublished")


async def test_pages_have_neither_gaps_nor_repeats(client: httpx.AsyncClient) -> None:
    """Answers that arrive between two pages do not shift what is still to be read; the last page has no cursor."""
    expected = [await submitted(client) for _ in range(7)]
    seen: list[int] = []
    cursor: str | None = None
    while True:
        query: dict[str, Any] = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = (await client.get("/responses", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        await submitted(client)
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == expected[::-1]


async def test_a_page_that_is_just_full_is_the_last(client: httpx.AsyncClient) -> None:
    """No cursor leads to an empty page."""
    await submitted(client)
    await submitted(client)

    assert (await client.get("/responses?limit=2")).json()["next_cursor"] is None


async def test_the_id_of_a_question_may_have_lines(client: httpx.AsyncClient) -> None:
    """What can be submitted can be asked for: a line break in the path is a part of the id, and no other page."""
    answer_id = await submitted(client, question_id="first\nsecond\n")

    reply = await client.get("/questions/first%0Asecond%0A/responses")

    assert reply.status_code == 200, reply.text
    assert [item["id"] for item in reply.json()["items"]] == [answer_id]


async def test_filters(client: httpx.AsyncClient) -> None:
    """By module, by question, and by the path of a question, whose id may contain anything."""
    odd = "unit 1/ä?&%2F"
    ids = {
        (module, question): await submitted(client, module_slug=module, question_id=question)
        for module in ("m1", "m2")
        for question in ("q", odd)
    }

    async def found(path: str, **query: str) -> list[int]:
        reply = await client.get(path, params=query)
        assert reply.status_code == 200, reply.text
        return [item["id"] for item in reply.json()["items"]]

    assert await found("/responses", module_slug="m1") == [ids["m1", odd], ids["m1", "q"]]
    assert await found("/responses", question_id=odd) == [ids["m2", odd], ids["m1", odd]]
    assert await found("/responses", module_slug="m1", question_id=odd) == [ids["m1", odd]]
    assert await found("/questions/q/responses") == [ids["m2", "q"], ids["m1", "q"]]
    quoted = "unit%201%2F%C3%A4%3F%26%252F"
    assert await found(f"/questions/{quoted}/responses", module_slug="m2") == [ids["m2", odd]]
    assert await found("/responses", module_slug="m3") == []


async def test_the_answer_of_somebody_else_does_not_exist(client: httpx.AsyncClient) -> None:
    """The reply is the same, byte for byte, as for an id that nobody has."""
    mine, theirs = token(), token()
    ids = [await submitted(client, headers=as_user(6)), await submitted(client, headers=as_token(theirs))]

    for caller in (as_user(5), as_token(mine)):
        replies = [await client.get(f"/responses/{number}", headers=caller) for number in (*ids, 2**62)]
        assert refusal(replies[0]) == (404, [])
        assert len({reply.content for reply in replies}) == 1
        assert len({frozenset(reply.headers.items()) for reply in replies}) == 1
        for path in ("/responses", f"/questions/{QUESTION}/responses"):
            assert (await client.get(path, headers=caller)).json()["items"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/responses?limit=0", "limit"),
        ("/responses?limit=101", "limit"),
        ("/responses?limit=many", "limit"),
        ("/responses?cursor=", "cursor"),
        ("/responses?cursor=42", "cursor"),
        ("/responses?cursor=AgAAAAAAAAAq", "cursor"),
        ("/responses?cursor=AQAAAAAAAAAq%0A", "cursor"),
        ("/responses?module_slug=", "module_slug"),
        ("/responses?question_id=%00", "question_id"),
        ("/responses?question_id=" + "q" * 201, "question_id"),
        ("/questions/%20/responses", "question_id"),
        ("/questions//responses", "question_id"),
        (f"/questions/{QUESTION}/responses?module_slug=a%00", "module_slug"),
        ("/responses/0", "response_id"),
        ("/responses/one", "response_id"),
        (f"/responses/{2**63}", "response_id"),
    ],
)
async def test_a_bad_question_is_refused(client: httpx.AsyncClient, path: str, field: str) -> None:
    """The reply names what is wrong."""
    assert fields(await client.get(path)) == (422, [field])


async def test_the_cursor_of_somebody_else_shows_nothing_of_his(client: httpx.AsyncClient) -> None:
    """It is a place, not a permission."""
    mine = await submitted(client)
    for _ in range(2):
        await submitted(client, headers=as_user(6))
    cursor = (await client.get("/responses?limit=1", headers=as_user(6))).json()["next_cursor"]

    assert [item["id"] for item in (await client.get(f"/responses?cursor={cursor}")).json()["items"]] == [
        mine
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer_text": " "}, "answer_text"),
        ({"answer_text": "\u200b"}, "answer_text"),
        ({"answer_text": "a\x00"}, "answer_text"),
        ({"answer_text": "a" * 20_001}, "answer_text"),
        ({"answer_text": 3}, "answer_text"),
        ({"answer_text": None}, "answer_text"),
        ({"module_slug": ""}, "module_slug"),
        ({"question_id": "q" * 201}, "question_id"),
        ({"learning_outcome_id": ""}, "learning_outcome_id"),
        ({"content_id": ["x"]}, "content_id"),
        ({"answer_metadata": "text"}, "answer_metadata"),
        ({"answer_metadata": {"a": "\x00"}}, "answer_metadata"),
        ({"answer_metadata": {"a": "a" * 17_000}}, "answer_metadata"),
        ({"submission_key": "x"}, "body"),
        ({"user_id": 2}, "body"),
    ],
)
async def test_a_bad_answer_is_refused(
    client: httpx.AsyncClient, changes: dict[str, Any], field: str
) -> None:
    """The reply names the field and the rule; nothing is stored. An owner in the body is no owner."""
    assert fields(await client.post("/responses", json=answer(**changes))) == (422, [field])
    assert (await client.get("/responses")).json()["items"] == []


async def test_references_and_metadata_are_stored(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """As they were given."""
    given: dict[str, Any] = {
        "learning_outcome_id": "lo-1",
        "content_id": "c",
        "answer_metadata": {"seconds": 12.5, "é": [None]},
    }

    response_id = await submitted(client, **given)

    async with engine.connect() as conn:
        row = (await conn.execute(select(responses))).mappings().one()
    assert row["response_id"] == response_id
    assert {name: row[name] for name in given} == given
