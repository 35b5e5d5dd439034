"""Who follows whom at one browser: no word crosses from one person to another, and nobody loses one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.async_api import expect

from tests.browser import grave_violations, overflows
from tests.page.student import LEAVES, LEAVES_DRAFT, PATIENCE_MS, Student
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import BrowserContext, Route

    from tests.page.site import Site

pytestmark = pytest.mark.processes

FELIX = 106
CLICKS = "/#/thinking-with-data/ten-thousand-clicks"
MEDIAN = "/#/thinking-with-data/mean-or-median"
DRAFTS = "**/assessment/drafts/**"
MEDIAN_DRAFT = "/assessment/drafts/thinking-with-data/mean-or-median"
DEAF = "BroadcastChannel.prototype.addEventListener = () => {};"


@pytest.fixture(autouse=True)
async def nothing_begun(site: Site) -> None:
    """No draft of an earlier test is left."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        await client.get("/")
        (await client.post("/demo/sign-in", json={"user_id": FELIX})).raise_for_status()
        for path in (LEAVES_DRAFT, MEDIAN_DRAFT):
            (await client.delete(path)).raise_for_status()


@pytest.fixture
async def shared(make_profile: Callable[..., Awaitable[BrowserContext]]) -> BrowserContext:
    """The browser of several people. Refusals are expected, and browsers call each an error."""
    return await make_profile(may_complain=True)


async def draft(profile: BrowserContext, path: str) -> str | None:
    """What the server has of the draft of whoever is signed in."""
    reply = await profile.request.get(path)
    return str((await reply.json())["answer_text"]) if reply.status == 200 else None


async def until_draft(profile: BrowserContext, path: str, text: str) -> None:
    async def is_there() -> bool:
        return await draft(profile, path) == text

    await eventually(is_there)


async def kept(student: Student) -> int:
    """How many drafts this device keeps."""
    return int(await student.page.evaluate("Object.keys(localStorage).length"))


async def deaf(profile: BrowserContext, address: str) -> Student:
    """A tab that hears nothing of the others, as one that was frozen."""
    page = await profile.new_page()
    await page.add_init_script(DEAF)
    await page.goto(address)
    student = Student(page)
    await expect(student.editor).to_be_visible()
    return student


async def sign_out(student: Student) -> None:
    await student.page.get_by_role("button", name="Sign out", exact=True).click()


async def until_signed_out(student: Student) -> None:
    await expect(student.page.locator("#who")).to_have_text("Not signed in", timeout=PATIENCE_MS)


@pytest.mark.parametrize("by", ["pagehide", "writing"])
async def test_a_sleeping_tab_sends_nothing_in_the_name_of_the_next_person(
    shared: BrowserContext, by: str
) -> None:
    """What it has is the former person's: refused, shown to nobody, and there again when he comes back."""
    first = await Student.at(shared)
    await first.sign_in(FELIX)
    second = await deaf(shared, MEDIAN)
    await second.page.route(DRAFTS, lambda route: route.abort())
    await second.write("Mine alone")
    await expect(second.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)

    await sign_out(first)
    await until_signed_out(first)
    await second.page.unroute(DRAFTS)
    async with second.page.expect_response(DRAFTS) as tried:
        if by == "pagehide":
            await second.page.evaluate("dispatchEvent(new Event('pagehide'))")
        else:
            await second.write("Mine alone, and more")

    assert (await tried.value).status == 412
    await until_signed_out(second)
    await expect(second.editor).to_have_value("")
    assert await draft(shared, MEDIAN_DRAFT) is None
    await first.sign_in(FELIX)
    assert str(await draft(shared, MEDIAN_DRAFT)).startswith("Mine alone")


async def test_a_sleeping_tab_submits_nothing_in_the_name_of_the_next_person(shared: BrowserContext) -> None:
    """The text stands in the editor, the button is pressed: it is no answer of who has signed in since."""
    first = await Student.at(shared)
    second = await deaf(shared, MEDIAN)
    await second.write("A guest's")
    await second.until_saved()
    await first.sign_in(FELIX)
    before = len(await first.stored())

    async with second.page.expect_response("**/assessment/responses") as tried:
        await second.button.click()

    assert (await tried.value).status == 412
    await expect(second.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
    assert len(await first.stored()) == before


async def test_a_sleeping_tab_hears_nothing_of_the_next_person(shared: BrowserContext) -> None:
    """Its stream is refused as its other calls are; it asks who is here, and begins anew for him."""
    first = await Student.at(shared)
    second = await deaf(shared, MEDIAN)
    await second.look(away=True)
    await first.sign_in(FELIX)
    await second.page.route("**/assessment/responses?*", lambda route: route.abort())  # only the stream tells

    async with second.page.expect_response("**/assessment/events*") as tried:
        await second.look(away=False)

    assert (await tried.value).status == 412
    await expect(second.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)


async def test_what_a_guest_wrote_in_any_tab_is_the_users_after_the_sign_in(shared: BrowserContext) -> None:
    """Also what the server did not have yet, and in a tab that looks at another question."""
    first = await Student.at(shared, LEAVES)
    second = await Student.at(shared, MEDIAN)
    await shared.route(DRAFTS, lambda route: route.abort())
    await first.write("Of leaves")
    await second.write("Of averages")
    for student in (first, second):
        await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)

    await first.sign_in(FELIX)
    await expect(second.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
    await shared.unroute(DRAFTS)

    await until_draft(shared, LEAVES_DRAFT, "Of leaves")
    await until_draft(shared, MEDIAN_DRAFT, "Of averages")
    await expect(first.editor).to_have_value("Of leaves")
    await expect(second.editor).to_have_value("Of averages")


async def test_a_sign_out_saves_what_is_unsaved_of_every_question(shared: BrowserContext) -> None:
    """Not only of the one that is open: the device forgets them all."""
    student = await Student.at(shared, MEDIAN)
    await student.sign_in(FELIX)
    await shared.route(DRAFTS, lambda route: route.abort())
    await student.write("Of averages, on the train")
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    await student.page.goto(LEAVES)
    await expect(student.page.get_by_role("heading", level=1)).to_contain_text("leaves")
    await student.write("Of leaves, on the train")
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    await shared.unroute(DRAFTS)

    await sign_out(student)
    await until_signed_out(student)

    assert await kept(student) == 0
    await student.sign_in(FELIX)
    assert await draft(shared, MEDIAN_DRAFT) == "Of averages, on the train"
    assert await draft(shared, LEAVES_DRAFT) == "Of leaves, on the train"


async def test_a_sign_out_saves_what_another_tab_wrote_a_moment_ago(shared: BrowserContext) -> None:
    """The tab that signs out shows it as well, and leaves the saving to the one in which it was written."""
    writing, other = await Student.at(shared), await Student.at(shared)
    await writing.sign_in(FELIX)
    await expect(other.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
    await writing.page.route(DRAFTS, lambda route: route.abort())
    await writing.write("A moment ago")
    await expect(other.editor).to_have_value("A moment ago", timeout=PATIENCE_MS)

    await sign_out(other)
    await until_signed_out(other)

    await other.sign_in(FELIX)
    assert await draft(shared, LEAVES_DRAFT) == "A moment ago"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_who_has_written_too_much_is_asked_and_may_leave(
    make_profile: Callable[..., Awaitable[BrowserContext]], scheme: str
) -> None:
    """First a question, from the keyboard too, that takes nothing for granted; then he may go, and nothing stays."""
    profile = await make_profile(viewport={"width": 320, "height": 640}, color_scheme=scheme)
    student = await Student.at(profile)
    await student.sign_in(FELIX)
    await student.write("x" * 20_005)
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    dialog = student.page.get_by_role("dialog", name="Sign out and lose what is not saved?")

    await sign_out(student)
    await expect(dialog).to_contain_text("Why leaves are green: 5 characters too long to be saved.")
    await expect(student.page.get_by_role("button", name="Stay signed in")).to_be_focused()
    assert await grave_violations(student.page) == []
    assert not await overflows(student.page)
    await student.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(student.page.locator("#who")).to_contain_text("Signed in as")
    await expect(student.editor).to_be_editable()
    await expect(student.editor).to_have_value("x" * 20_005)

    await sign_out(student)
    await student.page.get_by_role("button", name="Sign out and lose it").click()
    await until_signed_out(student)
    await expect(student.editor).to_have_value("")
    assert await kept(student) == 0


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_a_sign_in_or_out_whose_reply_is_lost_leaves_no_half(
    shared: BrowserContext, direction: str
) -> None:
    """The page finds out who is here now, and a guest's words follow him."""
    student = await Student.at(shared)
    if direction == "out":
        await student.sign_in(FELIX)
    await student.write("Where do I go?")
    await student.until_saved()

    async def lose_reply(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await student.page.route(f"**/demo/sign-{direction}", lose_reply)
    if direction == "out":
        await sign_out(student)
        await until_signed_out(student)
        await expect(student.editor).to_have_value("")
        assert await draft(shared, LEAVES_DRAFT) is None
    else:
        await student.page.get_by_label("Sign in, without a password").select_option(str(FELIX))
        await student.page.get_by_role("button", name="Sign in").click()
        await expect(student.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
        await expect(student.editor).to_have_value("Where do I go?", timeout=PATIENCE_MS)
    assert await kept(student) == 0


async def test_a_sign_in_waits_for_the_answer_that_is_on_its_way(shared: BrowserContext) -> None:
    """It is stored once, becomes the user's with the others, and does not stand in the editor as a draft."""
    student = await Student.at(shared, CLICKS)
    arrives = asyncio.Event()

    async def slow(route: Route) -> None:
        if route.request.method == "POST":
            await arrives.wait()
        await route.continue_()

    await student.page.route("**/assessment/responses", slow)
    asked: list[str] = []
    student.page.on("request", lambda request: asked.append(request.url))
    await student.write("On its way")
    async with student.page.expect_request("**/assessment/responses"):
        await student.button.click()
    await student.page.get_by_label("Sign in, without a password").select_option(str(FELIX))
    await student.page.get_by_role("button", name="Sign in").click()
    assert not any(url.endswith("/demo/sign-in") for url in asked)
    arrives.set()

    await expect(student.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
    await expect(student.cards).to_have_count(1, timeout=PATIENCE_MS)
    await expect(student.editor).to_have_value("")
    assert [each["answer_text"] for each in await student.stored()].count("On its way") == 1


async def test_a_page_that_is_shown_again_by_back_asks_who_is_here(shared: BrowserContext) -> None:
    """Browsers show it as it was left, with the answers of whoever sat here then."""
    student = await Student.at(shared)
    await student.sign_in(FELIX)
    await student.submit("Not for the next one")
    await shared.request.post("/demo/sign-out")

    await student.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")

    await until_signed_out(student)
    await expect(student.cards).to_have_count(0)


async def test_signing_out_in_one_tab_empties_the_others(profile: BrowserContext) -> None:
    """At once, without anything sent for the wrong person: no console complains."""
    first, second = await Student.at(profile, LEAVES), await Student.at(profile, MEDIAN)
    await first.sign_in(FELIX)
    await expect(second.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)
    await second.write("Of averages")

    await sign_out(first)

    await until_signed_out(second)
    await expect(second.editor).to_have_value("")
    assert await draft(profile, MEDIAN_DRAFT) is None
    assert await kept(second) == 0
    await first.sign_in(FELIX)
    assert await draft(profile, MEDIAN_DRAFT) == "Of averages"
