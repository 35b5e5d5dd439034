"""``make screenshots``: the pictures of the student's page, from a demo of its own.

python -m tests.page.screenshots
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from tests.browser import CHROMIUM_FLAGS, chromium_path, new_context
from tests.databases import ROOT
from tests.page.site import running_site
from tests.page.student import GOOD_ANSWER, Student

IMAGES = ROOT / "docs" / "images"
WIDE = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
PICTURES: dict[str, dict[str, Any]] = {
    "student-light": {"viewport": WIDE, "color_scheme": "light"},
    "student-dark": {"viewport": WIDE, "color_scheme": "dark"},
    "student-phone": {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2},
}
FIRST_TRY = "The leaf reflects green light and this light comes into our eyes."
DRAFT = "Chlorophyll absorbs the red and the blue part of the light."


async def take(url: str) -> None:
    """Take all pictures of the page at this address."""
    path = chromium_path()
    if path is None:
        raise SystemExit("Chromium is not installed.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        for name, options in PICTURES.items():
            async with new_context(browser, base_url=url, reduced_motion="reduce", **options) as (context, _):
                student = await Student.at(context)
                for text in (FIRST_TRY, GOOD_ANSWER):
                    await student.submit(text)
                    await student.until_scored()
                if options["viewport"] is WIDE:
                    await student.write(DRAFT)
                    await student.until_saved()
                    await student.page.mouse.move(0, 0)
                else:
                    await student.page.evaluate("document.querySelector('section').scrollIntoView()")
                await student.page.screenshot(
                    path=IMAGES / f"{name}.png", full_page=options["viewport"] is WIDE
                )
                sys.stdout.write(f"docs/images/{name}.png\n")
        await browser.close()


def main() -> None:
    """Start a demo, take the pictures, stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="scoring-screenshots-") as folder,
        running_site(Path(folder)) as site,
    ):
        asyncio.run(take(site.url))


if __name__ == "__main__":
    main()
