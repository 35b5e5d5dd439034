"""Who may act on the console, on what, and what is recorded of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.actions import latest_actions
from storage.dead import list_dead
from tests.console.acting import (
    POST,
    REFUSED,
    TOO_LONG,
    agreed,
    asked_form,
    bury_answers,
    confirmed,
    field,
    kind_of,
    states,
)
from tests.console.conftest import TOKEN, sign_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.console.conftest import Opened

    OpenPort = Callable[..., AbstractAsyncContextManager[Opened]]

pytestmark = pytest.mark.commits


async def test_one_is_retried_after_a_question(browserless: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Asked first; then it is due again, who did it is written down, and a second click finds nothing to do."""
    one, other = await bury_answers(engine, REFUSED, REFUSED)
    await sign_in(browserless, name="Ada Ops")
    assert f"response_id={one}" in (await browserless.get("/console")).text

    form = await asked_form(browserless, action="retry", response_id=one)
    done = await agreed(browserless, form)

    assert done.status_code == 303
    assert await states(engine) == {one: "open", other: "dead"}
    page = (await browserless.get(done.headers["location"])).text
    assert "1 answer: will be scored again." in page
    assert f'<th scope="row">{one}</th>' not in page, "what was just changed is not shown as it was before"
    again = await agreed(browserless, form)
    assert (
        "Nothing was changed: a person had acted" in (await browserless.get(again.headers["location"])).text
    )
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
    assert "<button" not in gone[gone.index("<main") :], "there is nothing to confirm"


async def test_what_is_dealt_with_already_is_not_asked_about(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """No button for a second dismissal, nor for a kind of which only later ones are dead; a retry stays possible."""
    one, late = await bury_answers(engine, REFUSED, TOO_LONG)
    await sign_in(browserless, name="Ada Ops")
    kind = await kind_of(engine, REFUSED)
    of_kind: dict[str, Any] = {"action": "retry", "kind": kind["kind"], "until": kind["until_handoff_id"]}
    await confirmed(browserless, action="dismiss", response_id=one)
    await bury_answers(engine, REFUSED, REFUSED)

    of_one: dict[str, Any] = {"action": "dismiss", "response_id": one}
    for query in (of_one, of_kind):
        page = (await browserless.get("/console/ask", params=query)).text
        assert f"nothing to {query['action']}" in page
        assert "<button" not in page[page.index("<main") :]
    assert (
        "(dismissed by Ada Ops)"
        in (await browserless.get("/console/ask", params={"action": "dismiss", "response_id": one})).text
    )
    await confirmed(browserless, action="retry", response_id=one)
    assert (await states(engine))[one] == "open"
    assert (await states(engine))[late] == "dead"


async def test_the_question_counts_what_would_be_changed(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Not those of the kind that died after the link was shown."""
    await bury_answers(engine, REFUSED)
    await sign_in(browserless)
    kind = await kind_of(engine, REFUSED)
    await bury_answers(engine, REFUSED, REFUSED)
    query = {"action": "retry", "kind": kind["kind"], "until": kind["until_handoff_id"]}

    assert "Retry 1 answer?" in (await browserless.get("/console/ask", params=query)).text


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
