"""``make screenshots``: pictures of the console for the README, of a real worker under load.

The hour that it shows is made up (demo/busy_hour.py); the last minute, what waits, and the dead are real.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from playwright.async_api import async_playwright

from demo.busy_hour import make_up_an_hour
from demo.play import wait_for_worker
from demo.servers import embedded_servers
from demo.worker_process import SCORING, with_console, worker_process
from producers import ProducerSettings, open_producer
from worker.question_files import read_question_files

if TYPE_CHECKING:
    from playwright.async_api import Browser
    from sqlalchemy.ext.asyncio import AsyncEngine

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / "demo" / "questions"
IMAGE = ROOT / "docs" / "images" / "console.png"
ANSWERS_A_SECOND = 6
LOAD_SECONDS = 75.0
WIDTH, HEIGHT = 1320, 1080


async def _load(settings: ProducerSettings, engine: AsyncEngine) -> None:
    """Submit answers at an even pace until cancelled."""
    questions = read_question_files(QUESTIONS)
    async with open_producer(settings, engine=engine) as producer:
        for number in range(1_000_000):
            question = questions[number % len(questions)]
            await producer.submit(
                anonymous_token=str(uuid4()),
                module_slug=question["module_slug"],
                question_id=question["question_id"],
                answer_text="An answer, for a scorer that reads none.",
            )
            await asyncio.sleep(1 / ANSWERS_A_SECOND)


async def _photograph(browser: Browser, address: str, path: Path, scheme: str) -> None:
    context = await browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = await context.new_page()
    await page.goto(address)
    await page.get_by_text("Live", exact=True).wait_for()
    await page.screenshot(path=path)
    await context.close()


async def _pictures(settings: ProducerSettings, address: str, images: dict[str, Path]) -> None:
    engine = settings.engine()
    await wait_for_worker(engine)
    loading = asyncio.create_task(_load(settings, engine))
    await asyncio.sleep(LOAD_SECONDS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme, path in images.items():
            await _photograph(browser, address, path, scheme)
        await browser.close()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await engine.dispose()


async def _make_up(settings: ProducerSettings) -> None:
    engine = settings.engine()
    async with engine.begin() as conn:
        await make_up_an_hour(conn)
    await engine.dispose()


def main() -> None:
    """Start everything, wait until there is something to see, and write the pictures."""
    parser = argparse.ArgumentParser(prog="python -m demo.screenshots", description=__doc__)
    parser.add_argument("--dark", type=Path, help="also write the dark one, there")
    images = {"light": IMAGE}
    if (dark := parser.parse_args().dark) is not None:
        images["dark"] = dark
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scoring-screenshots-")))
        servers = stack.enter_context(embedded_servers())
        environment = dict(os.environ) | {
            "SCORING_DATABASE_URL": servers.database_url,
            "SCORING_REDIS_URL": servers.redis_url,
            "SCORING_SCORER": "demo.busy_scorer:BusyScorer",
            "SCORING_SLOTS": "24",
            "SCORING_REQUESTS_PER_MINUTE": "3000",
            "PYTHONPATH": str(ROOT),
        }
        settings = ProducerSettings.model_validate(
            {"database_url": servers.database_url, "redis_url": servers.redis_url}
        )
        for words in (("migrate",), ("questions", "sync", str(QUESTIONS))):
            subprocess.run([*SCORING, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
        asyncio.run(_make_up(settings))
        seen, address = with_console(environment)
        stack.enter_context(worker_process(seen, folder / "one.log"))
        stack.enter_context(worker_process(environment, folder / "other.log"))
        asyncio.run(_pictures(settings, address, images))
    for path in images.values():
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
