"""What the tests of pages rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser import grave_violations, new_context, overflows

if TYPE_CHECKING:
    from playwright.async_api import Browser

BAD = """<!doctype html><html lang="en"><title>Bad</title><img src="data:,">
<div style="width: 3000px">wide</div><script>console.error("complaint"); throw new Error("thrown")</script>"""


async def test_a_bad_page_is_found_bad(browser: Browser) -> None:
    """A picture without a text, a page wider than the window, and complaints of scripts are all found."""
    async with new_context(browser, viewport={"width": 320, "height": 600}) as (context, complaints):
        page = await context.new_page()
        await page.set_content(BAD)

        assert any(line.startswith("image-alt") for line in await grave_violations(page))
        assert await overflows(page)
        assert "console: complaint" in complaints
        assert any("thrown" in line for line in complaints)
