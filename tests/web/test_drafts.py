from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import pytest

from storage import claim_assessment_responses
from tests.factories import token
from tests.races import committed
from tests.web.factories import answer, as_token, as_user, fields, keyed, refusal

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.commits

PATH = "/drafts/biology/photosynthesis"


def draft(**changes: Any) -> dict[str, Any]:
    return {"answer_text": "It tur", "submission_key": str(uuid4())} | changes


@pytest.mark.parametrize("owner", [as_user(5), as_token("five")], ids=["user", "anonymous"])
async def test_a_draft_until_it_is_submitted(client: httpx.AsyncClient, owner: dict[str, str]) -> None:
    """Kept, read, submitted under the key that it carries; then it is gone, and a late save is harmless."""
    given = draft()
    saved = await client.put(PATH, json=given, headers=owner)
    assert saved.status_code == 200
    assert (
        saved.json().items() >= (given | {"module_slug": "biology", "question_id": "photosynthesis"}).items()
    )
    assert (await client.get(PATH, headers=owner)).json() == saved.json()
    assert refusal(await client.get(PATH, headers=as_user(6))) == (404, [])

    key = keyed(saved.json()["submission_key"])
    assert (await client.post("/responses", json=answer(), headers=owner | key)).status_code == 201

    assert refusal(await client.get(PATH, headers=owner)) == (404, [])
    late = await client.put(PATH, json=given, headers=owner)
    assert (late.status_code, late.content) == (204, b"")
    assert refusal(await client.get(PATH, headers=owner)) == (404, [])


async def test_a_draft_is_discarded(client: httpx.AsyncClient) -> None:
    """Once or twice."""
    await client.put(PATH, json=draft())

    for _ in range(2):
        discarded = await client.delete(PATH)
        assert (discarded.status_code, discarded.content) == (204, b"")
    assert refusal(await client.get(PATH)) == (404, [])


async def test_a_draft_moves_to_the_user_who_signs_in(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """With its key, under which he submits it."""
    mine, given = token(), draft()
    await client.put(PATH, json=given, headers=as_token(mine))
    await committed(engine, lambda conn: claim_assessment_responses(conn, anonymous_token=mine, user_id=5))

    moved = await client.get(PATH, headers=as_user(5))

    assert moved.json().items() >= given.items()
    assert refusal(await client.get(PATH, headers=as_token(mine))) == (404, [])


async def test_the_id_of_a_question_may_have_lines(client: httpx.AsyncClient) -> None:
    """A line break in the path is a part of the id."""
    saved = await client.put("/drafts/biology/first%0Asecond%0A", json=draft())
    read = await client.get("/drafts/biology/first%0Asecond%0A")

    assert (saved.status_code, read.status_code) == (200, 200)
    assert read.json()["question_id"] == "first\nsecond\n"


async def test_the_id_of_a_question_may_contain_slashes(client: httpx.AsyncClient) -> None:
    """They may be quoted or not."""
    await client.put("/drafts/biology/unit-1%2Fq", json=draft())

    found = await client.get("/drafts/biology/unit-1/q")

    assert found.json()["question_id"] == "unit-1/q"


@pytest.mark.parametrize("blank", ["", " "])
async def test_a_draft_may_be_blank(client: httpx.AsyncClient, blank: str) -> None:
    """It replaces what was there."""
    await client.put(PATH, json=draft())

    assert (await client.put(PATH, json=draft(answer_text=blank))).status_code == 200
    assert (await client.get(PATH)).json()["answer_text"] == blank


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer_text": "a" * 20_001}, "answer_text"),
        ({"answer_text": "\x00"}, "answer_text"),
        ({"answer_text": None}, "answer_text"),
        ({"submission_key": "first"}, "submission_key"),
        ({"submission_key": str(uuid5(UUID(int=0), "x"))}, "submission_key"),
        ({"submission_key": f"{{{uuid4()}}}"}, "submission_key"),
        ({"submission_key": None}, "submission_key"),
        ({"user_id": 6}, "body"),
    ],
)
async def test_a_bad_draft_is_refused(client: httpx.AsyncClient, changes: dict[str, Any], field: str) -> None:
    """With field and rule. Its key must be one that a submit takes as it is."""
    assert fields(await client.put(PATH, json=draft(**changes))) == (422, [field])
    assert refusal(await client.get(PATH)) == (404, [])


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_a_bad_question_is_refused(client: httpx.AsyncClient, method: str) -> None:
    """Whatever is done with its draft."""
    body: dict[str, Any] = {"json": draft()} if method == "PUT" else {}
    reply = await client.request(method, "/drafts/biology/%00", **body)

    assert fields(reply) == (422, ["question_id"])
