"""The question cache: one statement for what is missing, none for what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from storage import create_engine
from tests.factories import publish
from worker.question_cache import QuestionCache

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.commits


async def published(engine: AsyncEngine, number: int) -> list[str]:
    """Publish so many questions and return their digests."""
    async with engine.begin() as conn:
        return [
            await publish(conn, question_id=f"q{n}", dimensions=[{"name": "facts"}]) for n in range(number)
        ]


async def test_questions_are_read_once(engine: AsyncEngine, database_url: str) -> None:
    """Any number of unknown questions is one statement; known ones cost nothing."""
    digests = await published(engine, 5)
    own = create_engine(database_url)
    sent: list[str] = []

    @event.listens_for(own.sync_engine, "before_cursor_execute")
    def record(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    cache = QuestionCache(own)
    first = await cache.get(digests[:3])
    again = await cache.get(digests[:3])
    more = await cache.get(digests)

    assert len(sent) == 2
    assert first == again == {digest: more[digest] for digest in digests[:3]}
    assert more[digests[0]].question_id == "q0"
    assert [dimension.name for dimension in more[digests[0]].dimensions] == ["facts"]
    await own.dispose()


async def test_nothing_wanted_is_nothing_asked(engine: AsyncEngine) -> None:
    """No digests, no statement."""
    assert await QuestionCache(engine).get([]) == {}


async def test_what_was_not_needed_for_longest_is_forgotten(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded, and all that was asked for is returned even where it exceeds the bound."""
    monkeypatch.setattr("worker.question_cache.CAPACITY", 3)
    digests = await published(engine, 5)
    cache = QuestionCache(engine)

    assert set(await cache.get(digests)) == set(digests)
    assert len(cache._questions) == 3
    await cache.get(digests[:2])
    await cache.get(digests[:1])
    await cache.get(digests[2:4])

    assert next(iter(cache._questions)) == digests[0]


async def test_a_digest_that_nobody_published_is_missing(engine: AsyncEngine) -> None:
    """It is left out, not made up."""
    assert await QuestionCache(engine).get(["f" * 64]) == {}
