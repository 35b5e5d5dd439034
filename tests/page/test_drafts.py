"""What a student has written is never lost, and submitted once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.page.student import GOOD_ANSWER, LEAVES, LEAVES_DRAFT, PATIENCE_MS, Student, saved_text
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Request, Route

pytestmark = pytest.mark.processes

DRAFTS = "**/assessment/drafts/**"
RESPONSES = "**/assessment/responses"
OTHER_QUESTION = "#/thinking-with-data/ten-thousand-clicks"
# Longer than the page ever waits before it tries again.
LONGEST_RETRY_MS = 20_000


async def test_a_draft_is_saved_by_itself_and_back_after_a_reload(profile: BrowserContext) -> None:
    """A pause is enough; the page says so once it is true, and nothing stays behind in the browser."""
    student = await Student.at(profile)

    await student.write("Half an ans")
    await student.until_saved()

    assert await saved_text(profile) == "Half an ans"
    assert await student.page.evaluate("Object.keys(localStorage).length") == 0
    await student.page.reload()
    await expect(student.editor).to_have_value("Half an ans")
    await expect(student.draft_status).to_have_text("Draft saved")


async def test_what_was_not_stored_stays_on_this_device_until_it_is_known_why(
    unreliable: BrowserContext,
) -> None:
    """Its key was used up elsewhere, and the question what is there now gets no reply: the text must not go."""
    student = await Student.at(unreliable)
    await student.write("First")
    await student.until_saved()
    draft = await (await unreliable.request.get(LEAVES_DRAFT)).json()
    answer = {name: draft[name] for name in ("module_slug", "question_id", "answer_text")}
    key = {"Idempotency-Key": draft["submission_key"]}
    assert (await unreliable.request.post("/assessment/responses", data=answer, headers=key)).status == 201

    async def ask_in_vain(route: Route) -> None:
        await (route.abort() if route.request.method == "GET" else route.continue_())

    await unreliable.route(DRAFTS, ask_in_vain)
    async with student.page.expect_response(DRAFTS) as tried:
        await student.write("First, and more")

    assert (await tried.value).status == 204
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    await student.page.reload()
    await expect(student.editor).to_have_value("First, and more")
    await unreliable.unroute(DRAFTS)
    await student.until_saved()
    assert await saved_text(unreliable) == "First, and more"


async def test_leaving_the_page_saves_what_was_just_written(profile: BrowserContext) -> None:
    """Who closes the tab a moment after the last letter has it on the server."""
    student = await Student.at(profile)
    await student.write("The last wor")

    await student.page.close()

    async def saved() -> bool:
        return await saved_text(profile) == "The last wor"

    await eventually(saved)


@pytest.mark.parametrize("late", ["PUT", "DELETE"])
async def test_what_arrives_late_does_no_harm(unreliable: BrowserContext, late: str) -> None:
    """A save, or an emptied editor, that was given up and reaches the server after what was written since."""
    student = await Student.at(unreliable)
    await student.write("First")
    await student.until_saved()
    held: list[Request] = []

    async def lose(route: Route) -> None:
        if held or route.request.method != late:
            await route.continue_()
            return
        held.append(route.request)
        await route.abort()

    await student.page.route(DRAFTS, lose)
    await student.write("Second" if late == "PUT" else "")
    await eventually(lambda: bool(held))
    await student.write("Third")
    await student.until_saved()

    arrived = await unreliable.request.fetch(
        LEAVES_DRAFT, method=late, data=held[0].post_data, headers=await held[0].all_headers()
    )

    assert arrived.status == 412
    assert await saved_text(unreliable) == "Third"


async def test_what_another_device_saves_meanwhile_is_found_out(unreliable: BrowserContext) -> None:
    """Who writes last wins, and is told that it is saved."""
    student = await Student.at(unreliable)
    await student.write("Here")
    await student.until_saved()
    there = await (await unreliable.request.get(LEAVES_DRAFT)).json()
    elsewhere = {"answer_text": "There", "submission_key": there["submission_key"]}
    assert (await unreliable.request.put(LEAVES_DRAFT, data=elsewhere)).status == 200

    await student.write("Here again")

    async def saved() -> bool:
        return await saved_text(unreliable) == "Here again"

    await eventually(saved)
    await student.until_saved()


async def test_an_emptied_editor_has_no_draft(profile: BrowserContext) -> None:
    """Who takes everything back finds nothing later."""
    student = await Student.at(profile)
    await student.write("Nonsense")
    await student.until_saved()

    await student.write("")

    async def gone() -> bool:
        return await saved_text(profile) is None

    await eventually(gone)
    await student.page.reload()
    await expect(student.editor).to_have_value("")


async def test_a_submitted_draft_is_gone(profile: BrowserContext) -> None:
    """After the submit the editor is empty and stays so, and the next answer has a key of its own."""
    student = await Student.at(profile)
    await student.write(GOOD_ANSWER)
    await student.until_saved()
    await student.submit()

    await expect(student.editor).to_have_value("")
    assert await saved_text(profile) is None
    await student.page.reload()
    await expect(student.cards).to_have_count(1)
    await expect(student.editor).to_have_value("")

    await student.submit(GOOD_ANSWER)  # the same words again are another attempt
    assert len(await student.stored()) == 2


async def test_a_text_outlives_a_reload_while_nothing_can_be_saved(unreliable: BrowserContext) -> None:
    """The page says that it is kept here, keeps it, and saves it by itself when the server is back."""
    student = await Student.at(unreliable)
    await unreliable.route(DRAFTS, lambda route: route.abort())

    await student.write("Written in a tunnel")
    await expect(student.draft_status).to_contain_text("kept on this device")
    await expect(student.announcer).to_contain_text("kept on this device")
    await student.page.reload()
    await expect(student.editor).to_have_value("Written in a tunnel")
    await expect(student.draft_status).to_contain_text("kept on this device")

    await unreliable.unroute(DRAFTS)
    await student.until_saved()
    assert await saved_text(unreliable) == "Written in a tunnel"


async def test_a_submit_without_a_connection_can_be_repeated(unreliable: BrowserContext) -> None:
    """The page says that it was not sent, keeps the text, and sends it with the same key."""
    student = await Student.at(unreliable)
    keys: list[str | None] = []

    async def cut(route: Route) -> None:
        if route.request.method == "POST":
            keys.append(await route.request.header_value("Idempotency-Key"))
            await route.abort()
        else:
            await route.fallback()

    await unreliable.route(RESPONSES, cut)
    await student.write(GOOD_ANSWER)
    await student.button.click()
    await expect(student.problem).to_have_text("Not sent yet. Your text is kept; please try again.")
    await expect(student.editor).to_have_value(GOOD_ANSWER)
    assert await student.stored() == []
    await unreliable.unroute(RESPONSES)

    async with student.page.expect_request(RESPONSES) as sent:
        await student.button.click()
    keys.append(await (await sent.value).header_value("Idempotency-Key"))

    await student.until_scored()
    assert len(await student.stored()) == 1
    assert len(set(keys)) == 1
    await expect(student.problem).to_be_empty()


@pytest.mark.parametrize("changed", [False, True])
async def test_a_lost_reply_costs_nothing(unreliable: BrowserContext, changed: bool) -> None:  # noqa: FBT001
    """The answer had arrived: repeating it stores no second one, and what was changed since is not lost."""
    student = await Student.at(unreliable)

    async def lose_reply(route: Route) -> None:
        if route.request.method == "POST":
            await route.fetch()
            await route.abort()
        else:
            await route.fallback()

    await unreliable.route(RESPONSES, lose_reply)
    await student.write(GOOD_ANSWER)
    await student.button.click()
    await expect(student.problem).to_contain_text("Not sent yet")
    await unreliable.unroute(RESPONSES)
    if changed:
        await student.write(f"{GOOD_ANSWER} And more.")

    await student.button.click()

    if changed:
        await expect(student.problem).to_contain_text("An earlier version of this answer had arrived already")
        await expect(student.cards).to_have_count(1)
        await expect(student.editor).to_have_value(f"{GOOD_ANSWER} And more.")
        await student.until_saved()
        await student.button.click()
        await expect(student.cards).to_have_count(2)
    await expect(student.editor).to_have_value("")
    await student.until_scored()
    assert len(await student.stored()) == (2 if changed else 1)


async def begin_in_a_tunnel(student: Student, text: str) -> None:
    """Write, so that it stays on this device, and turn to another question while the page tries again."""
    await student.page.route(DRAFTS, lambda route: route.abort())
    await student.write(text)
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
    await student.page.evaluate(f"location.hash = '{OTHER_QUESTION}'")
    await expect(student.page.locator("#module")).to_have_text("Thinking with data")


def texts_sent(student: Student) -> list[str]:
    """The drafts that this tab sends from now on."""
    sent: list[str] = []

    def note(request: Request) -> None:
        if request.method == "PUT":
            sent.append(json.loads(request.post_data or "null")["answer_text"])

    student.page.on("request", note)
    return sent


async def test_who_comes_back_to_a_question_writes_one_draft(unreliable: BrowserContext) -> None:
    """What could not be saved when the student turned away is not tried again over what he has written since."""
    student = Student(await unreliable.new_page())
    await student.page.clock.install()
    await student.page.goto(LEAVES)
    await begin_in_a_tunnel(student, "Begun")
    await student.page.go_back()
    await expect(student.editor).to_have_value("Begun")
    await student.write("Begun and ended")
    await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)

    sent = texts_sent(student)
    await student.page.unroute(DRAFTS)
    await student.page.evaluate("dispatchEvent(new Event('online'))")
    await student.until_saved()
    await student.page.clock.run_for(LONGEST_RETRY_MS)

    await student.write("Begun and ended, and checked")
    await student.until_saved()
    assert set(sent) == {"Begun and ended", "Begun and ended, and checked"}


async def test_what_comes_back_from_an_earlier_visit_takes_nothing_newer_away(
    unreliable: BrowserContext,
) -> None:
    """Its text is saved at last; what was written since stays on this device until that is saved, too."""
    student = await Student.at(unreliable)
    sent, may_arrive = asyncio.Event(), asyncio.Event()

    async def only_the_first_arrives(route: Route) -> None:
        if route.request.method == "PUT" and not sent.is_set():
            sent.set()
            await may_arrive.wait()
            await route.continue_()
        else:
            await route.abort()

    await student.page.route(DRAFTS, only_the_first_arrives)
    await student.write("Begun")
    await sent.wait()
    await student.page.evaluate(f"location.hash = '{OTHER_QUESTION}'")
    await expect(student.page.locator("#module")).to_have_text("Thinking with data")
    await student.page.go_back()
    await expect(student.editor).to_have_value("Begun")
    await student.write("Begun and ended")
    async with student.page.expect_response(DRAFTS):
        may_arrive.set()

    await eventually(lambda: saved_text(unreliable))
    assert "Begun and ended" in await student.page.evaluate("JSON.stringify(localStorage)")
    await student.page.unroute(DRAFTS)
    await student.page.reload()
    await expect(student.editor).to_have_value("Begun and ended")
    await student.until_saved()
    assert await saved_text(unreliable) == "Begun and ended"


async def test_who_comes_back_to_a_question_finds_what_a_device_without_storage_could_not_keep(
    unreliable: BrowserContext,
) -> None:
    """As long as the page is open, the page has it."""
    student = Student(await unreliable.new_page())
    await student.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } });"
    )
    await student.page.goto(LEAVES)
    await begin_in_a_tunnel(student, "Begun")

    await student.page.go_back()

    await expect(student.editor).to_have_value("Begun")
    await student.page.unroute(DRAFTS)
    await student.until_saved()
    assert await saved_text(unreliable) == "Begun"


async def test_what_a_guest_could_not_save_is_not_sent_again_as_the_users(unreliable: BrowserContext) -> None:
    """It goes with the sign-in, as every draft does; a later try would replace what the user has there."""
    student = Student(await unreliable.new_page())
    await student.page.clock.install()
    await student.page.goto(LEAVES)
    await begin_in_a_tunnel(student, "Begun as a guest")
    await student.page.unroute(DRAFTS)
    await student.sign_in(104)

    sent = texts_sent(student)
    await student.page.clock.run_for(LONGEST_RETRY_MS)

    await student.write("Of the other question")
    await student.until_saved()
    assert sent == ["Of the other question"]


@pytest.mark.parametrize("secure", [True, False])
async def test_keys_are_random_uuids_with_and_without_https(profile: BrowserContext, secure: bool) -> None:  # noqa: FBT001
    """Where ``randomUUID`` is missing, as without https, keys look the same."""
    if not secure:
        await profile.add_init_script("delete Crypto.prototype.randomUUID")
    student = await Student.at(profile)
    keys = await student.page.evaluate(
        "import('/static/text.js').then((text) => Array.from({ length: 100 }, text.newKey))"
    )

    assert len(set(keys)) == 100
    for key in keys:
        assert len(key) == 36
        assert key[14] == "4"
        assert key[19] in "89ab"
    await student.submit()
    assert len(await student.stored()) == 1
