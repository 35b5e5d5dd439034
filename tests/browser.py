"""A real Chromium for tests of pages; where there is none, tests skip locally and fail in CI."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import async_playwright, expect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# It may run as root in a container, and shall talk to nobody but the page under test.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS = 30_000
GRAVE = frozenset({"serious", "critical"})
"""The impacts that axe may never report."""


def chromium_path() -> str | None:
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, once a test process."""
    path = chromium_path()
    if path is None:
        reason = "Chromium is not installed."
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        # Never reached by a page that does what is expected, however slow the machine.
        expect.set_options(timeout=TIMEOUT_MS)
        browser = await playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield browser
        await browser.close()


@asynccontextmanager
async def new_context(browser: Browser, **options: Any) -> AsyncIterator[tuple[BrowserContext, list[str]]]:
    """A browser profile of its own, and the list of what its pages complain about.

    Args:
        browser: The browser.
        options: As for Playwright's ``new_context``: ``viewport``, ``color_scheme``, ``base_url``, ...

    Yields:
        The profile, and a list that grows: errors on a page's console and exceptions that nobody caught.
        A test in which nothing goes wrong ends with ``assert complaints == []``.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # Chromium calls every 404 an error, though asking whether there is something is none.
        if message.type in {"error", "warning"} and "status of 404" not in message.text:
            complaints.append(f"console: {message.text}")

    context.on("console", hear)
    context.on("weberror", lambda error: complaints.append(f"exception: {error.error}"))
    try:
        yield context, complaints
    finally:
        await context.close()


async def grave_violations(page: Page) -> list[str]:
    """What axe finds on the page as it stands now that keeps people out, one line each; empty is good."""
    results = await Axe().run(page)
    return [
        f"{found['id']} ({found['impact']}): {', '.join(str(node['target']) for node in found['nodes'])}"
        for found in results.response["violations"]
        if found["impact"] in GRAVE
    ]


async def overflows(page: Page) -> bool:
    """Whether the page is wider than the window, so that a reader must scroll sideways."""
    return bool(
        await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    )
