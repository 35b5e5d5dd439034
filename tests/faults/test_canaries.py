"""No failure of a web app's calls or of a command shows an answer, its metadata, a token or a password.

What a model writes about an answer, its reasoning, may quote it: it is stored with the score, and nowhere else.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import create_async_engine

from demo.worker_process import SCORING
from producers import Producer, ProducerSettings
from producers.errors import ProducerError
from storage import (
    claim_assessment_responses,
    create_engine,
    get_responses,
    publish_questions,
    submit_responses,
)
from storage.errors import StorageError
from tests.databases import ROOT
from tests.factories import bury, question, submit
from tests.faults.canaries import (
    ANSWER,
    DATABASE_PASSWORD,
    METADATA,
    REDIS_PASSWORD,
    TOKEN,
    WRONG_PASSWORD,
    Listener,
    Monitor,
    canary,
    listening,
)
from tests.faults.locked import Locked, lent, locked_servers, mend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

pytestmark = pytest.mark.processes

DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {METADATA: DEEP}
# What a web app must not hand over, each with canaries in it.
INVALID: Mapping[str, dict[str, Any]] = {
    "answer too long": {"answer_text": ANSWER * 10_000},
    "answer with NUL": {"answer_text": f"{ANSWER}\x00"},
    "answer with a surrogate": {"answer_text": f"{ANSWER}\ud800"},
    "answer is bytes": {"answer_text": ANSWER.encode()},
    "answer is a list": {"answer_text": [ANSWER]},
    "metadata too long": {"answer_metadata": {METADATA: METADATA * 10_000}},
    "metadata too deep": {"answer_metadata": DEEP},
    "metadata with NUL": {"answer_metadata": {METADATA: f"\x00{METADATA}"}},
    "metadata with a surrogate": {"answer_metadata": {METADATA: f"\ud800{METADATA}"}},
    "metadata no number": {"answer_metadata": {METADATA: float("nan")}},
    "metadata no JSON": {"answer_metadata": {METADATA: {METADATA}}},
    "metadata is text": {"answer_metadata": METADATA},
    "metadata key no text": {"answer_metadata": {(METADATA,): 1}},
    "metadata number too long": {"answer_metadata": {METADATA: 10**5000}},
    "token too long": {"anonymous_token": TOKEN * 100},
    "token with NUL": {"anonymous_token": f"{TOKEN}\x00"},
    "token is bytes": {"anonymous_token": TOKEN.encode()},
    "two owners": {"anonymous_token": TOKEN, "user_id": 1},
    "user id is text": {"user_id": TOKEN},
    "unknown user": {"user_id": 4711},
    "no key": {"submission_key": TOKEN},
}


@pytest.fixture(scope="module")
async def _locked() -> AsyncIterator[Locked]:
    async with locked_servers() as locked:
        yield locked


@pytest.fixture
async def locked(_locked: Locked) -> AsyncIterator[Locked]:
    """Servers that ask for passwords, empty; a test may kill them."""
    async with lent(_locked) as locked:
        yield locked


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    """Hears this process's logs, and whatever it is given."""
    with listening(request) as listener:
        yield listener


@asynccontextmanager
async def producing(locked: Locked, **changes: Any) -> AsyncIterator[Producer]:
    """A producer as a web process has it."""
    urls = {"database_url": locked.database_url(), "redis_url": locked.redis_url()}
    settings = ProducerSettings(
        **urls | {"database_timeout_seconds": 2, "redis_timeout_seconds": 1} | changes
    )
    engine, redis = settings.engine(), settings.redis()
    producer = Producer(engine, redis)
    try:
        yield producer
    finally:
        await producer.close()
        await redis.aclose()
        await engine.dispose()


async def fails(
    listener: Listener, path: str, call: Callable[..., Awaitable[object]], *args: Any, **given: Any
) -> None:
    """Drive a path that must fail, and look at its error."""
    try:
        await call(*args, **given)
    except (StorageError, ProducerError, ValidationError) as exc:
        listener.caught(path, exc)
    else:
        pytest.fail(f"{path} did not fail")


async def searched(listener: Listener, locked: Locked) -> None:
    await listener.on_database(locked.superuser_url)
    await listener.on_redis(locked.redis_url())


async def test_refused_submits(locked: Locked, listener: Listener) -> None:
    """What cannot be stored is refused in words that repeat nothing of it, alone and in one batch with sound ones."""
    async with Monitor(locked.redis_url()) as monitor, producing(locked) as producer:
        for path, changes in INVALID.items():
            await fails(listener, path, producer.submit, **canary(**changes))
        batch = [producer.submit(**canary(**changes)) for changes in [*INVALID.values(), *[{}] * 5]]
        outcomes = await asyncio.gather(*batch, return_exceptions=True)
        for path, outcome in zip(INVALID, outcomes, strict=False):
            assert isinstance(outcome, StorageError)
            listener.caught(f"{path}, in a batch", outcome)

        key = uuid4()
        await producer.submit(**canary(submission_key=key))
        other = canary(submission_key=key, anonymous_token=f"{TOKEN}-other")
        await fails(listener, "key of somebody else", producer.submit, **other)
        for path, token, user_id in (
            ("claim of an unknown user", TOKEN, 4711),
            ("claim with a token too long", TOKEN * 100, 1),
            ("claim by no number", TOKEN, TOKEN),
        ):
            await fails(listener, path, producer.claim, anonymous_token=token, user_id=user_id)
        await searched(listener, locked)
    await fails(listener, "submit after the end", producer.submit, **canary())
    listener.listen("what passed through Redis", bytes(monitor.seen))
    assert b"score_responses" in monitor.seen


@pytest.mark.parametrize("whose", ["ours", "the web app's"])
async def test_storage_s_own_functions(locked: Locked, listener: Listener, whose: str) -> None:
    """Whoever calls storage with a connection of his own is told no more, though his engine may hide nothing."""
    url = locked.database_url()
    engine = (
        create_engine(url, timeout_seconds=2)
        if whose == "ours"
        else create_async_engine(url.replace("://", "+asyncpg://"))
    )

    async def work(call: Callable[..., Awaitable[object]], *args: Any, **given: Any) -> None:
        async with engine.begin() as conn:
            await call(conn, *args, **given)

    for path, changes in INVALID.items():
        await fails(listener, f"{path}, directly", work, submit_responses, [canary(**changes)])
    claim = partial(work, claim_assessment_responses, anonymous_token=TOKEN)
    await fails(listener, "claim, directly", claim, user_id=4711)
    await fails(listener, "read, two owners", work, get_responses, anonymous_token=TOKEN, user_id=1)
    await fails(listener, "rubric", work, publish_questions, [question(rubric=f"{ANSWER}\x00")])
    await work(submit_responses, [canary()])
    await locked.forbid_user_7()
    await fails(listener, "a constraint of the host's", work, submit_responses, [canary(user_id=7)])
    await fails(listener, "a constraint of the host's, by a claim", claim, user_id=7)
    locked.servers.postgres.kill()
    await fails(listener, "PostgreSQL went away", work, submit_responses, [canary()])
    await engine.dispose()


async def test_servers_that_are_away_or_refuse(locked: Locked, listener: Listener) -> None:
    """Without PostgreSQL a submit fails, without Redis it does not; wrong passwords are not repeated."""
    claim: dict[str, Any] = {"anonymous_token": TOKEN, "user_id": 1}
    async with producing(locked) as producer:
        await producer.submit(**canary())
        locked.servers.redis.kill()
        listener.drove("Redis away")
        await asyncio.gather(*(producer.submit(**canary()) for _ in range(20)))
        locked.servers.postgres.kill()
        await fails(listener, "PostgreSQL away", producer.submit, **canary())
        await fails(listener, "PostgreSQL away, claim", producer.claim, **claim)
    async with producing(locked) as producer:
        await fails(listener, "PostgreSQL was never there", producer.submit, **canary())
    await mend(locked)
    async with producing(locked, database_url=locked.database_url(WRONG_PASSWORD)) as producer:
        await fails(listener, "wrong database password", producer.submit, **canary())
    for path, password in (("wrong Redis password", WRONG_PASSWORD), ("no Redis password", "")):
        async with producing(locked, redis_url=locked.redis_url(password)) as producer:
            listener.drove(path)
            await producer.submit(**canary())
            await producer.claim(**claim)
    for path, urls in {
        "garbled database URL": {"database_url": f"postgresql:/{DATABASE_PASSWORD}@[::1/x"},
        "garbled Redis URL": {"redis_url": f"redis://:{REDIS_PASSWORD}@x:port/zero"},
        "other database": {"database_url": f"mysql://u:{DATABASE_PASSWORD}@x/y"},
    }.items():
        await fails(listener, path, producing(locked, **urls).__aenter__)
    await searched(listener, locked)


async def test_commands(locked: Locked, listener: Listener) -> None:
    """With nothing wrong but dead answers, with wrong settings, and without servers: no command shows a secret."""
    limit = asyncio.Semaphore(3)

    async def run(path: str, environment: Mapping[str, str], *words: str) -> None:
        async with limit:
            process = await asyncio.create_subprocess_exec(
                *(*SCORING, *words),
                cwd=ROOT,
                env=dict(environment),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
            )
            said, _ = await asyncio.wait_for(process.communicate(), 60)
        path = f"scoring {' '.join(words)}: {path}"
        assert said, path
        listener.drove(path)
        listener.listen(path, said)

    right = locked.environment()
    async with locked.engine.begin() as conn:
        ids = [(await submit(conn, **canary()))["response_id"] for _ in range(3)]
        await bury(conn, ids[0])
    looks = ("status", "dead list", "stats", "verify --full", "health")
    about = (f"dead show {ids[0]}", f"dead show {ids[0]} --json", "status --json", f"dead retry {ids[0]}")
    await asyncio.gather(*(run("dead answers", right, *look.split()) for look in (*looks, *about)))
    misset = []
    for path, environment in locked.wrong.items():
        words = (*looks, "migrate") if "database" in path else ("verify",)
        misset += [run(path, environment, *look.split()) for look in (*words, "worker")]
        misset.append(run(path, {**environment, "SCORING_LOG_FORMAT": "json"}, "worker"))
    await asyncio.gather(*misset)
    await searched(listener, locked)
    locked.servers.redis.kill()
    await run("Redis away", right, "verify")
    locked.servers.postgres.kill()
    await asyncio.gather(*(run("away", right, *look.split()) for look in (*looks, "worker", "migrate")))
