"""From a question to a score, in a real browser, against a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.page.student import GOOD_ANSWER, PATIENCE_MS, Student
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import BrowserContext, Route

    from tests.page.site import Site

pytestmark = pytest.mark.processes

ANSWER = {"module_slug": "photosynthesis", "question_id": "why-leaves-are-green"}
# The stream may tell again of what was scored a moment ago, and brings its cards: where the list is to speak alone.
SILENCE = {"status": 200, "content_type": "text/event-stream", "body": ""}

MARKUP = (
    '<img src=x onerror="document.title=\'hacked\'"><b id="injected">bold</b> & <script>alert(1)</script>'
)


async def test_an_answer_opens_into_its_score_without_a_reload(profile: BrowserContext) -> None:
    """The answer appears at once, and opens into score, reasoning and dimensions; who can't see is told."""
    student = await Student.at(profile)
    await expect(student.page.get_by_role("heading", level=1)).to_contain_text(
        "Why do most leaves look green"
    )
    await student.page.evaluate("window.sameDocument = true")
    # The stream alone must tell of the score.
    await profile.route("**/assessment/responses?*", lambda route: route.abort())

    await student.submit()
    await student.until_scored()

    await profile.unroute("**/assessment/responses?*")
    [stored] = await student.stored()
    score = stored["score"]
    card = student.cards.first
    await expect(card.locator("details")).to_have_attribute("open", "")
    await expect(card.locator(".points")).to_have_text(f"{score['overall_score']:g} of 5")
    await expect(card.locator(".reasoning")).to_have_text(score["reasoning"])
    for dimension in score["dimensions"]:
        row = card.locator(".dimension", has_text=dimension["name"])
        await expect(row.locator(".number")).to_have_text(f"{dimension['score']:g} of 5")
        await expect(row.locator(".note")).to_have_text(dimension["note"])
    await expect(card.locator("blockquote")).to_have_text(GOOD_ANSWER)
    await expect(student.announcer).to_have_text(f"Your answer was scored: {score['overall_score']:g} of 5.")
    await expect(student.page.locator("nav a[aria-current]")).to_contain_text("Scored")
    assert await student.page.evaluate("window.sameDocument")


async def test_earlier_answers_stand_below_and_are_still_there_after_a_reload(
    profile: BrowserContext,
) -> None:
    """Every attempt is kept; the newest is first and open."""
    student = await Student.at(profile)
    await student.submit("The leaf reflects green light.")
    await student.until_scored()
    await student.submit()
    await student.until_scored()

    await student.page.reload()

    await expect(student.cards).to_have_count(2)
    await expect(student.cards.nth(0)).to_contain_text("Latest answer")
    await expect(student.cards.nth(1)).to_contain_text("Earlier answer")
    await expect(student.cards.nth(0).locator("blockquote")).to_be_visible()
    await expect(student.cards.nth(1).locator("blockquote")).to_be_hidden()


async def test_more_than_a_page_of_answers_can_be_read(profile: BrowserContext) -> None:
    """Twenty are shown, the others on demand."""
    student = await Student.at(profile)
    for number in range(23):
        reply = await profile.request.post(
            "/assessment/responses",
            data=ANSWER | {"answer_text": f"Answer {number}"},
        )
        assert reply.status == 201
    await profile.route("**/assessment/events*", lambda route: route.fulfill(**SILENCE))
    await student.page.reload()
    await expect(student.cards).to_have_count(20)

    await student.page.get_by_role("button", name="Show earlier answers").click()

    await expect(student.cards).to_have_count(23)
    await expect(student.page.get_by_role("button", name="Show earlier answers")).to_be_hidden()


async def test_a_double_click_stores_one_answer(profile: BrowserContext) -> None:
    """However often and however fast the button is pressed."""
    student = await Student.at(profile)
    await student.write(GOOD_ANSWER)
    sent: list[str] = []
    student.page.on("request", lambda request: sent.append(request.method))

    await student.page.evaluate("for (let i = 0; i < 5; i++) document.getElementById('submit').click()")
    await student.button.dblclick()

    await student.until_scored()
    assert len(await student.stored()) == 1
    assert sent.count("POST") == 1


async def test_what_students_write_is_shown_as_text(profile: BrowserContext) -> None:
    """Markup in an answer is neither run nor rendered."""
    student = await Student.at(profile)

    await student.submit(MARKUP)
    await student.until_scored()

    await expect(student.cards.first.locator("blockquote")).to_have_text(MARKUP)
    assert await student.page.locator("#injected").count() == 0
    assert "hacked" not in await student.page.title()


async def test_what_teachers_and_names_say_is_shown_as_text(profile: BrowserContext) -> None:
    """Markup in a question, its goal, its module, or somebody's name is neither run nor rendered."""

    async def marked_up(route: Route) -> None:
        reply = await route.fetch()
        found = await reply.json()
        if isinstance(found, list):
            names = ("question_text", "learning_outcome_name", "module_slug", "question_id")
            found = [{**each, **dict.fromkeys(names, MARKUP)} for each in found[:1]]
        else:
            found |= {"user": {"id": 1, "name": MARKUP}, "students": [{"id": 1, "name": MARKUP}]}
        await route.fulfill(response=reply, json=found)

    await profile.route("**/api/*", marked_up)
    page = await profile.new_page()
    await page.goto("/")

    await expect(page.get_by_role("heading", level=1)).to_have_text(MARKUP)
    await expect(page.locator("#outcome")).to_contain_text(MARKUP)
    await expect(page.locator("#who")).to_contain_text(MARKUP)
    await expect(page.locator("#student option")).to_contain_text(MARKUP)
    assert await page.locator("#injected").count() == 0
    assert await page.title() != "hacked"


async def test_a_long_answer_keeps_the_button_in_sight(profile: BrowserContext) -> None:
    """The editor grows with what is written, and never beyond the window."""
    student = await Student.at(profile)
    await student.write("A line\n" * 10)
    before = await student.editor.evaluate("(editor) => editor.clientHeight")

    await student.write("A line\n" * 500)

    height = await student.editor.evaluate("(editor) => editor.clientHeight")
    assert before < height < await student.page.evaluate("innerHeight")


@pytest.mark.parametrize("text", ["", "   \n\t "])
async def test_an_empty_answer_is_not_sent(profile: BrowserContext, text: str) -> None:
    """The page says so, where one looks and where one listens, and puts one back to writing."""
    student = await Student.at(profile)
    await student.write(text)

    await student.button.click()

    await expect(student.problem).to_have_text("Write an answer first.")
    await expect(student.editor).to_be_focused()
    assert await student.stored() == []


async def test_characters_are_counted_as_the_database_counts_them(profile: BrowserContext) -> None:
    """An emoji is one character, not two; one too many is said and not sent; the last one fits and is stored."""
    student = await Student.at(profile)
    remaining = student.page.locator("#remaining")

    await student.write("🌱" * 19_999)
    await expect(remaining).to_have_text("1 character left")
    await student.write("🌱" * 20_001)
    await expect(remaining).to_have_text("1 character too long")
    await student.button.click()
    await expect(student.problem).to_have_text("Your answer is 1 character too long.")
    # As a draft it is not sent either, and the page says where it is.
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    assert await student.stored() == []

    await student.submit("🌱" * 20_000)
    assert [len(answer["answer_text"]) for answer in await student.stored()] == [20_000]


async def test_everything_can_be_done_from_the_keyboard(profile: BrowserContext) -> None:
    """Tab reaches the question, the editor, the button and the score; the focus is always visible."""
    student = await Student.at(profile)
    keyboard = student.page.keyboard

    async def focused() -> str:
        return str(await student.page.evaluate("document.activeElement.id || document.activeElement.tagName"))

    async def tab_to(name: str) -> None:
        for _ in range(40):
            await keyboard.press("Tab")
            style = "getComputedStyle(document.activeElement)"
            assert await student.page.evaluate(f"{style}.outlineStyle") != "none", await focused()
            if await focused() == name:
                return
        pytest.fail(f"Tab never reached {name}.")

    await tab_to("answer")
    await keyboard.type(GOOD_ANSWER)
    await tab_to("submit")
    await keyboard.press("Enter")
    await student.until_scored()
    assert await focused() == "submit"  # nobody is thrown anywhere
    await tab_to("SUMMARY")
    await keyboard.press("Enter")
    await expect(student.cards.first.locator("blockquote")).to_be_hidden()
    await keyboard.press("Space")
    await expect(student.cards.first.locator("blockquote")).to_be_visible()


async def test_the_focus_stays_where_the_work_goes_on(profile: BrowserContext) -> None:
    """A button that does its last work and vanishes hands the focus on: a keyboard does not start from the top."""
    student = await Student.at(profile)
    for number in range(21):
        reply = await profile.request.post(
            "/assessment/responses", data=ANSWER | {"answer_text": f"Answer {number}"}
        )
        assert reply.status == 201
    await profile.route("**/assessment/events*", lambda route: route.fulfill(**SILENCE))
    await student.page.reload()
    await expect(student.cards).to_have_count(20)

    await student.page.get_by_role("button", name="Show earlier answers").press("Enter")
    await expect(student.cards.last.locator("summary")).to_be_focused()


async def test_the_focus_stays_at_the_sign_in(profile: BrowserContext) -> None:
    """Where its button was, the one for signing out is."""
    student = await Student.at(profile)

    await student.page.get_by_role("button", name="Sign in").press("Enter")

    await expect(student.page.get_by_role("button", name="Sign out", exact=True)).to_be_focused()


async def test_another_question_has_answers_and_a_draft_of_its_own(profile: BrowserContext) -> None:
    """Going to another question moves the focus to it, and what was being written waits where it was."""
    student = await Student.at(profile)
    await student.submit()
    await student.write("To be continued")

    await student.page.get_by_role("link", name="Mean or median").click()

    await expect(student.page.get_by_role("heading", level=1)).to_be_focused()
    await expect(student.page.get_by_role("heading", level=1)).to_contain_text("Nine people")
    await expect(student.editor).to_have_value("")
    await expect(student.cards).to_have_count(0)
    await student.page.go_back()
    await expect(student.editor).to_have_value("To be continued")
    await expect(student.cards).to_have_count(1)


async def test_signing_in_makes_the_guests_answers_the_users(profile: BrowserContext, site: Site) -> None:
    """Answers and draft follow without a reload, and another browser sees them under the user's name."""
    student = await Student.at(profile)
    await student.submit()
    await student.until_scored()
    await student.write("My next thought")
    await student.until_saved()
    token = next(cookie for cookie in await profile.cookies() if cookie["name"] == "student")

    await student.sign_in(101)

    await expect(student.cards).to_have_count(1, timeout=PATIENCE_MS)
    await student.until_scored()
    await expect(student.editor).to_have_value("My next thought")
    await student.until_saved()
    cookies = {cookie["name"]: cookie for cookie in await profile.cookies()}
    assert cookies["student"]["value"] != token["value"]
    assert cookies["student"]["httpOnly"]
    assert cookies["signed-in"]["httpOnly"]

    async with await profile.browser.new_context(base_url=site.url) as elsewhere:  # type: ignore[union-attr]
        other = await Student.at(elsewhere)
        await other.sign_in(101)
        await expect(other.cards).to_have_count(1)
        await expect(other.editor).to_have_value("My next thought")


async def test_who_signs_out_leaves_nothing_to_see(profile: BrowserContext) -> None:
    """The next person at this computer finds neither answers nor drafts, on the page or in the browser."""
    student = await Student.at(profile)
    await student.sign_in(102)
    await student.submit()
    await student.write("Nobody's business")
    await student.until_saved()

    await student.page.get_by_role("button", name="Sign out").click()

    await expect(student.page.locator("#who")).to_have_text("Not signed in")
    await expect(student.editor).to_be_visible()
    await expect(student.editor).to_have_value("")
    await expect(student.cards).to_have_count(0)
    assert await student.page.evaluate("Object.keys(localStorage).length") == 0
    assert await student.stored() == []


async def test_an_older_draft_of_the_user_is_not_written_over(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """Who writes as a guest and then signs in keeps both texts, one below the other."""
    home = await Student.at(await make_profile())
    await home.sign_in(103)
    await home.write("Begun at home.")
    await home.until_saved()

    school = await Student.at(await make_profile())
    await school.write("Begun at school.")
    await school.until_saved()
    await school.sign_in(103)

    await expect(school.editor).to_have_value("Begun at home.\n\nBegun at school.")
    await school.until_saved()

    async def stored() -> bool:
        reply = await home.page.context.request.get("/assessment/drafts/photosynthesis/why-leaves-are-green")
        return bool((await reply.json())["answer_text"] == "Begun at home.\n\nBegun at school.")

    await eventually(stored)
