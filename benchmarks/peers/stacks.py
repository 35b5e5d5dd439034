"""How a process reaches PostgreSQL: as the web apps do that we are made for, or as quickly as there is.

``sqlalchemy`` is the same work for everybody: SQLAlchemy Core on asyncpg, a transaction for each write, a message that
names the answer, a job that reads it. ``asyncpg`` spares a peer all of that: the raw driver in autocommit, sessions that
are never reset, and the answer's text in the message, so that the job need not read it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from benchmarks.peers.settings import Settings

USER_ID, QUESTION_ID = 1, "why-leaves-are-green"
SCORE_DATA = '{"overall_score": 4.0, "reasoning": "Names what is absorbed and what is reflected."}'
MODEL_ID = "timed"

INSERT_RESPONSE = """
    INSERT INTO bench_responses (user_id, question_id, answer_text) VALUES ($1, $2, $3) RETURNING response_id
"""
INSERT_SCORE = "INSERT INTO bench_scores (response_id, score_data, model_id) VALUES ($1, $2, $3)"

_INSERT_RESPONSE = text("""
    INSERT INTO bench_responses (user_id, question_id, answer_text)
    VALUES (:user_id, :question_id, :answer_text) RETURNING response_id
""")
_INSERT_SCORE = text("""
    INSERT INTO bench_scores (response_id, score_data, model_id)
    VALUES (:response_id, CAST(CAST(:score_data AS text) AS jsonb), :model_id)
""")
_SELECT_ANSWER = text("SELECT answer_text FROM bench_responses WHERE response_id = :response_id")


class Stack(Protocol):
    """What producer and job do with the tables."""

    #: Whether messages hold the answer's text; if not, the job reads it.
    carries_text: bool

    async def store(self, answer_text: str) -> int:
        """Store an answer; its id, once it is committed."""

    async def store_with(self, answer_text: str, enqueue: Callable[[Any, int], Awaitable[object]]) -> int:
        """Store an answer and enqueue its job on the same driver connection, in one transaction."""

    async def read(self, response_id: int) -> str:
        """Read an answer."""

    async def score(self, response_id: int) -> None:
        """Store a score."""


class SqlalchemyStack:
    """As a web app does."""

    carries_text = False

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def store(self, answer_text: str) -> int:
        async with self._engine.begin() as conn:
            return await _stored(conn, answer_text)

    async def store_with(self, answer_text: str, enqueue: Callable[[Any, int], Awaitable[object]]) -> int:
        async with self._engine.begin() as conn:
            response_id = await _stored(conn, answer_text)
            await enqueue((await conn.get_raw_connection()).driver_connection, response_id)
        return response_id

    async def read(self, response_id: int) -> str:
        async with self._engine.connect() as conn:
            answer: str = (await conn.execute(_SELECT_ANSWER, {"response_id": response_id})).scalar_one()
        return answer

    async def score(self, response_id: int) -> None:
        async with self._engine.begin() as conn:
            await conn.execute(
                _INSERT_SCORE, {"response_id": response_id, "score_data": SCORE_DATA, "model_id": MODEL_ID}
            )


async def _stored(conn: AsyncConnection, answer_text: str) -> int:
    given = {"user_id": USER_ID, "question_id": QUESTION_ID, "answer_text": answer_text}
    return int((await conn.execute(_INSERT_RESPONSE, given)).scalar_one())


class AsyncpgStack:
    """As quickly as there is."""

    carries_text = True

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def store(self, answer_text: str) -> int:
        return int(await self._pool.fetchval(INSERT_RESPONSE, USER_ID, QUESTION_ID, answer_text))

    async def store_with(self, answer_text: str, enqueue: Callable[[Any, int], Awaitable[object]]) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            response_id = int(await connection.fetchval(INSERT_RESPONSE, USER_ID, QUESTION_ID, answer_text))
            await enqueue(connection, response_id)
        return response_id

    async def read(self, response_id: int) -> str:
        raise NotImplementedError  # the message carries it

    async def score(self, response_id: int) -> None:
        await self._pool.execute(INSERT_SCORE, response_id, SCORE_DATA, MODEL_ID)


async def _keep(_: Any) -> None:
    """What happens to a connection that goes back into the pool: nothing."""


def open_pool(settings: Settings, *, connections: int) -> asyncpg.Pool:
    """A pool whose connections are open before the clock starts.

    Args:
        settings: Say where the database is.
        connections: How many.
    """
    return asyncpg.create_pool(
        settings.database_url,
        min_size=connections,
        max_size=connections,
        # By default every release costs a round trip that resets the session; nobody changes a session here.
        reset=_keep,
    )


@asynccontextmanager
async def _open_sqlalchemy(settings: Settings, connections: int) -> AsyncIterator[Stack]:
    engine = create_async_engine(
        settings.database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
        pool_size=connections,
        max_overflow=0,
    )
    try:
        yield SqlalchemyStack(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _open_asyncpg(settings: Settings, connections: int) -> AsyncIterator[Stack]:
    async with open_pool(settings, connections=connections) as pool:
        yield AsyncpgStack(pool)


def open_stack(settings: Settings, *, connections: int) -> AbstractAsyncContextManager[Stack]:
    """Open what the settings ask for.

    Args:
        settings: Say where the database is, and which stack.
        connections: How many it keeps.
    """
    if settings.stack == "asyncpg":
        return _open_asyncpg(settings, connections)
    return _open_sqlalchemy(settings, connections)
