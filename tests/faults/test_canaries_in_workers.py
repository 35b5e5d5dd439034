"""No failure inside a worker process shows an answer, its metadata, a token, a password or the model's key.

Both log formats, at DEBUG. What a model or a scorer writes as its reasoning may quote the answer: it is stored with
the score, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from producers.bell import Bell
from producers.contract import (
    QUEUE_NAME,
    WAKE_CHANNEL,
    ClaimResponses,
    ScoreResponses,
    message_key,
    serialize,
)
from storage import submit_responses
from storage.claims import request_claim
from tests.faults import leaky, parrot
from tests.faults.canaries import ANSWER, FORGED, TOKEN, Listener, canary, listening
from tests.faults.locked import Locked, lent, locked_servers, start_again
from tests.faults.processes import WorkerProcess, start_process
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = pytest.mark.processes

PATIENCE_SECONDS = 120.0
FORMATS = pytest.mark.parametrize("log_format", ["console", "json"])


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
    """Hears whatever it is given; at the end nothing may have sung."""
    with listening(request) as listener:
        yield listener


@pytest.fixture
async def start(locked: Locked, listener: Listener, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts workers; whatever they logged is listened to at the end."""
    started: list[WorkerProcess] = []

    async def run(**variables: object) -> WorkerProcess:
        given = {"SLOTS": 8, "MAX_ATTEMPTS": 1} | variables
        environment = {**locked.environment(**given), "FAULTS_FOLDER": str(tmp_path)}
        worker = await start_process(environment, tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        await eventually(lambda: "worker is ready" in worker.log.read_text())
        return worker

    yield run
    for worker in started:
        await worker.killed()
        listener.listen("a worker's log", worker.log.read_bytes())


async def submit(locked: Locked, *texts: str) -> list[int]:
    """Store canaries that end with these words."""
    given = [canary(answer_text=f"My answer: {ANSWER}. {text}") for text in texts]
    async with locked.engine.begin() as conn:
        return [int(row["response_id"]) for row in await submit_responses(conn, given)]


async def searched(listener: Listener, locked: Locked) -> None:
    await listener.on_database(locked.superuser_url)
    await listener.on_redis(locked.redis_url())


async def waiting(locked: Locked, ids: Sequence[int] | None = None) -> int:
    """How many of these, or of all, are neither settled nor dead."""
    chosen = "" if ids is None else " AND response_id = ANY ($1::bigint[])"
    given = () if ids is None else (list(ids),)
    [[count]] = await locked.sql(
        f"SELECT count(*) FROM scoring_handoffs WHERE state = 'open'{chosen}", *given
    )
    return int(count)


async def stopped(worker: WorkerProcess) -> None:
    worker.told_to_stop()
    await asyncio.wait_for(worker.process.wait(), 60)


@asynccontextmanager
async def searching(listener: Listener, locked: Locked) -> AsyncIterator[None]:
    """Search PostgreSQL and Redis again and again: what workers report of themselves is gone with them."""

    async def search() -> None:
        while True:
            await searched(listener, locked)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(search())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    await searched(listener, locked)


@pytest.mark.parametrize(("provider", "log_format"), [("openai", "console"), ("anthropic", "json")])
async def test_a_provider_that_repeats_what_it_is_sent(
    start: Start, locked: Locked, listener: Listener, provider: str, log_format: str
) -> None:
    """Every status, every malformed, oversized, refusing or hanging reply, with answer and key all over it."""
    # Sound answers in between keep the breaker closed for most of the time.
    texts = [f"do:{way}" for trouble in parrot.WAYS for way in ("well", trouble, "well")]
    await submit(locked, *texts)
    async with parrot.Parrot() as model:
        base = f"http://127.0.0.1:{model.port}"
        worker = await start(
            SCORER="llm",
            LLM_PROVIDER=provider,
            LLM_BASE_URL=f"{base}/v1" if provider == "openai" else base,
            LLM_TIMEOUT_SECONDS=1,
            LOG_FORMAT=log_format,
        )
        async with searching(listener, locked):
            await eventually(lambda: model.drawn >= set(parrot.WAYS), patience_seconds=PATIENCE_SECONDS)
            await eventually(lambda: "An answer is tried again later." in worker.log.read_text())
            await stopped(worker)
    listener.drove(*(f"{provider}: {way}" for way in parrot.WAYS))
    reasons = {
        row[0] for row in await locked.sql("SELECT last_error FROM scoring_handoffs WHERE last_error > ''")
    }
    assert len(reasons) > 10, reasons


@FORMATS
async def test_a_scorer_that_quotes_the_answer(
    start: Start, locked: Locked, listener: Listener, log_format: str
) -> None:
    """Whatever it raises or returns: type and place are logged, and none of its words."""
    ids = await submit(locked, *(f"do:{way}" for way in leaky.WAYS), "do:well")
    trouble = await submit(locked, "do:timeout")
    async with searching(listener, locked):
        worker = await start(SCORER=leaky.NAME, LOG_FORMAT=log_format)
        settled = sorted(set(ids) - {ids[leaky.WAYS.index("timeout")]})

        async def none_waits() -> bool:
            return await waiting(locked, settled) == 0

        await eventually(none_waits, patience_seconds=PATIENCE_SECONDS)
        await stopped(worker)
    assert await waiting(locked, trouble) == 1
    listener.drove(*(f"scorer: {way}" for way in leaky.WAYS))
    dead = await locked.sql("SELECT last_error FROM scoring_handoffs WHERE state = 'dead'")
    assert len(dead) > len(leaky.WAYS) - 5


@FORMATS
async def test_a_scorer_that_kills_or_does_not_stop(
    start: Start, locked: Locked, listener: Listener, tmp_path: Path, log_format: str
) -> None:
    """A death leaves nothing behind; a worker that is told to stop hands back what hangs, in silence."""
    await submit(locked, "do:kill")
    killed = await start(SCORER=leaky.NAME, LOG_FORMAT=log_format)
    assert await asyncio.wait_for(killed.process.wait(), 60) == -signal.SIGKILL
    await locked.sql("UPDATE scoring_handoffs SET lease_losses = 9")
    listener.drove("kill")
    await submit(locked, "do:stuck", "do:hang", "do:well")
    async with searching(listener, locked):
        # It meets the answer that kills no more: its tenth loss buries it.
        await eventually(lambda: lost(locked))
        worker = await start(SCORER=leaky.NAME, LOG_FORMAT=log_format, GRACE_SECONDS=0.2)
        await eventually(lambda: all((tmp_path / way).exists() for way in ("stuck", "hang", "well")))
        await stopped(worker)
    listener.drove("stuck scorer, SIGTERM", "hanging scorer, SIGTERM", "buried after ten losses")
    [[reason]] = await locked.sql("SELECT last_error FROM scoring_handoffs WHERE state = 'dead'")
    assert "10 times" in reason


async def lost(locked: Locked) -> bool:
    """Whether the lease of the worker that died has run out."""
    [[over]] = await locked.sql(
        "SELECT bool_and(due_at <= now()) FROM scoring_handoffs WHERE lease_token IS NOT NULL"
    )
    return bool(over)


@FORMATS
async def test_forged_messages_and_failing_claims(
    start: Start, locked: Locked, listener: Listener, log_format: str
) -> None:
    """What somebody wrote into Redis is dropped without a word of it; a claim that fails names no answer."""
    await locked.forbid_user_7()
    await submit(locked, "do:well")
    async with locked.engine.begin() as conn:
        claim_id = await request_claim(conn, anonymous_token=TOKEN, user_id=7)
    worker = await start(LOG_FORMAT=log_format)
    async with Redis.from_url(locked.redis_url()) as redis:
        for number, forged in enumerate(forgeries()):
            job = f"{FORGED}-{number}"
            await redis.set(message_key(job), forged)
            await redis.zadd(QUEUE_NAME, {job: number + 1})
            listener.drove(f"forged message {number}")
        for odd in (f"{FORGED}\nINFO forged", FORGED * 50, f"{FORGED}\ud800".encode(errors="surrogatepass")):
            await redis.zadd(QUEUE_NAME, {odd: 1})
            listener.drove("forged id")
        await redis.publish(WAKE_CHANNEL, FORGED)
        await Bell(redis).ring(
            [ClaimResponses(claim_ids=(claim_id, 4711)), ScoreResponses(response_ids=(4711,))]
        )

        async def all_read() -> bool:
            return not await redis.zcard(QUEUE_NAME) and not await redis.keys(f"*{FORGED}*")

        await eventually(all_read)
        await eventually(lambda: "A claim could not be applied." in worker.log.read_text())
        listener.drove("claim that the database refuses")
    await stopped(worker)
    await searched(listener, locked)


def forgeries() -> list[bytes]:
    """Messages that no producer of ours sends."""

    def job(function: str, *arguments: Any, **keywords: Any) -> bytes:
        return serialize({"t": None, "f": function, "a": list(arguments), "k": keywords, "et": 1})

    return [
        FORGED.encode(),
        json.dumps({FORGED: FORGED}).encode(),
        pickle.dumps({"t": None, "f": FORGED, "a": (FORGED,), "k": {}, "et": 1}),
        b"\xff" + FORGED.encode(),
        job(FORGED, FORGED),
        job("score_responses", FORGED),
        job("score_responses", {"response_ids": [FORGED]}),
        job("score_responses", {"response_ids": [1], FORGED: FORGED}),
        job("score_responses", {"response_ids": [1]}, FORGED),
        job("score_responses", **{FORGED: FORGED}),
        job("drain", {"lane": FORGED}),
        job("claim_responses", {"claim_ids": [FORGED]}),
        serialize({"t": FORGED, "f": "drain", "a": [], "k": {}, "et": FORGED}),
    ]


@FORMATS
async def test_servers_that_go_away(
    start: Start, locked: Locked, listener: Listener, log_format: str
) -> None:
    """Redis, then PostgreSQL, with answers in hand, and both again: outages are told without passwords or rows."""
    ids = await submit(locked, *["do:well"] * 20)
    worker = await start(SCORER=leaky.NAME, LOG_FORMAT=log_format)
    locked.servers.redis.kill()
    await eventually(lambda: "Redis" in worker.log.read_text())
    listener.drove("Redis away")
    ids += await submit(locked, *["do:well"] * 20)
    locked.servers.postgres.kill()
    await eventually(lambda: "PostgreSQL" in worker.log.read_text())
    listener.drove("PostgreSQL away")
    await start_again(locked)

    async def none_waits() -> bool:
        return await waiting(locked) == 0

    await eventually(none_waits, patience_seconds=PATIENCE_SECONDS)
    await stopped(worker)
    await searched(listener, locked)
