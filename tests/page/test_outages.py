"""While something is down the page says that the answer is safe, and goes on by itself when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from demo.servers import free_port
from storage.settlements import Settlement, settle_handoffs
from tests.browser import new_context
from tests.factories import bury, lease
from tests.page.site import start_site, stop_site
from tests.page.student import PATIENCE_MS, Student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import Browser, BrowserContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.conftest import GivenServers
    from tests.page.site import Site

pytestmark = pytest.mark.processes

SAFE = "Your answer is safely stored. It will be scored as soon as possible; you can close this page."
MARKUP = '<img src=x onerror="document.title=\'hacked\'"><b id="injected">bold</b>'


async def start(student: Student, name: str) -> None:
    await student.page.get_by_role("button", name=f"Start {name}").click()
    await expect(student.page.get_by_role("button", name=f"Stop {name}")).to_be_visible(timeout=PATIENCE_MS)


@pytest.fixture
async def mended(profile: BrowserContext, site: Site) -> AsyncIterator[None]:
    """Whatever a failing test leaves stopped is started again."""
    yield
    for name in ("redis", "worker"):
        await profile.request.post(f"/demo/processes/{name}/start")


@pytest.mark.parametrize("name", ["Worker", "Redis"])
@pytest.mark.parametrize("by", ["button", "signal"])
async def test_an_answer_waits_while_something_is_down(
    profile: BrowserContext, site: Site, mended: None, name: str, by: str
) -> None:
    """Stored at once; after a while the page says that it is safe; scored without a reload once all is back.

    Without Redis the workers find it by themselves, so it may be scored before anybody mends anything.
    """
    student = await Student.at(profile)
    await expect(student.page.get_by_role("button", name=f"Stop {name}")).to_be_visible()
    if by == "button":
        await student.page.get_by_role("button", name=f"Stop {name}").click()
    else:
        os.kill(site.pid_of(name.lower()), signal.SIGKILL)
    await expect(student.page.get_by_role("button", name=f"Start {name}")).to_be_visible(timeout=PATIENCE_MS)

    await student.submit()

    await expect(student.editor).to_have_value("")
    if name == "Worker":
        await expect(student.cards.first).to_contain_text(SAFE, timeout=PATIENCE_MS)
        await expect(student.cards.first.locator(".state")).to_have_text("Waiting to be scored")
    await start(student, name)
    await student.until_scored()
    await expect(student.cards.first.get_by_text(SAFE)).to_have_count(0)
    assert len(await student.stored()) == 1


async def test_worker_and_redis_down_together(profile: BrowserContext, mended: None) -> None:
    """Also then nothing is lost, and a reload changes nothing."""
    student = await Student.at(profile)
    for name in ("Worker", "Redis"):
        await student.page.get_by_role("button", name=f"Stop {name}").click()
        await expect(student.page.get_by_role("button", name=f"Start {name}")).to_be_visible()
    await student.submit()
    await student.page.reload()
    await expect(student.cards.first).to_contain_text(SAFE)

    await start(student, "Redis")
    await start(student, "Worker")

    await student.until_scored()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the site's own database, found in /proc")
async def test_what_the_worker_says_is_shown_as_text(
    profile: BrowserContext, site_engine: AsyncEngine, mended: None
) -> None:
    """Markup in reasoning, dimensions and notes is neither run nor rendered."""
    student = await Student.at(profile)
    await student.page.get_by_role("button", name="Stop Worker").click()
    await expect(student.page.get_by_role("button", name="Start Worker")).to_be_visible()
    await student.submit()
    [stored] = await student.stored()

    async with site_engine.begin() as conn:
        [leased] = await lease(conn, stored["id"])
        score = {
            "overall_score": 3.0,
            "reasoning": MARKUP,
            "dimensions": [{"name": MARKUP, "score": 2.0, "note": MARKUP}],
        }
        await settle_handoffs(
            conn, [Settlement(leased["handoff_id"], leased["created_at"], MARKUP, "1", score)]
        )

    await student.until_scored()
    for place in (".reasoning", ".dimension dt", ".dimension .note"):
        await expect(student.cards.first.locator(place)).to_have_text(MARKUP)
    await expect(student.cards.first.locator(".by")).to_contain_text(MARKUP)
    assert await student.page.locator("#injected").count() == 0
    assert "hacked" not in await student.page.title()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the site's own database, found in /proc")
async def test_an_answer_that_can_not_be_scored_says_so(
    profile: BrowserContext, site_engine: AsyncEngine, mended: None
) -> None:
    """First that it is being scored, then that it is stored and that the teacher sees it; in words."""
    student = await Student.at(profile)
    await student.page.get_by_role("button", name="Stop Worker").click()
    await expect(student.page.get_by_role("button", name="Start Worker")).to_be_visible()
    await student.submit()
    first = (await student.stored())[0]["id"]
    async with site_engine.begin() as conn:
        await lease(conn, first)
    await expect(student.cards.first.locator(".state")).to_have_text("Being scored now", timeout=PATIENCE_MS)

    await student.submit()
    second = (await student.stored())[0]["id"]
    async with site_engine.begin() as conn:
        await bury(conn, second)

    await expect(student.cards.first.locator(".state")).to_have_text(
        "Could not be scored", timeout=PATIENCE_MS
    )
    told = "Your answer is stored, but could not be scored. Your teacher can see it."
    await expect(student.cards.first).to_contain_text(told)
    await expect(student.announcer).to_have_text("Your answer is stored, but could not be scored.")
    async with site_engine.begin() as conn:  # nobody holds that lease: let the worker have it back
        await conn.exec_driver_sql(
            f"UPDATE scoring_handoffs SET lease_token = NULL, due_at = now() WHERE response_id = {first}"
        )
    await start(student, "Worker")
    await student.until_scored(student.cards.nth(1))


@pytest.mark.commits
async def test_a_server_that_restarts_is_found_again(
    browser: Browser, servers: GivenServers, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The page says that it waits, keeps what is written, and hears of scores again without a reload."""
    port = free_port()
    environment = {"SCORING_DATABASE_URL": database_url, "SCORING_REDIS_URL": redis_url}

    async def started() -> Site:
        return await asyncio.to_thread(start_site, tmp_path / "log", port=port, environment=environment)

    site = await started()
    try:
        async with new_context(browser, base_url=site.url) as (context, _):
            student = await Student.at(context)
            assert await asyncio.to_thread(stop_site, site) == 130
            await expect(student.page.locator("#notice")).to_contain_text(
                "The connection is interrupted", timeout=PATIENCE_MS
            )
            await student.write("Written meanwhile")
            await expect(student.draft_status).to_contain_text("kept on this device", timeout=PATIENCE_MS)
            await student.button.click()
            await expect(student.problem).to_contain_text("Not sent yet", timeout=PATIENCE_MS)

            site = await started()

            await expect(student.page.locator("#notice")).to_be_hidden(timeout=PATIENCE_MS)
            await student.until_saved()
            # The stream alone must tell of the score.
            await context.route("**/assessment/responses?*", lambda route: route.abort())
            await student.button.click()
            await student.until_scored()
            assert len(await student.stored()) == 1
    finally:
        if site.process.poll() is None:
            await asyncio.to_thread(stop_site, site)


async def test_an_answer_to_a_question_that_is_not_published_is_explained(
    make_profile: Callable[..., Awaitable[BrowserContext]],
) -> None:
    """It is stored, and the page says what it waits for."""
    profile = await make_profile()
    student = await Student.at(profile)

    shown = await student.page.evaluate(
        """async () => {
            const { AnswerList } = await import("/static/answers.js");
            const place = document.createElement("ol");
            const answer = { id: 1, state: "unpublished", score: null, answer_text: "x", created_at: "2026-01-01T00:00:00Z" };
            new AnswerList(place).put(answer);
            return place.textContent;
        }"""
    )

    assert "Your answer is safely stored." in shown
    assert "your teacher can see it" in shown
