"""Whatever a call is answered: the page says so in words, loses no text, throws nothing, and works again afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect

from tests.page.student import GOOD_ANSWER, PATIENCE_MS, Student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import BrowserContext, Route

pytestmark = pytest.mark.processes

PROBLEM = (
    '{"type": "about:blank", "title": "No", "detail": "A <b>sentence</b>.", "errors": [{"rule": "a rule"}]}'
)
# As the server, a proxy, and something between them would answer.
REPLIES: list[dict[str, Any]] = [
    {"status": 204},
    {"status": 200, "content_type": "text/html", "body": "<h1>Log in to this network</h1>"},
    *({"status": status, "body": PROBLEM} for status in (404, 409, 413, 422, 429, 503)),
    {"status": 413, "content_type": "text/html", "body": "<h1>Too large</h1>"},
    {"status": 422, "body": "null"},
    {"status": 422, "body": '{"detail": [{"msg": "no"}], "errors": "none"}'},
]


@pytest.fixture
async def refused(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> AsyncIterator[BrowserContext]:
    """A profile in which refusals are expected, but no exception that nobody caught."""
    profile = await make_profile(may_complain=True)
    thrown: list[str] = []
    profile.on("weberror", lambda error: thrown.append(str(error.error)))
    yield profile
    assert thrown == []


def answering(method: str, reply: dict[str, Any]) -> Callable[[Route], Awaitable[None]]:
    async def answer(route: Route) -> None:
        if route.request.method == method:
            await route.fulfill(**reply)
        else:
            await route.fallback()

    return answer


def name_of(reply: dict[str, Any]) -> str:
    return f"{reply['status']} {reply.get('body', '')[:20]}"


@pytest.mark.parametrize("path", ["**/api/me", "**/api/questions", "**/assessment/responses?*"])
async def test_a_page_that_can_not_be_filled_says_so(refused: BrowserContext, path: str) -> None:
    """Whether it tries again by itself or has to be loaded again; it is never just empty."""
    student = await Student.at(refused)
    notice = student.page.locator("#notice")
    for reply in REPLIES:
        await refused.route(path, answering("GET", reply))
        await student.page.reload()
        await expect(notice, name_of(reply)).to_be_visible(timeout=PATIENCE_MS)
        await expect(notice, name_of(reply)).to_contain_text("can't be")
        await refused.unroute(path)

    await student.page.reload()
    await expect(student.editor).to_be_visible(timeout=PATIENCE_MS)
    await expect(notice).to_be_hidden()


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_draft_outlives_every_refusal(refused: BrowserContext, method: str) -> None:
    """Refused while it is read or saved, it is still in the editor, after a reload too, and is saved in the end."""
    student = await Student.at(refused)
    path = "**/assessment/drafts/**"
    text = "Kept"
    for number, reply in enumerate(REPLIES):
        await refused.route(path, answering(method, reply))
        if method == "GET":
            await student.page.reload()
            await expect(student.editor, name_of(reply)).to_be_visible(timeout=PATIENCE_MS)
        text = f"Kept {number}"
        async with student.page.expect_response(path):
            await student.write(text)
        await refused.unroute(path)
        await student.page.reload()
        await expect(student.editor, name_of(reply)).to_have_value(text, timeout=PATIENCE_MS)
        await student.until_saved()


async def test_an_answer_outlives_every_refusal(refused: BrowserContext) -> None:
    """The page says that it was not sent or not accepted, keeps it, and sends it once when it can."""
    student = await Student.at(refused)
    path = "**/assessment/responses"
    await student.write(GOOD_ANSWER)
    for reply in REPLIES:
        await refused.route(path, answering("POST", reply))
        async with student.page.expect_response(path):
            await student.button.click()
        await expect(student.problem, name_of(reply)).to_contain_text("kept", timeout=PATIENCE_MS)
        await expect(student.editor, name_of(reply)).to_have_value(GOOD_ANSWER)
        await expect(student.editor, name_of(reply)).to_be_editable()
        await refused.unroute(path)

    await student.button.click()
    await expect(student.cards).to_have_count(1, timeout=PATIENCE_MS)
    assert len(await student.stored()) == 1


async def test_a_sign_in_and_a_sign_out_outlive_every_refusal(refused: BrowserContext) -> None:
    """The page says that it did not work, nothing is lost, and the same button works later."""
    student = await Student.at(refused)
    await student.write("Half an answer")
    await student.until_saved()
    problem = student.page.locator("#demo-problem")
    for name in ("Sign in", "Sign out"):
        button = student.page.get_by_role("button", name=name, exact=True)
        for reply in REPLIES[1:]:  # 204 is how both succeed
            await refused.route("**/demo/sign-*", answering("POST", reply))
            await button.click()
            await expect(problem, name_of(reply)).to_have_text("This did not work. Try again.")
            await expect(student.editor, name_of(reply)).to_be_editable()
            await expect(student.editor, name_of(reply)).to_have_value("Half an answer")
            await refused.unroute("**/demo/sign-*")
            await problem.evaluate("(place) => (place.textContent = '')")
        if name == "Sign in":
            await student.sign_in(107)
            await expect(student.editor).to_have_value("Half an answer")
    await student.page.get_by_role("button", name="Sign out", exact=True).click()
    await expect(student.page.locator("#who")).to_have_text("Not signed in", timeout=PATIENCE_MS)


async def test_a_site_without_questions_says_so(refused: BrowserContext) -> None:
    """And goes on saying so when the stream is there."""
    await refused.route("**/api/questions", answering("GET", {"status": 200, "json": []}))
    page = await refused.new_page()
    async with page.expect_response("**/assessment/events*"):
        await page.goto("/")

    await expect(page.locator("#notice")).to_have_text("No questions are published yet.")
    await expect(page.locator("#notice")).to_be_visible()
