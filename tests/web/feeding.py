"""Readers of a feed as a page has them: they keep what they were told last, and where to go on."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from producers.feed import Cursor, Feed, FeedSettings
from storage.validation import Owner
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers.feed import Listener

ADA = Owner(1, None)
QUICK = FeedSettings(look_seconds=0.02)


@dataclass
class Page:
    """What a page shows: the last state of each answer. It survives its connection."""

    owner: Owner = ADA
    cursor: Cursor | None = None
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: list[int] = field(default_factory=list)

    def take(self, listener: Listener) -> None:
        """Take what is there, as a stream writes it."""
        events, cursor = listener.take()
        for event in map(json.loads, events):
            self.shown[event["id"]] = event
            self.told.append(event["id"])
        self.cursor = cursor

    def state(self, response_id: int) -> str | None:
        return self.shown.get(response_id, {}).get("state")

    def score(self, response_id: int) -> float | None:
        score = self.shown.get(response_id, {}).get("score")
        return None if score is None else score["overall_score"]


@asynccontextmanager
async def listening(feed: Feed, page: Page) -> AsyncIterator[Listener]:
    """Connect a page until the block ends; it is told what it missed before the block begins."""
    listener = feed.listen(page.owner, page.cursor)
    try:
        await eventually(lambda: listener.is_current)
        page.take(listener)
        yield listener
    finally:
        feed.leave(listener)


async def shows(page: Page, listener: Listener, expected: dict[int, str]) -> None:
    """Wait until the page shows these states."""

    def look() -> bool:
        page.take(listener)
        return all(page.state(response_id) == state for response_id, state in expected.items())

    await eventually(look)


@asynccontextmanager
async def feeding(engine: AsyncEngine, settings: FeedSettings = QUICK) -> AsyncIterator[Feed]:
    """A web process's feed."""
    feed = Feed(engine, settings)
    try:
        yield feed
    finally:
        await feed.close()
