from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import pytest

from producers.web import Identity
from producers.web.idempotency import submission_key
from storage import claim_assessment_responses, submit_response
from storage.claims import apply_claim
from tests.factories import count, token
from tests.races import committed
from tests.web.factories import KEY, answer, as_token, as_user, fields, keyed, refusal, submitted

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits

KEYS = [
    pytest.param("8e03978e-40d5-43e8-bc93-6894a57f9324", id="uuid"),
    pytest.param("first-answer", id="text"),
    pytest.param(str(uuid5(UUID(int=0), "x")), id="version 5"),
]


async def stored(engine: AsyncEngine) -> int:
    return await committed(engine, lambda conn: count(conn, "assessment_responses"))


@pytest.mark.parametrize("key", KEYS)
async def test_a_repetition_gets_the_same_reply(
    client: httpx.AsyncClient, engine: AsyncEngine, key: str
) -> None:
    """Whether the first reply was lost or not, and with quotation marks around the key or without: one row."""
    replies = [
        await client.post("/responses", json=answer(), headers=keyed(spelled))
        for spelled in (key, key, f'"{key}"')
    ]

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.content for reply in replies}) == 1
    assert await stored(engine) == 1


@pytest.mark.parametrize("key", KEYS)
async def test_two_tabs_at_once(client: httpx.AsyncClient, engine: AsyncEngine, key: str) -> None:
    """Twenty requests with one key at the same moment store one answer, and all get the same reply."""
    replies = await asyncio.gather(
        *(client.post("/responses", json=answer(), headers=keyed(key)) for _ in range(20))
    )

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.content for reply in replies}) == 1
    assert await stored(engine) == 1


async def test_two_processes_at_once(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Also where they reach different processes: the database knows the key, not the process."""
    key = uuid4()

    async def of_another_process() -> dict[str, Any]:
        return await committed(
            engine, lambda conn: submit_response(conn, user_id=1, submission_key=key, **answer())
        )

    row, *replies = await asyncio.gather(
        of_another_process(),
        *(client.post("/responses", json=answer(), headers=keyed(key)) for _ in range(3)),
    )

    assert {reply.json()["id"] for reply in replies} == {row["response_id"]}
    assert await stored(engine) == 1


async def test_without_a_key_every_call_is_an_attempt(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A student may answer the same twice."""
    await submitted(client)
    await submitted(client)

    assert await stored(engine) == 2


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "changes", [{"answer_text": "another"}, {"question_id": "another"}, {"module_slug": "another"}]
)
async def test_a_key_stands_for_one_answer(
    client: httpx.AsyncClient, engine: AsyncEngine, key: str, changes: dict[str, Any]
) -> None:
    """A page that uses it again would lose the second answer without a word: it is refused."""
    first = await client.post("/responses", json=answer(), headers=keyed(key))

    second = await client.post("/responses", json=answer(**changes), headers=keyed(key))

    assert fields(second) == (422, [KEY])
    assert second.json()["type"] == "urn:assessment-scoring:key-used"
    assert await stored(engine) == 1
    assert (await client.get("/responses")).json()["items"] == [first.json()]


async def test_of_two_answers_at_once_with_one_key_one_is_stored(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """And every request for the other one is told that it was not."""
    key = uuid4()
    replies = await asyncio.gather(
        *(
            client.post("/responses", json=answer(answer_text=f"text {number % 2}"), headers=keyed(key))
            for number in range(20)
        )
    )

    assert [reply.status_code for reply in replies].count(201) == 10
    assert [reply.status_code for reply in replies].count(422) == 10
    winners = {reply.json()["answer_text"] for reply in replies if reply.status_code == 201}
    assert len(winners) == 1
    assert await stored(engine) == 1


async def test_metadata_may_differ(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A page that counts seconds counts on while it tries again; the first counts."""
    key = keyed()
    replies = [
        await client.post("/responses", json=answer(answer_metadata={"seconds": number}), headers=key)
        for number in range(2)
    ]

    assert replies[0].content == replies[1].content
    assert await stored(engine) == 1


async def test_the_uuid_of_somebody_else_says_nothing(client: httpx.AsyncClient) -> None:
    """The refusal is the same, byte for byte, as for a key of one's own that stands for another answer."""
    theirs, own = uuid4(), uuid4()
    await submitted(client, headers=as_user(6) | keyed(theirs))
    await submitted(client, headers=keyed(own))

    of_theirs = await client.post("/responses", json=answer(), headers=keyed(theirs))
    of_own = await client.post("/responses", json=answer(answer_text="another"), headers=keyed(own))

    assert refusal(of_theirs)[0] == 422
    assert of_theirs.content == of_own.content
    assert of_theirs.headers == of_own.headers


async def test_keys_of_two_students_never_meet(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Every page may call its first answer "1"."""
    mine, theirs = token(), token()
    owners = [as_user(5), as_user(6), as_token(mine), as_token(theirs), as_token("5")]

    ids = {await submitted(client, headers=owner | keyed("1")) for owner in owners}

    assert len(ids) == await stored(engine) == 5


async def test_nobody_uses_up_the_key_of_another_student(client: httpx.AsyncClient) -> None:
    """Whoever guesses which UUID a short key of his becomes cannot take it before him."""
    guessed = submission_key(Identity(user_id=6), "1")

    await submitted(client, headers=as_user(5) | keyed(guessed))

    await submitted(client, headers=as_user(6) | keyed("1"))


@pytest.mark.parametrize("key", KEYS)
async def test_a_retry_under_the_token_after_its_claim(
    client: httpx.AsyncClient, engine: AsyncEngine, key: str
) -> None:
    """Another tab still has the old cookie: it gets the reply that was lost, and no second row."""
    mine = token()
    first = await client.post("/responses", json=answer(), headers=as_token(mine) | keyed(key))
    await committed(engine, lambda conn: claim(conn, mine))

    again = await client.post("/responses", json=answer(), headers=as_token(mine) | keyed(key))

    assert again.content == first.content
    assert await stored(engine) == 1


async def test_a_retry_by_the_user_after_the_claim(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """With a UUID the student may sign in between two tries; whoever did not claim it is refused."""
    mine, key = token(), uuid4()
    first = await client.post("/responses", json=answer(), headers=as_token(mine) | keyed(key))
    await committed(engine, lambda conn: claim(conn, mine))

    again = await client.post("/responses", json=answer(), headers=as_user(5) | keyed(key))
    other = await client.post("/responses", json=answer(), headers=as_user(6) | keyed(key))

    assert again.content == first.content
    assert fields(other) == (422, [KEY])
    assert await stored(engine) == 1


async def test_a_retry_by_the_user_before_the_claim_is_applied(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """The claim is stored and no worker has looked at it yet: one row, and the reply that was lost; it is his in a moment.

    Another user, who claims nothing or another token, is refused as ever.
    """
    mine, theirs, key = token(), token(), uuid4()
    first = await client.post("/responses", json=answer(), headers=as_token(mine) | keyed(key))
    before = await client.post("/responses", json=answer(), headers=as_user(5) | keyed(key))
    claimed = await client.post("/claims", json={}, headers=as_user(5) | {"x-held": mine})
    await client.post("/claims", json={}, headers=as_user(6) | {"x-held": theirs})

    again = await client.post("/responses", json=answer(), headers=as_user(5) | keyed(key))
    changed = await client.post("/responses", json=answer(answer_text="?"), headers=as_user(5) | keyed(key))
    other = await client.post("/responses", json=answer(), headers=as_user(6) | keyed(key))

    assert fields(before) == (422, [KEY])
    assert (again.status_code, again.content) == (201, first.content)
    assert fields(changed) == (422, [KEY])
    assert fields(other) == (422, [KEY])
    applied = await committed(engine, lambda conn: apply_claim(conn, claimed.json()["claim_id"]))
    assert applied is not None
    assert applied["moved"] == 1
    assert await stored(engine) == 1


async def test_a_retry_of_what_no_claim_moves_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """The user had answered that question: what stays under the token is not shown to him as his own."""
    mine, key = token(), uuid4()
    await submitted(client, headers=as_user(5))
    await submitted(client, headers=as_token(mine) | keyed(key))
    claimed = await client.post("/claims", json={}, headers=as_user(5) | {"x-held": mine})
    await committed(engine, lambda conn: apply_claim(conn, claimed.json()["claim_id"]))

    assert fields(await client.post("/responses", json=answer(), headers=as_user(5) | keyed(key))) == (
        422,
        [KEY],
    )


async def claim(conn: AsyncConnection, anonymous_token: str) -> None:
    assert await claim_assessment_responses(conn, anonymous_token=anonymous_token, user_id=5) == 1


@pytest.mark.parametrize("key", ["", "a b", "k" * 131, "k\x7f", "ü"])
async def test_a_key_that_cannot_be_is_refused(client: httpx.AsyncClient, key: str) -> None:
    """With field and rule; nothing is stored."""
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    reply = await client.post("/responses", json=answer(), headers=headers)

    assert fields(reply) == (422, [KEY])
    assert (await client.get("/responses")).json()["items"] == []


async def test_two_keys_are_refused(client: httpx.AsyncClient) -> None:
    """Nobody could tell which of them counts."""
    reply = await client.post("/responses", json=answer(), headers=[(KEY, "one"), (KEY, "two")])

    assert fields(reply) == (422, [KEY])
