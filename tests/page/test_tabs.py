"""Two tabs on one question: they write one draft, submit one answer, and neither loses a word to the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.page.student import GOOD_ANSWER, PATIENCE_MS, Student, saved_text
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import BrowserContext, Route

pytestmark = pytest.mark.processes

RESPONSES = "**/assessment/responses"


async def test_two_tabs_write_one_draft_and_submit_one_answer(profile: BrowserContext) -> None:
    """What is written in one tab stands in the other, and both submit the same answer."""
    first, second = await Student.at(profile), await Student.at(profile)

    await first.write(GOOD_ANSWER)
    await expect(second.editor).to_have_value(GOOD_ANSWER)
    await first.button.click()
    await second.button.click()

    await expect(first.cards).to_have_count(1)
    await expect(second.cards).to_have_count(1)
    await expect(second.editor).to_have_value("")
    await first.until_scored()
    await second.until_scored()
    assert len(await first.stored()) == 1


async def test_what_one_tab_writes_while_another_submits_is_kept(profile: BrowserContext) -> None:
    """The answer that arrives is the text that was sent; what was added meanwhile is a draft of its own."""
    first, second = await Student.at(profile), await Student.at(profile)
    sent, may_arrive = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        sent.set()
        await may_arrive.wait()
        await route.continue_()

    await first.page.route(RESPONSES, hold)
    await first.write(GOOD_ANSWER)
    await expect(second.editor).to_have_value(GOOD_ANSWER)
    await first.button.click()
    await sent.wait()
    await second.write(f"{GOOD_ANSWER} And more.")
    may_arrive.set()

    await expect(second.cards).to_have_count(1, timeout=PATIENCE_MS)
    await expect(second.editor).to_have_value(f"{GOOD_ANSWER} And more.")
    await expect(first.editor).to_have_value(f"{GOOD_ANSWER} And more.")

    async def saved() -> bool:
        return await saved_text(profile) == f"{GOOD_ANSWER} And more."

    await eventually(saved)
    await second.button.click()
    await expect(second.cards).to_have_count(2, timeout=PATIENCE_MS)
    assert [answer["answer_text"] for answer in await second.stored()] == [
        f"{GOOD_ANSWER} And more.",
        GOOD_ANSWER,
    ]


async def test_two_tabs_that_know_nothing_of_each_other_submit_one_answer(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """A tab that was asleep, or another computer, submits the draft again: it is the same answer."""
    profile = await make_profile()
    first = await Student.at(profile)
    await first.write(GOOD_ANSWER)
    await first.until_saved()
    elsewhere = await make_profile(storage_state=await profile.storage_state())
    second = await Student.at(elsewhere)
    await expect(second.editor).to_have_value(GOOD_ANSWER)
    await first.submit()

    await second.button.click()

    await expect(second.editor).to_have_value("")
    await expect(second.cards).to_have_count(1)
    assert len(await first.stored()) == 1


async def test_a_tab_that_writes_on_after_a_submit_elsewhere_loses_nothing(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """Its draft is spent; what it adds becomes a draft of its own, and both are kept."""
    profile = await make_profile()
    first = await Student.at(profile)
    await first.write(GOOD_ANSWER)
    await first.until_saved()
    elsewhere = await make_profile(storage_state=await profile.storage_state())
    second = await Student.at(elsewhere)
    await expect(second.editor).to_have_value(GOOD_ANSWER)
    await first.submit()

    await second.write(f"{GOOD_ANSWER} And more.")

    async def saved() -> bool:
        return await saved_text(elsewhere) == f"{GOOD_ANSWER} And more."

    await eventually(saved)
    await expect(second.cards).to_have_count(1, timeout=PATIENCE_MS)
    await expect(second.editor).to_have_value(f"{GOOD_ANSWER} And more.")
