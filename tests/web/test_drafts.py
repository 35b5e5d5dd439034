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


async def test_a_late_request_spoils_no_newer_draft(client: httpx.AsyncClient) -> None:
    """A save or a discard that names the version it knew has no effect on a later one, however late it is sent again."""
    first = await client.put(PATH, json=draft(answer_text="1"))
    known = {"If-Match": first.headers["etag"]}
    second = await client.put(PATH, json=draft(answer_text="2"), headers=known)

    late_save = await client.put(PATH, json=draft(answer_text="1a"), headers=known)
    late_discard = await client.delete(PATH, headers=known)

    assert fields(late_save) == fields(late_discard) == (412, ["If-Match"])
    read = await client.get(PATH)
    assert read.json() == second.json()
    assert read.headers["etag"] == second.headers["etag"] != first.headers["etag"]
    assert (await client.delete(PATH, headers={"If-Match": read.headers["etag"]})).status_code == 204


async def test_a_late_save_does_not_bring_a_discarded_draft_back(client: httpx.AsyncClient) -> None:
    """And a discard that is sent again finds none, which is what it wanted; but not a draft begun since."""
    saved = await client.put(PATH, json=draft())
    known = {"If-Match": saved.headers["etag"]}
    for _ in range(2):
        assert (await client.delete(PATH, headers=known)).status_code == 204

    assert fields(await client.put(PATH, json=draft(), headers=known)) == (412, ["If-Match"])
    assert fields(await client.put(PATH, json=draft(), headers={"If-Match": "*"})) == (412, ["If-Match"])
    assert (await client.get(PATH)).status_code == 404
    await client.put(PATH, json=draft())
    assert fields(await client.delete(PATH, headers=known)) == (412, ["If-Match"])


async def test_a_late_save_of_what_was_submitted(client: httpx.AsyncClient) -> None:
    """Stores nothing, with the version it knew or without, also when a new draft was begun since."""
    given = draft()
    saved = await client.put(PATH, json=given)
    await client.post("/responses", json=answer(), headers=keyed(given["submission_key"]))
    begun = await client.put(PATH, json=draft(answer_text="again"))

    for headers in ({}, {"If-Match": saved.headers["etag"]}):
        assert (await client.put(PATH, json=given, headers=headers)).status_code == 204
    assert (await client.get(PATH)).json() == begun.json()


@pytest.mark.parametrize(
    ("if_match", "matches"),
    [
        ("*", True),
        ('"x", {}', True),
        ("", False),
        ('"x"', False),
        ("W/{}", False),
        ('"', False),
        ("{}x{}", True),
        ('"*"', False),
    ],
)
async def test_what_an_if_match_names(client: httpx.AsyncClient, if_match: str, matches: bool) -> None:  # noqa: FBT001
    """Any draft, one of several, or none; whatever else it may be is no version of ours. Weak ones never match."""
    etag = (await client.put(PATH, json=draft())).headers["etag"]

    reply = await client.delete(PATH, headers={"If-Match": if_match.replace("{}", etag)})

    assert reply.status_code == (204 if matches else 412)


async def test_a_version_of_somebody_else_is_none(client: httpx.AsyncClient) -> None:
    """It names no draft of one's own, and says nothing about the other's."""
    etag = (await client.put(PATH, json=draft(), headers=as_user(6))).headers["etag"]

    saved = await client.put(PATH, json=draft(), headers={"If-Match": etag})
    discarded = await client.delete(PATH, headers={"If-Match": etag})

    assert fields(saved) == (412, ["If-Match"])
    assert discarded.status_code == 204
    assert (await client.get(PATH, headers=as_user(6))).headers["etag"] == etag


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
