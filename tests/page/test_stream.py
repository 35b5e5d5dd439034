"""The page's stream of events: who holds one, and what it brings to the list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.page.student import GOOD_ANSWER, LEAVES, PATIENCE_MS, Student

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import BrowserContext, Route

pytestmark = pytest.mark.processes

EVENTS = "**/assessment/events*"


async def submit_elsewhere(profile: BrowserContext) -> int:
    """Answer without the page, as from another browser; returns the answer's id."""
    question = {"module_slug": "photosynthesis", "question_id": "why-leaves-are-green"}
    reply = await profile.request.post("/assessment/responses", data=question | {"answer_text": GOOD_ANSWER})
    assert reply.status == 201
    return int((await reply.json())["id"])


async def test_many_tabs_can_be_open(profile: BrowserContext) -> None:
    """Browsers open six connections to a host: a tab that nobody looks at keeps none, and the eighth works."""
    for _ in range(7):
        async with profile.expect_event("requestfinished", lambda request: "/api/questions" in request.url):
            pass_by = await Student.at(profile)
        await pass_by.look(away=True)

    last = await Student.at(profile)
    await last.submit()

    await last.until_scored()


async def test_a_tab_that_is_looked_at_again_is_up_to_date(profile: BrowserContext) -> None:
    """It heard nothing meanwhile; then it shows what has come and hears again."""
    student = await Student.at(profile)
    await student.submit()
    await student.until_scored()
    await student.look(away=True)
    await submit_elsewhere(profile)
    opened: list[str] = []
    student.page.on("request", lambda request: opened.append(request.url))

    await student.look(away=False)

    await expect(student.cards).to_have_count(2)
    await student.until_scored()
    assert any("/assessment/events?" in url for url in opened)


async def test_a_tab_that_was_opened_behind_others_asks_who_is_here_when_it_is_looked_at(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """It slept through a sign-in: the first thing that it hears would be somebody else's."""
    profile = await make_profile(may_complain=True)
    page = await profile.new_page()
    await page.add_init_script(
        "BroadcastChannel.prototype.addEventListener = () => {};"
        "Object.defineProperty(document, 'visibilityState', { value: 'hidden', configurable: true });"
    )
    await page.goto(LEAVES)
    student = Student(page)
    await expect(student.editor).to_be_visible()
    await expect(page.locator("#none")).to_be_visible()
    assert (await profile.request.post("/demo/sign-in", data={"user_id": 105})).ok

    await student.look(away=False)

    await expect(page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)


async def test_the_stream_brings_no_answer_that_was_not_asked_for(profile: BrowserContext) -> None:
    """It tells of the newest fifty; those beyond the page that is shown are neither fetched one by one nor shown."""
    student = await Student.at(profile)
    for _ in range(23):
        await submit_elsewhere(profile)
    fetched: list[str] = []
    student.page.on("request", lambda request: fetched.append(request.url.rpartition("/responses/")[2]))
    page_is_here = asyncio.Event()

    async def late(route: Route) -> None:
        await page_is_here.wait()
        await route.continue_()

    await student.page.route(EVENTS, late)
    await student.page.goto("about:blank")
    await student.page.goto(LEAVES)
    await expect(student.cards).to_have_count(20)
    fetched.clear()

    page_is_here.set()
    newest = await submit_elsewhere(profile)

    await expect(student.cards).to_have_count(21)
    assert {each for each in fetched if each.isdecimal()} == {str(newest)}


async def test_what_the_stream_tells_before_the_list_is_here_is_not_asked_for(
    profile: BrowserContext,
) -> None:
    """The list is on its way: twenty questions for its cards would be for nothing."""
    student = await Student.at(profile)
    for _ in range(3):
        await submit_elsewhere(profile)
    await student.page.goto("about:blank")  # this page was told of them as they came
    fetched: list[str] = []
    student.page.on("request", lambda request: fetched.append(request.url.rpartition("/responses/")[2]))
    told = asyncio.Event()

    async def after_the_stream(route: Route) -> None:
        await told.wait()
        await route.continue_()

    await student.page.route("**/assessment/responses?*", after_the_stream)
    await student.page.goto(LEAVES)
    await expect(student.page.locator("nav a[aria-current] .mark")).to_be_visible()
    told.set()

    await expect(student.cards).to_have_count(3)
    assert [each for each in fetched if each.isdecimal()] == []


async def test_earlier_answers_that_were_asked_for_stay(profile: BrowserContext) -> None:
    """Looking away and back brings neither twice nor takes away, and the button does not come back."""
    student = await Student.at(profile)
    for _ in range(23):
        await submit_elsewhere(profile)
    await student.page.reload()
    more = student.page.get_by_role("button", name="Show earlier answers")
    await more.click()
    await expect(student.cards).to_have_count(23)

    await student.look(away=True)
    async with student.page.expect_response("**/assessment/responses?*"):
        await student.look(away=False)
    await submit_elsewhere(profile)

    await expect(student.cards).to_have_count(24)
    await expect(more).to_be_hidden()
