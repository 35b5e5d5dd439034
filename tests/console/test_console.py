"""The console as a program sees it; how it looks and moves is in test_page.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from storage import submit_responses
from storage.actions import latest_actions
from storage.dead import list_dead
from storage.dead_kinds import dead_kinds
from storage.tables import handoffs
from storage.workers import report_worker
from tests.console.conftest import TOKEN, sign_in
from tests.factories import bury, publish, submission, submit
from tests.races import committed
from worker.http import looks
from worker.http.sessions import COOKIE
from worker.provider_report import ProviderReport, RateLimitReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]

pytestmark = pytest.mark.commits

SECRET_ANSWER, SECRET_TOKEN = "canary-answer-c0ffee", "canary-token-c0ffee"
REFUSED, TOO_LONG = "The model refuses <this> answer & says so.", "The reply is too long."
POST = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def worker_id() -> UUID:
    return uuid4()


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


async def confirmed(client: httpx.AsyncClient, **query: Any) -> httpx.Response:
    """Follow a link to the question, and answer it with yes."""
    asked = await client.get("/console/ask", params=query)
    assert asked.status_code == 200, asked.text
    names = [
        name for name in ("csrf", "action", "response_id", "kind", "until") if f'name="{name}"' in asked.text
    ]
    return await client.post(
        "/console/act", data={name: field(asked.text, name) for name in names}, headers=POST
    )


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


async def test_one_is_retried_after_a_question(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Asked first; then it is due again, who did it is written down, and a second click finds nothing to do."""
    one, other = await bury_answers(engine, REFUSED, REFUSED)
    await sign_in(browserless, name="Ada Ops")
    assert f"response_id={one}" in (await browserless.get("/console")).text

    done = await confirmed(browserless, action="retry", response_id=one)

    assert done.status_code == 303
    assert await states(engine) == {one: "open", other: "dead"}
    page = (await browserless.get(done.headers["location"])).text
    assert "1 answer: will be scored again." in page
    assert f'<th scope="row">{one}</th>' not in page, "what was just changed is not shown as it was before"
    again = await confirmed(browserless, action="dismiss", response_id=one)
    assert "Somebody else was faster." in (await browserless.get(again.headers["location"])).text
    async with engine.connect() as conn:
        [action] = await latest_actions(conn)
    assert (action["actor"], action["action"], action["affected"]) == ("Ada Ops", "retry", 1)
    assert action["details"] == {"from": "console", "response_ids": [one]}
    assert "Ada Ops" in page[page.index("What people did lately") :]


async def test_all_of_a_kind_are_dismissed(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Those that were seen: another kind, and what died while the question stood on the screen, stay."""
    ids = await bury_answers(engine, TOO_LONG, TOO_LONG, REFUSED)
    await sign_in(browserless, name="Ada Ops")
    kind = await kind_of(engine, TOO_LONG)
    query = {"action": "dismiss", "kind": kind["kind"], "until": kind["until_handoff_id"]}
    asked = (await browserless.get("/console/ask", params=query)).text
    assert "Dismiss 2 answers?" in asked
    assert TOO_LONG in asked
    late = await bury_answers(engine, TOO_LONG)

    await confirmed(browserless, **query)

    assert await states(engine) == {
        ids[0]: "dismissed", ids[1]: "dismissed", ids[2]: "dead", late[0]: "dead",
    }  # fmt: skip
    async with engine.connect() as conn:
        assert (await latest_actions(conn))[0]["affected"] == 2
        dismissed = await list_dead(conn, include_dismissed=True)
    assert dismissed[0]["last_error"] == f"{TOO_LONG} (dismissed by Ada Ops)"


@pytest.mark.parametrize("action", ["retry", "dismiss"])
async def test_who_is_asked_about_one_sees_why_it_died(
    browserless: httpx.AsyncClient, engine: AsyncEngine, action: str
) -> None:
    """Question, reason and history of this very answer, not of the oldest; and that it is not dead any more."""
    first, asked_about = await bury_answers(engine, TOO_LONG, REFUSED)
    await sign_in(browserless)
    query: dict[str, Any] = {"action": action, "response_id": asked_about}

    page = (await browserless.get("/console/ask", params=query)).text
    assert "The model refuses &lt;this&gt; answer &amp; says so." in page
    assert "attempts 1, postponed 0, leases lost 0, live" in page
    assert TOO_LONG not in page

    await confirmed(browserless, action="retry", response_id=first)
    gone = (await browserless.get("/console/ask", params=query | {"response_id": first})).text
    assert "It is not dead any more." in gone


async def test_the_cookie_is_for_tls_alone_where_a_proxy_speaks_it(browserless: httpx.AsyncClient) -> None:
    """The port itself speaks plain HTTP; a browser must not send the cookie over it where it came over TLS."""
    form = {"name": "Ada", "token": TOKEN}
    for proto, is_secure in (("https", True), ("http, https", True), ("http", False), ("", False)):
        told = {"X-Forwarded-Proto": proto} if proto else {}
        answer = await browserless.post("/console/login", data=form, headers=POST | told)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) is is_secure, proto


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("Zoë 李".encode(), "Zoë 李"),
        ("Zoë".encode("latin-1"), "Zoë"),
    ],
)
async def test_a_program_may_act_for_anybody(
    browserless: httpx.AsyncClient, engine: AsyncEngine, sent: bytes, name: str
) -> None:
    """A name is recorded as it is written, in UTF-8 as programs send it, or in Latin-1 as HTTP once had it."""
    [response_id] = await bury_answers(engine, REFUSED)

    answer = await browserless.post(
        "/console/act",
        data={"action": "retry", "response_id": response_id},
        headers={b"Authorization": f"Bearer {TOKEN}".encode(), b"Scoring-Actor": sent},
    )

    assert answer.status_code == 200
    async with engine.connect() as conn:
        assert (await latest_actions(conn))[0]["actor"] == name


async def test_without_the_token_nobody_acts(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Whoever only looks is asked to sign in, whatever he sends."""
    [response_id] = await bury_answers(engine, REFUSED)
    form: dict[str, Any] = {"action": "retry", "response_id": response_id}

    assert (await browserless.post("/console/act", data=form, headers=POST)).status_code == 403
    assert (await browserless.get("/console/ask", params=form)).status_code == 403
    wrong = await browserless.post(
        "/console/act",
        data=form,
        headers={"Authorization": "Bearer a-wrong-token-of-length", "Scoring-Actor": "A"},
    )
    assert wrong.status_code == 401
    assert await states(engine) == {response_id: "dead"}


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"csrf": ""}, POST),
        ({"csrf": "0" * 64}, POST),
        ({}, {"Sec-Fetch-Site": "cross-site"}),
        ({}, {"Sec-Fetch-Site": "same-site"}),
        ({}, {"Origin": "https://attacker.example"}),
        ({}, {"Origin": "null"}),
    ],
)
async def test_a_form_of_another_site_does_nothing(
    browserless: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, str], headers: dict[str, str]
) -> None:
    """Even with the cookie: it needs this session's own secret, and to come from one of our pages."""
    [response_id] = await bury_answers(engine, REFUSED)
    await sign_in(browserless)
    asked = await browserless.get("/console/ask", params={"action": "retry", "response_id": response_id})
    form = {"action": "retry", "response_id": str(response_id), "csrf": field(asked.text, "csrf")}

    answer = await browserless.post("/console/act", data=form | change, headers=headers)

    assert answer.status_code == 403
    assert await states(engine) == {response_id: "dead"}
    answer = await browserless.post("/console/act", data=form, headers=POST)
    assert answer.status_code == 303, "the same form from our own page does it"


@pytest.mark.parametrize(
    "change", [{"action": "erase"}, {"action": ""}, {"response_id": "x"}, {"response_id": "9" * 30}]
)
async def test_an_incomplete_form_does_nothing(
    browserless: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, str]
) -> None:
    """It is refused in a sentence."""
    [response_id] = await bury_answers(engine, REFUSED)
    await sign_in(browserless)
    csrf = field((await browserless.get("/console")).text, "csrf")
    form = {"csrf": csrf, "action": "retry", "response_id": str(response_id)}

    answer = await browserless.post("/console/act", data=form | change, headers=POST)

    assert answer.status_code == 400
    assert "nothing was changed" in answer.text
    assert await states(engine) == {response_id: "dead"}


async def test_a_program_acts_with_the_token_and_a_name(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """It needs no form's secret, since no page can make a browser send that header; nameless it does nothing."""
    ids = await bury_answers(engine, REFUSED, REFUSED)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    kind = await kind_of(engine, REFUSED)
    form = {"action": "retry", "kind": kind["kind"], "until": str(kind["until_handoff_id"])}

    nameless = await browserless.post("/console/act", data=form, headers=bearer)
    done = await browserless.post("/console/act", data=form, headers=bearer | {"Scoring-Actor": "nightly"})

    assert (nameless.status_code, done.status_code) == (403, 200)
    assert done.json() == {"action": "retry", "responses": ids}
    async with engine.connect() as conn:
        assert (await latest_actions(conn))[0]["actor"] == "nightly"


async def test_a_workers_login_looks_and_does_not_act(
    open_port: OpenPort, engine: AsyncEngine, logins: dict[str, str]
) -> None:
    """With the rights of a worker all is shown; acting is off, and the page says what would turn it on."""
    [response_id] = await bury_answers(engine, REFUSED)
    async with open_port(database_url=logins["worker"]) as port, port.client() as client:
        page = (await client.get("/console")).text
        assert "could not be scored" in page
        assert "The last hour" in page
        assert "This database role may not" not in page
        await sign_in(client)
        page = (await client.get("/console")).text
        assert "SCORING_CONSOLE_DATABASE_URL" in page
        assert "/console/ask" not in page
        form = {"csrf": field(page, "csrf"), "action": "retry", "response_id": str(response_id)}

        answer = await client.post("/console/act", data=form, headers=POST)

        assert answer.status_code == 503
        assert "Nothing was changed" in answer.text
    assert await states(engine) == {response_id: "dead"}


async def test_an_operators_login_acts_beside_a_workers(
    open_port: OpenPort, engine: AsyncEngine, logins: dict[str, str]
) -> None:
    """The worker keeps its own rights; who acts does so with those of scoring_ops, and is written down."""
    ids = await bury_answers(engine, REFUSED, TOO_LONG, TOO_LONG)
    kind = await kind_of(engine, TOO_LONG)
    given = {"database_url": logins["worker"], "console_database_url": logins["ops"]}
    async with open_port(**given) as port, port.client() as client:
        await sign_in(client)
        await confirmed(client, action="retry", response_id=ids[0])
        await confirmed(client, action="dismiss", kind=kind["kind"], until=kind["until_handoff_id"])
        assert "Ada Ops" in (await client.get("/console")).text

    assert await states(engine) == {ids[0]: "open", ids[1]: "dismissed", ids[2]: "dismissed"}


async def test_a_record_that_cannot_be_written_undoes_the_act(
    open_port: OpenPort, engine: AsyncEngine, logins: dict[str, str]
) -> None:
    """Both or neither: rights that are lost between the look and the act leave everything as it was."""
    [response_id] = await bury_answers(engine, REFUSED)
    given = {"database_url": logins["worker"], "console_database_url": logins["ops"]}
    async with open_port(**given) as port, port.client() as client:
        await sign_in(client)
        asked = await client.get("/console/ask", params={"action": "retry", "response_id": response_id})
        async with engine.begin() as conn:
            await conn.execute(
                text("ALTER TABLE scoring_actions ADD CONSTRAINT none CHECK (false) NOT VALID")
            )
        try:
            form = {"action": "retry", "response_id": str(response_id), "csrf": field(asked.text, "csrf")}
            answer = await client.post("/console/act", data=form, headers=POST)
        finally:
            async with engine.begin() as conn:
                await conn.execute(text("ALTER TABLE scoring_actions DROP CONSTRAINT none"))

    assert answer.status_code == 500
    assert await states(engine) == {response_id: "dead"}


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
        assert (await client.get("/console/dead")).status_code == 503


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
