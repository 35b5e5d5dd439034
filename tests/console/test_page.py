"""The console in a real browser: it can be read by everybody, moves under nobody's hands, and works without scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage.actions import latest_actions
from storage.settlements import settle_handoffs
from tests.browser import grave_violations, new_context, overflows
from tests.console.acting import REFUSED, TOO_LONG, bury_answers, kind_of, states
from tests.console.conftest import TOKEN
from tests.factories import lease, settlement, submit
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.console.conftest import Opened

pytestmark = pytest.mark.commits

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


async def score_some(engine: AsyncEngine, number: int = 5) -> None:
    """Answers with scores, so that there is something to draw."""
    async with engine.begin() as conn:
        ids = [(await submit(conn))["response_id"] for _ in range(number)]
        leases = await lease(conn, *ids)
        await settle_handoffs(conn, [settlement(held) for held in leases])


@pytest.fixture
async def filled(engine: AsyncEngine) -> list[int]:
    """Dead answers of two kinds, scores, and a worker's report."""
    ids = await bury_answers(engine, REFUSED, TOO_LONG, "An " + "unbreakable" * 30 + " reason.")
    await score_some(engine)
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO scoring_workers (worker_id, host, pid, version, slots, free_slots) VALUES"
                " (gen_random_uuid(), 'a-rather-long-host-name-of-a-pod-7c9d8f6b5-x2x4z', 7, '0.1.0', 100, 40)"
            )
        )
    return ids


@pytest.fixture(params=["light", "dark", "phone"])
async def page(request: pytest.FixtureRequest, browser: Browser, opened: Opened) -> AsyncIterator[Page]:
    """A page in each of the looks that there are; nothing may complain on it."""
    options: dict[str, Any] = {
        "base_url": opened.address,
        "viewport": PHONE if request.param == "phone" else DESKTOP,
        "color_scheme": "dark" if request.param == "dark" else "light",
    }
    async with new_context(browser, **options) as (context, complaints):
        page = await context.new_page()
        yield page
        assert complaints == []


async def sign_in(page: Page) -> None:
    await page.goto("/console/login")
    await page.get_by_label("Your name").fill("Ada Ops")
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_text("Signed in as Ada Ops").wait_for()


async def test_everybody_can_read_it(page: Page, filled: list[int]) -> None:
    """Every page, in light, dark and on a phone: axe finds nothing grave, and nothing sticks out sideways."""
    await page.goto("/console")
    await page.get_by_text("Live", exact=True).wait_for()
    await page.locator("#throughput details summary").click()
    assert await grave_violations(page) == []
    assert not await overflows(page)
    await page.goto("/console/login")
    assert await grave_violations(page) == []
    await sign_in(page)
    for path in (
        "/console",
        "/console/dead",
        f"/console/ask?action=retry&response_id={filled[0]}",
    ):
        await page.goto(path)
        assert await grave_violations(page) == [], path
        assert not await overflows(page), path


async def test_a_person_retries_one(page: Page, filled: list[int], engine: AsyncEngine) -> None:
    """Sign in, ask, confirm: with the keyboard's or the mouse's few steps, in every look."""
    await sign_in(page)
    await page.get_by_role("link", name=f"Retry response {filled[0]}").click()
    await page.get_by_role("heading", name=f"Retry response {filled[0]}?").wait_for()
    await page.get_by_role("button", name="Retry").click()

    await page.get_by_text("1 answer: will be scored again.").wait_for()
    assert (await states(engine))[filled[0]] == "open"


async def test_reasons_as_long_as_a_page_hide_nothing(
    page: Page, opened: Opened, engine: AsyncEngine
) -> None:
    """A few lines of each where many stand; whole where one is asked about, with the button on the same screen."""
    long = "; ".join(["The model refuses it at length"] * 27)
    [response_id, *_] = await bury_answers(engine, long, long, "unbreakable" * 80)
    kind = await kind_of(engine, long)
    await sign_in(page)
    for reason in await page.locator("#dead .reason").all():
        box = await reason.bounding_box()
        assert box is not None
        assert box["height"] < 100
    await page.goto(f"/console/dead?kind={kind['kind']}")
    assert await page.get_by_text(long).count() == 1
    assert await page.locator("tbody tr").count() == 2

    await page.goto(f"/console/ask?action=retry&response_id={response_id}")
    assert await page.get_by_text(long).count() == 1
    button = await page.get_by_role("button", name="Retry").bounding_box()
    assert button is not None
    assert button["y"] + button["height"] <= await page.evaluate("innerHeight")
    assert await grave_violations(page) == []
    assert not await overflows(page)


async def test_a_double_click_acts_once(
    browser: Browser, opened: Opened, filled: list[int], engine: AsyncEngine
) -> None:
    """Two clicks may send two forms: one of them is done and recorded, and the page that comes is a page of ours."""
    async with new_context(browser, base_url=opened.address, viewport=DESKTOP) as (context, complaints):
        page = await context.new_page()
        await sign_in(page)
        await page.goto(f"/console/ask?action=retry&response_id={filled[0]}")
        await page.get_by_role("button", name="Retry").dblclick()
        await page.get_by_role("status").wait_for()
        assert complaints == []

    assert (await states(engine))[filled[0]] == "open"
    async with engine.connect() as conn:
        assert [action["affected"] for action in await latest_actions(conn)] == [1]


async def test_nothing_moves_under_the_readers_hands(
    browser: Browser, opened: Opened, filled: list[int], engine: AsyncEngine
) -> None:
    """What changes is replaced; focus, open tables, their scroll position and selected text stay as they are."""
    async with new_context(browser, base_url=opened.address, viewport=DESKTOP) as (context, complaints):
        page = await context.new_page()
        await sign_in(page)
        summary = page.locator("#throughput details summary")
        await summary.click()
        await page.locator("#throughput .scroll").evaluate("region => { region.scrollTop = 120; }")
        await page.evaluate("window.scrollTo(0, 200)")
        await page.evaluate("window.kept = document.getElementById('figures')")
        assert await summary.evaluate("summary => summary === document.activeElement")

        await bury_answers(engine, REFUSED)
        await score_some(engine, 3)
        await page.get_by_text("4 answers could not be scored").wait_for()
        await eventually(lambda: page.evaluate("!window.kept.isConnected"))
        assert await page.evaluate("window.scrollY") == 200
        scores = page.locator("#throughput .legend strong").nth(1)

        async def redrawn() -> bool:
            return await scores.inner_text() == "8/h"

        await eventually(redrawn, patience_seconds=40)
        assert await page.locator("#throughput details").evaluate("details => details.open")
        assert await page.locator("#throughput .scroll").evaluate("region => region.scrollTop") == 120
        assert await summary.evaluate("summary => summary === document.activeElement")

        button = page.get_by_role("link", name=f"Retry response {filled[0]}")
        await button.focus()
        await bury_answers(engine, TOO_LONG)
        await page.get_by_text("5 answers could not be scored").wait_for()
        await eventually(lambda: page.locator("#dead").get_by_text("2", exact=True).count())
        assert await button.evaluate("link => link === document.activeElement")
        assert complaints == []


async def test_a_selection_is_left_alone(
    browser: Browser, opened: Opened, filled: list[int], engine: AsyncEngine
) -> None:
    """Whoever copies a reason is not disturbed; the rest goes on."""
    async with new_context(browser, base_url=opened.address, viewport=DESKTOP) as (context, complaints):
        page = await context.new_page()
        await page.goto("/console")
        await page.evaluate(
            "document.getSelection().selectAllChildren(document.querySelector('#dead table'))"
        )
        selected = await page.evaluate("document.getSelection().toString()")

        await bury_answers(engine, REFUSED)
        await page.get_by_text("4 answers could not be scored").wait_for()

        assert await page.evaluate("document.getSelection().toString()") == selected
        assert complaints == []


async def test_it_can_be_paused(
    browser: Browser, opened: Opened, filled: list[int], engine: AsyncEngine
) -> None:
    """Then nothing changes until it goes on."""
    async with new_context(browser, base_url=opened.address, viewport=DESKTOP) as (context, _):
        page = await context.new_page()
        await page.goto("/console")
        await page.get_by_role("button", name="Pause").click()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await bury_answers(engine, REFUSED)
        await page.get_by_text("Paused").wait_for()
        assert await page.get_by_text("3 answers could not be scored").count() == 1
        assert asked == []

        await page.get_by_role("button", name="Go on").click()
        await page.get_by_text("4 answers could not be scored").wait_for()


async def test_an_open_question_is_never_replaced(
    browser: Browser, opened: Opened, filled: list[int]
) -> None:
    """The page that asks loads no script at all."""
    async with new_context(browser, base_url=opened.address) as (context, complaints):
        page = await context.new_page()
        await sign_in(page)
        await page.goto(f"/console/ask?action=dismiss&response_id={filled[0]}")

        assert await page.locator("script").count() == 0
        assert await page.locator("meta[http-equiv=refresh]").count() == 0
        assert complaints == []


async def test_it_works_without_scripts(
    browser: Browser, opened: Opened, filled: list[int], engine: AsyncEngine
) -> None:
    """It reloads itself, signs in, asks and acts; what needs a script is not shown."""
    async with new_context(browser, base_url=opened.address, java_script_enabled=False) as (
        context,
        complaints,
    ):
        page = await context.new_page()
        await sign_in(page)
        assert await page.locator("noscript meta[http-equiv=refresh]").count() == 1
        assert not await page.get_by_role("button", name="Pause").is_visible()
        await page.get_by_role("link", name=f"Dismiss response {filled[1]}").click()
        await page.get_by_role("button", name="Dismiss").click()
        await page.get_by_text("1 answer: dismissed.").wait_for()
        assert complaints == []

    assert (await states(engine))[filled[1]] == "dismissed"


async def test_a_worker_that_has_gone_is_noticed(browser: Browser, opened: Opened, filled: list[int]) -> None:
    """What stands there stays, with since when it is old."""
    async with new_context(browser, base_url=opened.address, viewport=DESKTOP) as (context, _):
        page = await context.new_page()
        await page.goto("/console")
        await context.set_offline(True)

        await page.get_by_text("No contact since").wait_for()
        assert await page.get_by_text("3 answers could not be scored").count() == 1

        await context.set_offline(False)
        await page.get_by_text("Live", exact=True).wait_for()
