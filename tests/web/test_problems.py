from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from demo.servers import free_port
from producers import Producer
from producers.bell import connect_redis
from producers.web import Identity
from storage import create_engine
from tests.web.factories import PROBLEM, answer, as_token, fields, keyed, refusal
from tests.web.host import Host, host_app, host_router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


pytestmark = pytest.mark.commits

CANARY = "zugunruhe"
JSON = {"content-type": "application/json"}
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/responses", answer()),
    ("GET", "/responses", None),
    ("GET", "/responses/1", None),
    ("GET", "/questions/q/responses", None),
    ("POST", "/claims", {}),
    ("PUT", "/drafts/m/q", {"answer_text": "a", "submission_key": KEY}),
    ("GET", "/drafts/m/q", None),
    ("DELETE", "/drafts/m/q", None),
]


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(
        transport=transport,
        base_url="http://host/assessment",
        headers={"x-user": "1", "x-held": "held"},
    )


async def ask(client: httpx.AsyncClient, route: tuple[str, str, Any], **options: Any) -> httpx.Response:
    method, path, body = route
    return await client.request(method, path, **({} if body is None else {"json": body}), **options)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_who_is_unknown_is_told_so(client: httpx.AsyncClient, route: tuple[str, str, Any]) -> None:
    """With what the host raised: its status, sentence and headers."""
    reply = await ask(client, route, headers={"x-user": ""})

    assert refusal(reply) == (401, [])
    assert reply.json()["detail"] == "Sign in first."
    assert reply.headers["www-authenticate"] == "Session"


@pytest.fixture
async def away(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose database is away."""
    engine = create_engine(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    redis = connect_redis(redis_url, timeout_seconds=10)
    producer = Producer(engine, redis)
    async with client_of(host_app(Host(engine=engine, producer=producer))) as client:
        yield client
    await producer.close()
    await redis.aclose()
    await engine.dispose()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
async def test_a_database_that_is_away(away: httpx.AsyncClient, route: tuple[str, str, Any]) -> None:
    """Every route says when to come back."""
    reply = await ask(away, route)

    assert refusal(reply) == (503, [])
    assert int(reply.headers["retry-after"]) > 0


async def test_a_producer_that_closes(host: Host, client: httpx.AsyncClient) -> None:
    """A server that is being stopped refuses what comes now; another one will take it."""
    await host.producer.close()

    reply = await client.post("/responses", json=answer(), headers=keyed())

    assert refusal(reply) == (503, [])
    assert "retry-after" in reply.headers


async def test_a_database_without_our_tables_is_for_the_host(
    make_database: Callable[[], Awaitable[str]], redis_url: str
) -> None:
    """A person must act: it goes to the host's own handling of errors, which tells him."""
    engine = create_engine(await make_database())
    redis = connect_redis(redis_url, timeout_seconds=10)
    producer = Producer(engine, redis)
    app = host_app(Host(engine=engine, producer=producer))
    heard: list[Exception] = []

    @app.exception_handler(Exception)
    async def failed(_: Request, exc: Exception) -> PlainTextResponse:
        heard.append(exc)
        return PlainTextResponse("The host's own.", 500)

    async with client_of(app) as client:
        reply = await client.get("/responses")
    await producer.close()
    await redis.aclose()
    await engine.dispose()

    assert (reply.status_code, reply.text) == (500, "The host's own.")
    assert [type(exc).__name__ for exc in heard] == ["NotMigratedError"]


class HostError(Exception):
    """Something that only the host knows."""


class HostHTTPError(HTTPException):
    """The host has a handler of its own for this one."""


async def test_the_hosts_handlers_stay_the_hosts(host: Host) -> None:
    """For its own routes all of them, for ours those of its own errors; ours are never asked by its routes."""

    def identity(x_trouble: Annotated[str, Header()] = "") -> Identity:
        if x_trouble == "own":
            raise HostError
        if x_trouble == "http":
            raise HostHTTPError(418)
        if x_trouble == "redirect":
            raise HTTPException(307, headers={"location": "/sign-in"})
        if x_trouble == "details":
            raise HTTPException(499, {"reason": "a mapping"})
        return Identity(user_id=1)

    app = host_app(host, identity=identity)

    async def handler(_: Request, exc: Exception) -> JSONResponse:
        return JSONResponse({"host": type(exc).__name__}, 499)

    for kind in (HostError, HostHTTPError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, handler)

    @app.get("/host")
    async def own(number: int) -> None:
        raise HTTPException(400)

    async with client_of(app) as client:
        replies = {
            trouble: await client.get("/responses", headers={"x-trouble": trouble})
            for trouble in ("own", "http", "redirect", "details")
        }
        misread = await client.get("/responses?limit=x")
        hosts = [await client.get(f"http://host/host?number={given}") for given in ("x", "1")]

    assert replies["own"].json() == {"host": "HostError"}
    assert replies["http"].json() == {"host": "HostHTTPError"}
    assert replies["redirect"].json() == {"host": "HTTPException"}
    assert refusal(replies["details"]) == (499, [])
    assert fields(misread) == (422, ["limit"])
    assert [reply.json()["host"] for reply in hosts] == ["RequestValidationError", "HTTPException"]


async def test_a_missing_header_of_the_host_is_named(host: Host) -> None:
    """What its dependency asks for is refused as everything else is."""

    def identity(x_needed: Annotated[int, Header()]) -> Identity:
        return Identity(user_id=x_needed)

    async with client_of(host_app(host, identity=identity)) as client:
        missing = await client.get("/responses")
        wrong = await client.get("/responses", headers={"x-needed": CANARY})

    assert refusal(missing) == (422, [("x-needed", "is needed")])
    assert refusal(wrong) == (422, [("x-needed", "expected a whole number")])


@pytest.mark.parametrize("token", ["", " ", "t" * 201])
async def test_a_token_that_cannot_be_is_refused(client: httpx.AsyncClient, token: str) -> None:
    """It came from a cookie, as a rule, and is not shown."""
    reply = await client.get("/responses", headers=as_token(token))

    assert fields(reply) == (422, ["anonymous_token"])


async def test_no_refusal_repeats_what_was_given(client: httpx.AsyncClient) -> None:
    """Not in a field's name, not in its value, not in a header, wherever it was put."""
    bodies = [
        json.dumps(answer(**{name: CANARY + filling}))
        for name in answer()
        for filling in ("\x00", " " + "x" * 20_000)
    ]
    bodies += [
        json.dumps(answer(**{CANARY: 1})),
        json.dumps(answer(answer_metadata={CANARY: "\x00"})),
        json.dumps(answer(answer_metadata=[CANARY])),
        json.dumps(answer(answer_text=[CANARY])),
        json.dumps(answer(answer_text={CANARY: CANARY})),
        json.dumps([CANARY]),
        json.dumps(CANARY),
        f'{{"answer_text": "{CANARY}',
        f"{CANARY}",
    ]
    replies = [await client.post("/responses", content=body, headers=JSON) for body in bodies]
    replies += [
        await client.put("/drafts/m/q", json={"answer_text": "a", "submission_key": CANARY}),
        await client.put("/drafts/m/q", json={"answer_text": CANARY + "\x00", "submission_key": KEY}),
        await client.post("/claims", json={CANARY: CANARY}),
        await client.get("/responses", params={"cursor": CANARY}),
        await client.get("/responses", params={"limit": CANARY}),
        await client.get(f"/responses/{CANARY}"),
        await client.get("/responses", params={"module_slug": CANARY + "\x00"}),
        await client.get("/responses", headers=as_token(CANARY * 30)),
        await client.post("/responses", json=answer(), headers=keyed(f"{CANARY} {CANARY}")),
        await client.post("/responses", json=answer(), headers={"content-type": CANARY}),
    ]

    for reply in replies:
        assert 400 <= reply.status_code < 500, reply.text
        assert reply.headers["content-type"] == PROBLEM
        assert CANARY not in reply.text
        assert CANARY not in str(reply.headers)


async def test_an_identity_shows_no_token() -> None:
    """It may be printed."""
    assert CANARY not in repr(Identity(anonymous_token=CANARY))


async def test_a_router_may_be_mounted_in_a_router_with_dependencies(host: Host) -> None:
    """As hosts do who guard a whole part of their app."""

    async def guard(x_guard: Annotated[str | None, Header()] = None) -> None:
        if x_guard is None:
            raise HTTPException(403, "Not here.")

    app = FastAPI(dependencies=[Depends(guard)])
    app.include_router(host_router(host), prefix="/assessment")

    async with client_of(app) as client:
        refused = await client.get("/responses")
        allowed = await client.get("/responses", headers={"x-guard": "x"})

    assert refusal(refused) == (403, [])
    assert allowed.status_code == 200


async def test_a_user_who_is_gone(client: httpx.AsyncClient) -> None:
    """His session is refused as a whole, for answers and drafts."""
    for method, path, body in (ROUTES[0], ROUTES[5]):
        reply = await ask(client, (method, path, body), headers={"x-user": "999999"})
        assert refusal(reply) == (403, [])
