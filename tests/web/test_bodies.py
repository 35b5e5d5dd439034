from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from producers.web.bodies import max_body_bytes
from tests.factories import count
from tests.races import committed
from tests.web.factories import answer, fields, refusal
from tests.web.host import Host, host_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.commits

JSON = {"content-type": "application/json"}
LIMIT = max_body_bytes(20_000)
PATHS = [("POST", "/responses"), ("PUT", "/drafts/m/q"), ("POST", "/claims")]
CHUNK = b" " * 10_000


class Endless:
    """A body that never ends, in chunks, and counts how many of them were asked for."""

    def __init__(self) -> None:
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.read += 1
            yield CHUNK


async def received(
    app: FastAPI, path: str, chunks: list[bytes], headers: list[tuple[bytes, bytes]]
) -> tuple[int, int]:
    """Send a request as a server would; returns the status and how many chunks the app has read."""
    read = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read == len(chunks):
            return {"type": "http.disconnect"}
        read += 1
        return {"type": "http.request", "body": chunks[read - 1], "more_body": read < len(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-user", b"1"), *headers],
    }
    await app(scope, receive, send)
    return sent[0]["status"], read


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_body_without_an_end_is_refused(client: httpx.AsyncClient, method: str, path: str) -> None:
    """It says nothing of its length; no more of it is read than fits, and one piece."""
    body = Endless()

    reply = await client.request(method, path, content=body, headers=JSON)

    assert fields(reply) == (413, ["body"])
    assert body.read <= LIMIT // len(CHUNK) + 2


async def test_a_large_body_is_refused_unread(app: FastAPI) -> None:
    """Its length is known; nothing of it is read."""
    declared = [(b"content-length", str(10**30).encode())]

    assert await received(app, "/assessment/responses", [CHUNK] * 100, declared) == (413, 0)


async def test_a_length_that_lies_does_not_help(app: FastAPI) -> None:
    """What comes counts, not what was said."""
    declared = [(b"content-length", b"10")]

    status, read = await received(app, "/assessment/responses", [CHUNK] * 100, declared)

    assert (status, read) == (413, LIMIT // len(CHUNK) + 1)


async def test_an_answer_of_full_length_fits_however_it_is_spelled(client: httpx.AsyncClient) -> None:
    """Every character as two escapes, with the largest metadata and the longest references."""
    longest = answer(
        answer_text="\U0001f600" * 20_000,
        learning_outcome_id="\U0001f600" * 200,
        content_id="\U0001f600" * 200,
        answer_metadata={"m": "\U0001f600" * 4_000},
    )
    body = json.dumps(longest, ensure_ascii=True, indent=1)
    assert len(body) < LIMIT

    reply = await client.post("/responses", content=body, headers=JSON)

    assert reply.status_code == 201, reply.text
    assert reply.json()["answer_text"] == longest["answer_text"]


async def test_a_host_may_set_the_limit(host: Host) -> None:
    """For one character less than was given."""
    import httpx as client_of  # noqa: PLC0415

    app = host_app(host, max_answer_chars=10)
    async with client_of.AsyncClient(
        transport=client_of.ASGITransport(app), base_url="http://host/assessment", headers={"x-user": "1"}
    ) as client:
        too_large = await client.post("/responses", content=CHUNK * 40, headers=JSON)
        key = "8e03978e-40d5-43e8-bc93-6894a57f9324"
        draft = {"answer_text": "a" * 11, "submission_key": key}
        too_long = await client.put("/drafts/m/q", json=draft)

    assert fields(too_large) == (413, ["body"])
    assert fields(too_long) == (422, ["answer_text"])


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/problem+json"},
    ],
)
async def test_what_a_form_of_another_site_can_send_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str, headers: dict[str, str]
) -> None:
    """A browser sends JSON to a foreign site only when that allows it; everything else is refused, empty or not."""
    for body in (json.dumps(answer()).encode(), b""):
        reply = await client.request(method, path, content=body, headers={"x-held": "t"} | headers)
        assert fields(reply) == (415, ["Content-Type"])
    for table in ("assessment_responses", "assessment_drafts", "assessment_claims"):
        assert await committed(engine, lambda conn, table=table: count(conn, table)) == 0  # type: ignore[misc]


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_in_any_spelling_is_accepted(client: httpx.AsyncClient, kind: str) -> None:
    """As media types are written."""
    reply = await client.post("/responses", content=json.dumps(answer()), headers={"content-type": kind})

    assert reply.status_code == 201


def with_text(raw: bytes) -> bytes:
    return b'{"module_slug": "m", "question_id": "q", "answer_text": ' + raw + b"}"


def with_metadata(raw: bytes) -> bytes:
    return (
        b'{"module_slug": "m", "question_id": "q", "answer_text": "a", "answer_metadata": {"m": '
        + raw
        + b"}}"
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="UTF-16"),
        pytest.param(with_text(b'"\xff"'), id="no UTF-8"),
        pytest.param(with_text(b'"\xed\xa0\x80"'), id="surrogate in UTF-8"),
        pytest.param(with_text(rb'"\ud800"'), id="lone surrogate"),
        pytest.param(with_text(rb'"\udc00 \ud83d"'), id="surrogates in the wrong order"),
        pytest.param(with_text(b'"\x00"'), id="raw NUL"),
        pytest.param(with_metadata(b"NaN"), id="NaN"),
        pytest.param(with_metadata(b"-Infinity"), id="Infinity"),
        pytest.param(with_metadata(b"[" * 100_000 + b"]" * 100_000), id="deep lists"),
        pytest.param(with_metadata(b'{"a":' * 20_000 + b"1" + b"}" * 20_000), id="deep objects"),
        pytest.param(with_metadata(b"1" * 100_000), id="endless number"),
        pytest.param(with_text(b'"a"') + b"x", id="more behind it"),
    ],
)
async def test_what_is_no_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    """Nothing is stored, and the reply quotes nothing."""
    reply = await client.post("/responses", content=body, headers=JSON)

    status, found = fields(reply)
    assert (status, found) in [(400, ["body"]), (422, ["body"]), (422, ["answer_metadata"])]
    assert (await client.get("/responses")).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(with_text(rb'"a\u0000"'), "answer_text", id="escaped NUL"),
        pytest.param(with_metadata(rb'"\u0000"'), "answer_metadata", id="escaped NUL in metadata"),
        pytest.param(with_metadata(b"[" * 50 + b"]" * 50), "answer_metadata", id="too deep"),
        pytest.param(with_metadata(b"1e999"), "answer_metadata", id="beyond every number"),
        pytest.param(b"[]", "body", id="list"),
        pytest.param(b'"text"', "body", id="text"),
        pytest.param(b"null", "body", id="null"),
    ],
)
async def test_json_that_cannot_be_stored_is_refused(
    client: httpx.AsyncClient, body: bytes, field: str
) -> None:
    """With the field."""
    reply = await client.post("/responses", content=body, headers=JSON)

    assert fields(reply) == (422, [field])


async def test_a_client_that_goes_in_the_middle_stores_nothing(app: FastAPI, engine: AsyncEngine) -> None:
    """What it sent is not taken for the whole."""
    whole = json.dumps(answer()).encode()
    read = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not read.is_set():
            read.set()
            return {"type": "http.request", "body": whole, "more_body": True}
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/assessment/responses",
        "raw_path": b"/assessment/responses",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-user", b"1")],
    }
    await app(scope, receive, send)

    assert await committed(engine, lambda conn: count(conn, "assessment_responses")) == 0


async def test_refusals_of_bodies_are_not_cached(client: httpx.AsyncClient) -> None:
    """Nothing is."""
    assert refusal(await client.post("/responses", content=b"{", headers=JSON))[0] == 400
