"""Nobody is kept out: every state of the page, in both themes, on a wide and on a small screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser import grave_violations, overflows
from tests.page.student import PATIENCE_MS, Student

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from playwright.async_api import BrowserContext, Route

pytestmark = pytest.mark.processes

SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 320, "height": 640}}
LONG_WORD = "Chlorophyll" * 30


@pytest.fixture(scope="module")
def checked(measured: Callable[[str], None]) -> Iterator[list[str]]:
    """What was looked at; the report tells how much that was."""
    states: list[str] = []
    yield states
    measured(f"student's page: {len(states)} states checked by axe, nothing serious or critical")


def held(state: str) -> Callable[[Route], Awaitable[None]]:
    """Lets the server's list pass with every answer in this state."""

    async def hold(route: Route) -> None:
        reply = await route.fetch()
        page = await reply.json()
        page["items"] = [{**item, "state": state, "score": None} for item in page["items"]]
        await route.fulfill(response=reply, json=page)

    return hold


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_of_the_page_keeps_anybody_out(
    make_profile: Callable[..., Awaitable[BrowserContext]], checked: list[str], scheme: str, size: str
) -> None:
    """Axe finds nothing serious, and nothing is wider than the screen."""
    profile = await make_profile(
        color_scheme=scheme, viewport=SIZES[size], reduced_motion="reduce", may_complain=True
    )
    student = await Student.at(profile)

    async def look(state: str) -> None:
        assert await grave_violations(student.page) == [], state
        assert not await overflows(student.page), state
        checked.append(f"{state}, {scheme}, {size}")

    await look("nothing written")
    await student.button.click()
    await expect(student.problem).not_to_be_empty()
    await look("a problem")
    await student.write(f"Half an answer, {LONG_WORD}")
    await student.until_saved()
    await look("draft saved")
    await profile.route("**/assessment/drafts/**", lambda route: route.abort())
    await student.write("On this device only")
    await expect(student.draft_status).to_contain_text("kept on this device")
    await look("draft kept")
    await profile.unroute("**/assessment/drafts/**")
    await student.write("x" * 19_900)
    await look("few characters left")
    await student.write("x" * 20_001)
    await look("too long")
    await student.submit(f"The leaf reflects green light. {LONG_WORD}")
    await student.until_scored()
    await student.submit()
    await student.until_scored()
    await look("scored, with an earlier answer")
    if size == "phone":
        await student.page.locator("#menu > summary").click()
        await look("menu open")
    await student.sign_in(104)
    await look("signed in")
    await student.page.get_by_role("button", name="Sign out").click()
    await expect(student.page.locator("#who")).to_have_text("Not signed in", timeout=PATIENCE_MS)

    # States that do not last, held still: the same answer, as the server would tell of it.
    await student.submit()
    for state in ("waiting", "scoring", "unpublished", "failed"):
        await profile.route("**/assessment/responses?*", held(state))
        await profile.route("**/assessment/events*", lambda route: route.abort())
        await student.page.reload()
        await expect(student.cards.first.locator(".state")).to_have_attribute("data-state", state)
        await look(state)
        await profile.unroute("**/assessment/responses?*")
    await expect(student.page.locator("#notice")).to_be_visible(timeout=PATIENCE_MS)
    await look("connection interrupted")


async def test_there_is_one_of_everything_that_must_be_one(profile: BrowserContext) -> None:
    """One main region and one first heading, regions with names, a language, a title that tells the question."""
    student = await Student.at(profile)
    page = student.page

    await expect(page.get_by_role("main")).to_have_count(1)
    await expect(page.get_by_role("heading", level=1)).to_have_count(1)
    await expect(page.get_by_role("navigation", name="Questions")).to_have_count(1)
    await expect(page.get_by_role("region", name="Your answers")).to_have_count(1)
    await expect(page.get_by_role("complementary", name="Demo controls")).to_have_count(1)
    assert (await page.title()).startswith("Why leaves are green")
    assert await page.evaluate("document.documentElement.lang") == "en"


async def test_who_wants_no_motion_sees_none(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """With ``prefers-reduced-motion`` nothing is animated."""
    profile = await make_profile(reduced_motion="reduce")
    student = await Student.at(profile)
    await student.submit()
    await student.until_scored()

    assert await student.page.evaluate("document.getAnimations().length") == 0
