"""A student at a browser, who does what a student does with the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playwright.async_api import expect

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Locator, Page

LEAVES = "/#/photosynthesis/why-leaves-are-green"
LEAVES_DRAFT = "/assessment/drafts/photosynthesis/why-leaves-are-green"
GOOD_ANSWER = (
    "Sunlight is a mixture of all colours. The chlorophyll in the leaf absorbs mostly the red and the blue light and "
    "uses its energy for photosynthesis. It hardly absorbs green, so the green light is reflected and reaches our eyes."
)
# Never reached by a test that passes, however slow the machine.
PATIENCE_MS = 30_000


@dataclass
class Student:
    """One tab."""

    page: Page

    @classmethod
    async def at(cls, context: BrowserContext, address: str = LEAVES) -> Student:
        """Open the page in a new tab and wait until one can write."""
        student = cls(await context.new_page())
        await student.page.goto(address)
        await expect(student.editor).to_be_visible(timeout=PATIENCE_MS)
        return student

    @property
    def editor(self) -> Locator:
        return self.page.get_by_label("Your answer", exact=True)

    @property
    def button(self) -> Locator:
        return self.page.locator("#submit")

    @property
    def problem(self) -> Locator:
        return self.page.locator("#problem")

    @property
    def draft_status(self) -> Locator:
        return self.page.locator("#draft-status")

    @property
    def announcer(self) -> Locator:
        return self.page.locator("#announcer")

    @property
    def cards(self) -> Locator:
        return self.page.locator("#answers > li")

    async def write(self, text: str) -> None:
        await self.editor.fill(text)

    async def until_saved(self) -> None:
        await expect(self.draft_status).to_have_text("Draft saved", timeout=PATIENCE_MS)

    async def submit(self, text: str = GOOD_ANSWER) -> None:
        """Write, submit, and wait until the answer has arrived."""
        before = await self.cards.count()
        await self.write(text)
        await self.button.click()
        await expect(self.cards).to_have_count(before + 1, timeout=PATIENCE_MS)

    async def until_scored(self, card: Locator | None = None) -> None:
        await expect((card or self.cards.first).locator(".state")).to_contain_text(
            "Scored", timeout=PATIENCE_MS
        )

    async def sign_in(self, user_id: int) -> None:
        await self.page.get_by_label("Sign in, without a password").select_option(str(user_id))
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page.locator("#who")).to_contain_text("Signed in as", timeout=PATIENCE_MS)

    async def look(self, *, away: bool) -> None:
        """Turn to another tab, or back; a browser under test shows all its tabs."""
        state = "hidden" if away else "visible"
        await self.page.evaluate(
            f"Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    async def stored(self) -> list[dict[str, Any]]:
        """What the server has of this student, newest first."""
        reply = await self.page.context.request.get("/assessment/responses?limit=100")
        assert reply.ok, await reply.text()
        items: list[dict[str, Any]] = (await reply.json())["items"]
        return items


async def saved_text(profile: BrowserContext) -> str | None:
    """What the server has of the draft of the first question."""
    reply = await profile.request.get(LEAVES_DRAFT)
    return None if reply.status == 404 else str((await reply.json())["answer_text"])
