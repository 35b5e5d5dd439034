"""The batcher: submits that come together share a statement, but not a fate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from demo.servers import free_port
from producers.batching import SubmissionBatcher
from producers.errors import ProducerClosedError
from storage import create_engine
from storage.errors import (
    NotMigratedError,
    StorageError,
    StorageMisconfiguredError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
)
from storage.keys import time_ordered_uuid
from storage.validation import Submission, checked_submission
from tests.factories import count, submission
from tests.producers.waiting import eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy

pytestmark = pytest.mark.commits

# Where PostgreSQL's reply says that the statement was performed: its CommandComplete message.
PERFORMED = b"SELECT 1\x00"


def checked(**changes: Any) -> Submission:
    """A submission as a producer passes it on."""
    return checked_submission(submission(submission_key=time_ordered_uuid()) | changes)


@pytest.fixture
def announced() -> list[int]:
    """Every response that was announced."""
    return []


@pytest.fixture
async def batcher(own_engine: AsyncEngine, announced: list[int]) -> AsyncIterator[SubmissionBatcher]:
    """A batcher on ``own_engine``."""
    batcher = SubmissionBatcher(own_engine, announced.extend)
    yield batcher
    await batcher.close()


@pytest.fixture
async def fragile(fragile_engine: AsyncEngine, announced: list[int]) -> AsyncIterator[SubmissionBatcher]:
    """A batcher on one connection through ``postgres_proxy``, that has been used before."""
    batcher = SubmissionBatcher(fragile_engine, announced.extend)
    await batcher.submit(checked())
    announced.clear()
    yield batcher
    await batcher.close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without pauses."""
    monkeypatch.setattr("producers.batching.RETRY_PAUSES_SECONDS", (0.0, 0.0, 0.0))


async def stored(engine: AsyncEngine) -> int:
    """How many responses there are; each must have its handoff."""
    async with engine.connect() as conn:
        responses = await count(conn, "assessment_responses")
        assert responses == await count(conn, "scoring_handoffs")
    return responses


class Blocked:
    """Keeps the batcher's statement waiting for a lock, for as long as the block lasts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._conn = engine.connect()
        self._engine = engine

    async def __aenter__(self) -> Self:
        await self._conn.start()
        await self._conn.execute(text("LOCK TABLE scoring_handoffs IN ACCESS EXCLUSIVE MODE"))
        return self

    async def reached(self, waiting: int = 1) -> None:
        """Wait until so many statements wait for the lock."""
        query = text(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'scoring_handoffs'::regclass"
        )

        async def look() -> bool:
            async with self._engine.connect() as conn:
                return bool((await conn.execute(query)).scalar_one() >= waiting)

        await eventually(look)

    async def __aexit__(self, *_: object) -> None:
        await self._conn.rollback()
        await self._conn.close()


async def test_a_lone_submit_is_one_statement(
    batcher: SubmissionBatcher, statements: list[str], announced: list[int]
) -> None:
    """At low load nothing waits: one submission, one statement, one announcement."""
    row = await batcher.submit(checked())

    assert len(statements) == 1
    assert announced == [row["response_id"]]


async def test_submits_at_once_share_statements(
    batcher: SubmissionBatcher, statements: list[str], announced: list[int]
) -> None:
    """Sixty-four submits at the same moment are two statements at most, and each gets its own row."""
    rows = await asyncio.gather(*(batcher.submit(checked(answer_text=f"answer {n}")) for n in range(64)))

    assert len(statements) <= 2
    assert [row["answer_text"] for row in rows] == [f"answer {n}" for n in range(64)]
    assert sorted(announced) == sorted(row["response_id"] for row in rows)


async def test_what_comes_during_a_commit_is_the_next_batch(
    batcher: SubmissionBatcher, engine: AsyncEngine, statements: list[str]
) -> None:
    """While one statement is in flight the next batch gathers, and goes in one statement."""
    async with Blocked(engine) as lock:
        first = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        others = [asyncio.create_task(batcher.submit(checked())) for _ in range(20)]
        await settled()
    await asyncio.gather(first, *others)

    assert len(statements) == 2


async def test_a_batch_is_bounded(
    batcher: SubmissionBatcher, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exceeds one statement goes into the next; nobody is forgotten."""
    monkeypatch.setattr("producers.batching.MAX_BATCH", 10)

    rows = await asyncio.gather(*(batcher.submit(checked()) for _ in range(35)))

    assert len({row["response_id"] for row in rows}) == 35
    assert len(statements) == 4


@pytest.mark.parametrize("place", [0, 1, 15, 31])
async def test_one_unknown_user_among_many_fails_alone(
    batcher: SubmissionBatcher, engine: AsyncEngine, announced: list[int], place: int
) -> None:
    """A bad row fails a whole statement; its neighbours are stored all the same, and announced once."""
    given = [checked() for _ in range(32)]
    given[place] = checked(user_id=999_999)

    outcomes = await asyncio.gather(*(batcher.submit(each) for each in given), return_exceptions=True)

    assert isinstance(outcomes[place], UnknownUserError)
    rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert len(rows) == 31 == await stored(engine)
    assert sorted(announced) == sorted(row["response_id"] for row in rows)


async def test_one_key_of_somebody_else_among_many_fails_alone(
    batcher: SubmissionBatcher, engine: AsyncEngine
) -> None:
    """A conflicting key is refused after its neighbours were stored; they are stored once."""
    key = uuid4()
    await batcher.submit(checked(user_id=2, submission_key=key))
    given = [checked() for _ in range(16)]
    given[7] = checked(user_id=1, submission_key=key)

    outcomes = await asyncio.gather(*(batcher.submit(each) for each in given), return_exceptions=True)

    assert isinstance(outcomes[7], SubmissionKeyConflictError)
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 15
    assert await stored(engine) == 16


async def test_one_key_of_two_owners_at_the_same_moment(
    batcher: SubmissionBatcher, engine: AsyncEngine
) -> None:
    """Of two owners in one batch one gets the key; the other is refused, and never sees the first one's row."""
    key = uuid4()

    outcomes = await asyncio.gather(
        *(batcher.submit(checked(user_id=user_id, submission_key=key)) for user_id in (1, 2)),
        return_exceptions=True,
    )

    [row] = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert isinstance(outcomes[2 - row["user_id"]], SubmissionKeyConflictError)
    assert await stored(engine) == 1


async def test_a_key_twice_at_the_same_moment_is_one_row(
    batcher: SubmissionBatcher, engine: AsyncEngine
) -> None:
    """A double click: both calls get the same row."""
    given = checked()

    first, second = await asyncio.gather(batcher.submit(given), batcher.submit(given))

    assert first == second
    assert await stored(engine) == 1


async def test_a_caller_cancelled_before_the_statement_stores_nothing(
    batcher: SubmissionBatcher, engine: AsyncEngine
) -> None:
    """Who gives up while the batch gathers takes his submission out of it; his neighbours stay."""
    async with Blocked(engine) as lock:
        first = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        cancelled = asyncio.create_task(batcher.submit(checked()))
        neighbour = asyncio.create_task(batcher.submit(checked()))
        await settled()
        cancelled.cancel()
        await settled()
    await asyncio.gather(first, neighbour)

    assert cancelled.cancelled()
    assert await stored(engine) == 2


async def test_a_caller_cancelled_during_the_statement_is_stored_and_announced(
    batcher: SubmissionBatcher, engine: AsyncEngine, announced: list[int]
) -> None:
    """What is being committed cannot be taken back: it is stored and scored although nobody waits."""
    async with Blocked(engine) as lock:
        cancelled = asyncio.create_task(batcher.submit(checked()))
        neighbour = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        cancelled.cancel()
        await settled()
        assert cancelled.cancelled()

    row = await neighbour
    assert row["response_id"] in announced
    assert len(announced) == 2 == await stored(engine)


async def test_a_connection_that_was_killed_is_replaced(
    batcher: SubmissionBatcher, engine: AsyncEngine, quick_retries: None
) -> None:
    """A connection that PostgreSQL ended while it was idle costs a retry, not an answer."""
    await batcher.submit(checked())
    async with engine.connect() as conn:
        killed = await conn.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'"
                " AND query LIKE '%assessment_responses%' AND query LIKE '%inserted%'"
            )
        )
        assert list(killed.scalars()) == [True]

    row = await batcher.submit(checked())

    assert row["response_id"]
    assert await stored(engine) == 2


async def test_a_statement_that_was_killed_is_repeated(
    batcher: SubmissionBatcher, engine: AsyncEngine, announced: list[int], quick_retries: None
) -> None:
    """A connection that ends in the middle of the statement: stored once, announced once."""
    async with Blocked(engine) as lock:
        submitted = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        async with engine.connect() as conn:
            await conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks"
                    " WHERE NOT granted AND relation = 'scoring_handoffs'::regclass"
                )
            )
    row = await submitted

    assert announced == [row["response_id"]]
    assert await stored(engine) == 1


async def test_a_lost_acknowledgement_gives_one_row(
    fragile: SubmissionBatcher,
    engine: AsyncEngine,
    postgres_proxy: Proxy,
    announced: list[int],
    quick_retries: None,
) -> None:
    """PostgreSQL committed, its reply was lost: the retry finds the row by its key, and announces it."""
    postgres_proxy.lose_next_reply(that_contains=PERFORMED)

    row = await fragile.submit(checked(answer_text="only once"))

    assert postgres_proxy.lost_replies == 1
    assert row["answer_text"] == "only once"
    assert announced == [row["response_id"]]
    assert await stored(engine) == 2  # the first one warmed the connection up


async def test_postgres_down_is_an_error_for_all(
    fragile: SubmissionBatcher, engine: AsyncEngine, postgres_proxy: Proxy, quick_retries: None
) -> None:
    """With PostgreSQL away every waiter hears of it, with an error object of his own; nothing is stored."""
    postgres_proxy.break_down()

    outcomes = await asyncio.gather(*(fragile.submit(checked()) for _ in range(20)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
    assert len({id(outcome) for outcome in outcomes}) == 20
    assert await stored(engine) == 1
    postgres_proxy.refuses = False
    assert (await fragile.submit(checked()))["response_id"]


async def test_a_server_that_is_not_there_is_unavailable(quick_retries: None) -> None:
    """Nobody listens at that port: the clear error, not the driver's."""
    engine = create_engine(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    batcher = SubmissionBatcher(engine, lambda _: None)

    with pytest.raises(StorageUnavailableError):
        await batcher.submit(checked())

    await batcher.close()
    await engine.dispose()


@pytest.mark.parametrize("kind", ["unmigrated", "login"])
async def test_trouble_that_all_share_is_met_once(
    database_url: str, make_database: Callable[[], Awaitable[str]], kind: str
) -> None:
    """What says nothing about single rows fails all of them at once instead of one by one."""
    error: type[StorageError]
    if kind == "unmigrated":
        url, error = await make_database(), NotMigratedError
    else:
        url, error = database_url.replace("postgres@", "nobody_like_this@"), StorageMisconfiguredError
    engine = create_engine(url, pool_size=1)
    tries = 0

    @event.listens_for(engine.sync_engine, "do_connect")
    def count_connects(*_: object) -> None:
        nonlocal tries
        tries += kind == "login"

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def count_statements(*_: object) -> None:
        nonlocal tries
        tries += 1

    batcher = SubmissionBatcher(engine, lambda _: None)
    outcomes = await asyncio.gather(*(batcher.submit(checked()) for _ in range(16)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {error}
    assert len({id(outcome) for outcome in outcomes}) == 16
    assert tries <= 2
    await batcher.close()
    await engine.dispose()


async def test_a_fault_of_ours_is_heard_by_every_waiter(
    batcher: SubmissionBatcher, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    """An error that nobody foresaw keeps no caller waiting, and the next submit works."""

    async def broken(*_: object) -> list[dict[str, Any]]:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("producers.batching.submit_responses", broken)
        outcomes = await asyncio.gather(
            *(batcher.submit(checked()) for _ in range(4)), return_exceptions=True
        )

    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
    assert (await batcher.submit(checked()))["response_id"]
    assert await stored(engine) == 1


async def test_a_cancelled_flush_cancels_its_waiters(batcher: SubmissionBatcher, engine: AsyncEngine) -> None:
    """When the event loop ends, nobody is left waiting for an answer that will not come."""
    async with Blocked(engine) as lock:
        submitted = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        waiting = asyncio.create_task(batcher.submit(checked()))
        await settled()
        assert batcher._task is not None
        batcher._task.cancel()
        await asyncio.wait([submitted, waiting])

    assert submitted.cancelled()
    assert waiting.cancelled()


async def test_a_closed_batcher_refuses(batcher: SubmissionBatcher, engine: AsyncEngine) -> None:
    """After closing, a submit is refused and stores nothing."""
    await batcher.close()

    with pytest.raises(ProducerClosedError):
        await batcher.submit(checked())

    assert await stored(engine) == 0


async def test_closing_commits_what_waits(batcher: SubmissionBatcher, engine: AsyncEngine) -> None:
    """Whoever submitted before closing gets his row, also from the batch that was still gathering."""
    async with Blocked(engine) as lock:
        first = asyncio.create_task(batcher.submit(checked()))
        await lock.reached()
        second = asyncio.create_task(batcher.submit(checked()))
        await settled()
        closing = asyncio.create_task(batcher.close())
        await settled()
        assert not closing.done()
    await closing

    assert first.done()
    assert (await second)["response_id"] > (await first)["response_id"]
    assert await stored(engine) == 2


async def test_in_an_outage_nobody_waits_for_those_before_him(
    fragile: SubmissionBatcher, postgres_proxy: Proxy, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gathers while a batch fails as unavailable fails with it, instead of trying in vain one after the other."""
    monkeypatch.setattr("producers.batching.MAX_BATCH", 5)
    tries = 0
    insert = fragile._insert

    async def counted(batch: Any) -> Any:
        nonlocal tries
        tries += 1
        return await insert(batch)

    monkeypatch.setattr(fragile, "_insert", counted)
    postgres_proxy.break_down()

    outcomes = await asyncio.gather(*(fragile.submit(checked()) for _ in range(50)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
    assert tries == 1


async def test_the_queue_is_bounded(batcher: SubmissionBatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a submit is refused at once, and those that wait are stored."""
    monkeypatch.setattr("producers.batching.MAX_WAITING", 3)

    outcomes = await asyncio.gather(*(batcher.submit(checked()) for _ in range(5)), return_exceptions=True)

    assert [isinstance(outcome, StorageUnavailableError) for outcome in outcomes] == [False] * 3 + [True] * 2
