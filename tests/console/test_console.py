"""The console as a program sees it; how it looks and moves is in test_page.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from storage.dead_kinds import KINDS
from storage.workers import report_worker
from tests.console.acting import (
    POST,
    REFUSED,
    SECRET_ANSWER,
    SECRET_TOKEN,
    TOO_LONG,
    bury_answers,
    field,
    kind_of,
)
from tests.console.conftest import TOKEN, sign_in
from tests.factories import submit
from tests.producers.waiting import eventually
from worker.http import looks
from worker.http.sessions import COOKIE
from worker.provider_report import ProviderReport, RateLimitReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]

pytestmark = pytest.mark.commits


@pytest.fixture
def worker_id() -> UUID:
    return uuid4()


async def test_everybody_sees_how_it_goes(
    browserless: httpx.AsyncClient, engine: AsyncEngine, worker_id: UUID
) -> None:
    """What waits, who works, the provider, the dead with their reason and history; nothing of an answer."""
    await bury_answers(engine, REFUSED, REFUSED, TOO_LONG)
    async with engine.begin() as conn:
        await submit(conn, answer_text=SECRET_ANSWER)
        await submit(conn, question_id="unheard-of", answer_text=SECRET_ANSWER)
        report = ProviderReport(
            name="api.example/model-1",
            breaker="open",
            shared=True,
            reason="529: overloaded",
            open_seconds=12,
            rate_limits=RateLimitReport(shared=True, requests_per_minute=600),
        )
        await report_worker(
            conn, worker_id=worker_id, host="here", pid=7, version="1", slots=20, free_slots=5,
            note="Redis is away", provider=report.model_dump(mode="json"),
        )  # fmt: skip

    page = (await browserless.get("/console")).text

    for shown in (
        "3 answers could not be scored and need a person",
        "api.example/model-1 is asked by probes only: 529: overloaded",
        "1 answer waits for a question that is not published",
        "Worker here/7: Redis is away.",
        "600 requests",
        "The model refuses &lt;this&gt; answer &amp; says so.",
        "attempts 1, postponed 0, leases lost 0, live",
    ):
        assert shown in page, shown
    assert "/console/act" not in page
    assert "/console/ask" not in page
    assert page.count("data-live") == (await browserless.get("/console/live")).text.count("data-live")


async def test_nothing_of_an_answer_is_shown_anywhere(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Not its text, not whose it is, neither to those who look nor to those who act."""
    [response_id] = await bury_answers(engine, REFUSED)
    kind = await kind_of(engine, REFUSED)
    for _ in range(2):
        for path in (
            "/console",
            "/console/live",
            "/console/dead",
            f"/console/dead?kind={kind['kind']}",
            f"/console/ask?action=retry&response_id={response_id}",
            f"/console/ask?action=retry&kind={kind['kind']}&until=9",
        ):
            page = (await browserless.get(path)).text
            assert SECRET_ANSWER not in page
            assert SECRET_TOKEN not in page
        await sign_in(browserless)


@pytest.mark.parametrize("origin", ["http://[", "http://elsewhere.example", "null", ""])
async def test_a_foreign_origin_is_refused_whatever_it_looks_like(
    browserless: httpx.AsyncClient, origin: str
) -> None:
    """An older browser says only where the page came from; what is no address is no reason to fail."""
    sent = await browserless.post(
        "/console/login",
        data={"name": "Ada", "token": TOKEN},
        headers={"Origin": origin},
    )
    assert sent.status_code == 403


async def test_the_dead_have_pages(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Fifty on a page, of one kind or of all; an address that makes no sense is the first page."""
    ids = await bury_answers(engine, *[TOO_LONG] * 52, REFUSED)
    kind = await kind_of(engine, TOO_LONG)

    first = (await browserless.get(f"/console/dead?kind={kind['kind']}")).text
    following = re.search(r'href="(/console/dead\?[^"]*after=\d+)"', first)
    assert following
    second = (await browserless.get(following[1].replace("&amp;", "&"))).text

    assert f'<th scope="row">{ids[49]}</th>' in first
    assert f'<th scope="row">{ids[50]}</th>' not in first
    assert [f'<th scope="row">{number}</th>' in second for number in ids[49:]] == [False, True, True, False]
    for nonsense in ("after=-1", "after=1e9", "after=99999999999999999999", "kind=%27--", "kind=", "after="):
        answer = await browserless.get(f"/console/dead?{nonsense}")
        assert answer.status_code == 200
        assert f'<th scope="row">{ids[0]}</th>' in answer.text


async def test_what_is_left_out_of_the_reasons_is_said(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Twenty reasons stand there; that there are more is no secret."""
    await bury_answers(engine, *(f"Reason {number}." for number in range(KINDS)))
    assert "most frequent reasons" not in (await browserless.get("/console")).text
    await bury_answers(engine, "One more.")

    async def said() -> bool:
        return f"{KINDS} answers: of the oldest 10,000" in (await browserless.get("/console")).text

    await eventually(said)


async def test_no_reason_misleads_its_reader(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """What would turn the direction of writing, or cannot be seen, is shown as its number on every page."""
    [response_id] = await bury_answers(engine, "It sent \u202etxt.exe\u202c \u200bor \x9b.")
    await sign_in(browserless)
    for path in ("/console", "/console/dead", f"/console/ask?action=retry&response_id={response_id}"):
        page = (await browserless.get(path)).text
        assert r"It sent \u202etxt.exe\u202c \u200bor \x9b." in page
        assert not set(page) & set("\u202e\u202c\u200b\x9b"), path


async def test_signing_in(browserless: httpx.AsyncClient) -> None:
    """Name and token, once: then a cookie that no script reads and no other site sends."""
    page = (await browserless.get("/console/login")).text
    assert 'type="password"' in page

    wrong = await sign_in(browserless, token="a-token-that-is-wrong")
    nameless = await sign_in(browserless, name=" ")
    assert (wrong.status_code, nameless.status_code) == (403, 422)
    assert COOKIE not in browserless.cookies

    right = await sign_in(browserless, name="Ada <Ops>")
    assert right.status_code == 303
    cookie = right.headers["set-cookie"]
    assert {"HttpOnly", "Path=/console", "SameSite=strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    page = (await browserless.get("/console")).text
    assert "Ada &lt;Ops&gt;" in page

    out = await browserless.post("/console/logout", data={"csrf": field(page, "csrf")}, headers=POST)
    assert out.status_code == 303
    assert "Signed in" not in (await browserless.get("/console")).text


async def test_guesses_are_limited(open_port: OpenPort) -> None:
    """After five wrong tokens the right one is not listened to either; who is in already stays in."""
    async with open_port() as port, port.client() as inside, port.client() as outside:
        await sign_in(inside)
        for _ in range(5):
            assert (await sign_in(outside, token="a-token-that-is-wrong")).status_code == 403

        refused = await sign_in(outside)
        program = await outside.get("/console", headers={"Authorization": f"Bearer {TOKEN}"})

        assert (refused.status_code, program.status_code) == (429, 429)
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert "Signed in" in (await inside.get("/console")).text


async def test_the_cookie_is_for_tls_alone_where_a_proxy_speaks_it(browserless: httpx.AsyncClient) -> None:
    """The port itself speaks plain HTTP; a browser must not send the cookie over it where it came over TLS."""
    form = {"name": "Ada", "token": TOKEN}
    for proto, is_secure in (("https", True), ("http, https", True), ("http", False), ("", False)):
        told = {"X-Forwarded-Proto": proto} if proto else {}
        answer = await browserless.post("/console/login", data=form, headers=POST | told)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) is is_secure, proto


async def test_beyond_this_machine_looking_needs_the_token(open_port: OpenPort, engine: AsyncEngine) -> None:
    """On an address that others reach, nothing is shown to strangers, and nobody at all without a token."""
    await bury_answers(engine, REFUSED)
    async with open_port(http_host="0.0.0.0") as port, port.client() as client:
        for path in ("/console", "/console/dead", "/console/live"):
            answer = await client.get(path)
            assert answer.status_code == 403
            assert "refuses" not in answer.text
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/console", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200
        await sign_in(client)
        assert "refuses" in (await client.get("/console")).text
    async with open_port(http_host="0.0.0.0", console_token=None) as port, port.client() as client:
        answer = await client.get("/console")
        assert answer.status_code == 403
        assert "SCORING_CONSOLE_TOKEN is not set" in answer.text
        assert (await sign_in(client)).status_code == 403


async def test_without_postgresql_the_page_says_so(open_port: OpenPort, database_url: str) -> None:
    """It comes all the same, with a sentence, and shows again what was seen last."""
    async with open_port(database_url=re.sub(r":\d+/", ":1/", database_url)) as port, port.client() as client:
        answer = await client.get("/console")
        assert answer.status_code == 200
        assert "PostgreSQL cannot be reached" in answer.text
        unread = await client.get("/console/dead")
        assert unread.status_code == 503
        assert "Not done" not in unread.text, "nobody asked for anything to be done"
        await sign_in(client)
        shown = (await client.get("/console")).text
        assert "login cannot be used" not in shown, "that would stay where it stands after PostgreSQL is back"


async def test_nobody_waits_for_ever_for_those_who_look_before_him(
    opened: Opened, browserless: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that are asked for again and again while PostgreSQL is slow make no queue that grows and grows."""
    monkeypatch.setattr(looks, "TURN_SECONDS", 0.05)
    async with opened.http._looks._turn:
        answer = await browserless.get("/console/dead")
        assert answer.status_code == 503
        assert "Too many look at the same time" in answer.text
        assert (await browserless.get("/console")).status_code == 200

    assert (await browserless.get("/console/dead")).status_code == 200


async def test_the_address_says_nothing_of_its_own(browserless: httpx.AsyncClient) -> None:
    """What was done is told in our own words, whatever somebody puts into a link."""
    for query in ("done=hacked&answers=1", "done=retry&answers=<b>", "done=retry", "answers=3"):
        assert 'class="done"' not in (await browserless.get(f"/console?{query}")).text
