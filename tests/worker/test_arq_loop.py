"""arq's queue: whatever lies in it and whatever Redis does, real messages are served."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from arq.worker import Worker
from redis.exceptions import ConnectionError as RedisConnectionError

from producers import Producer
from producers.bell import Bell
from producers.contract import QUEUE_NAME, Drain, ScoreResponses, message, message_key
from tests.factories import submission
from tests.producers.waiting import eventually, settled
from tests.worker.conftest import settings_of
from tests.worker.scripted import ScriptedScorer, in_background, scored_once, submit_answers
from worker.arq_loop import ArqLoop, connect_arq
from worker.arq_worker import MAX_JOBS, HardenedWorker, arq_options
from worker.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from demo.servers import Servers
    from worker.settings import ScoringSettings

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

pytestmark = pytest.mark.commits

NEVER = 60.0  # a sweep that comes after the test


class Bomb:
    """Shows whether a pickle was loaded."""

    went_off = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "went_off", True))


async def put(redis: Redis, member: str | bytes, stored: bytes | None, *, score: float = 1) -> None:
    """Put anything into the queue, as somebody with access to Redis could."""
    if stored is not None:
        await redis.set(message_key(member if isinstance(member, str) else member.decode("latin-1")), stored)
    given: dict[Any, float] = {member: score}
    await redis.zadd(QUEUE_NAME, given)


def frame(**changes: Any) -> bytes:
    """A frame that arq would run, with changes."""
    given: dict[str, Any] = {"t": None, "f": "drain", "a": [{"lane": "live"}], "k": {}, "et": 1}
    return json.dumps(given | changes).encode()


GARBAGE: dict[str, tuple[str | bytes, bytes | None]] = {
    "undecodable member": (b"\xff\xfe\x00", None),
    "member without message": ("gone", None),
    "empty message": ("empty", b""),
    "no JSON": ("text", b"hello"),
    "pickle": ("pickle", pickle.dumps({"t": None, "f": "drain", "a": (Bomb(),), "k": {}, "et": 1})),
    "other JSON": ("list", b"[1, 2]"),
    "deep JSON": ("deep", b"[" * 5000 + b"]" * 5000),
    "long number": ("number", frame(a=[]).replace(b'"et": 1', b'"et": ' + b"9" * 5000)),
    "unknown function": ("unknown", frame(f="os.system")),
    "arguments of the wrong type": ("arguments", frame(a="abc")),
    "no arguments": ("none", frame(a=[])),
    "too many arguments": ("many", frame(a=[{"lane": "live"}, 2])),
    "keywords": ("keywords", frame(k={"ctx": 1})),
    "other keywords": ("keywords2", frame(k={"x": 1})),
    "unknown lane": ("lane", frame(a=[{"lane": "x"}])),
    "ids that are no ids": ("ids", frame(f="score_responses", a=[{"response_ids": ["1", -1]}])),
    "too many ids": ("ids2", frame(f="score_responses", a=[{"response_ids": list(range(1, 5000))}])),
    "time that is no number": ("time", frame(et="x")),
    "time far away": ("time2", frame(et=2**62)),
    "too many tries": ("tries", frame(t=1000)),
    "huge message": ("huge", frame(a=["x" * 5_000_000])),
    "binary member": ("a\x00b\nc", frame(f="nothing")),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_dropped(
    running: Running, engine: AsyncEngine, redis: Redis, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No message can break a worker: it is dropped, and the real one behind it is served."""
    member, stored = GARBAGE[kind]
    async with running(sweep_seconds=NEVER) as runtime:
        ids = await submit_answers(engine, 3)
        await put(redis, member, stored)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])

        await eventually(lambda: scored_once(engine, ids))

        async def empty() -> bool:
            return int(await redis.zcard(QUEUE_NAME)) == 0

        await eventually(empty)
        assert runtime.pool.free_slots == runtime.pool.slots
        assert [key async for key in redis.scan_iter("arq:job:*")] == []

    assert not Bomb.went_off
    assert "not foreseen" not in caplog.text
    assert "is away" not in caplog.text


async def test_all_garbage_at_once(running: Running, engine: AsyncEngine, redis: Redis) -> None:
    """A queue full of it ends empty, too, and answers are scored meanwhile."""
    for number in range(5):
        for member, stored in GARBAGE.values():
            if isinstance(member, str) and member != "huge":
                await put(redis, f"{number}{member}", stored)
    for number in range(20):
        await redis.zadd(QUEUE_NAME, {b"\xff%d" % number: 1})
    async with running(sweep_seconds=NEVER):
        ids = await submit_answers(engine, 20)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])
        await eventually(lambda: scored_once(engine, ids))

        async def empty() -> bool:
            return int(await redis.zcard(QUEUE_NAME)) == 0

        await eventually(empty)


@pytest.mark.parametrize("key", ["arq:job:{}", "arq:retry:{}"])
async def test_a_key_of_the_wrong_type_is_dropped(
    running: Running, engine: AsyncEngine, redis: Redis, key: str
) -> None:
    """Where arq expects a text lies a list: the message goes, the worker stays."""
    async with running(sweep_seconds=NEVER):
        await redis.sadd(key.format("forged"), "x")  # type: ignore[misc]
        await redis.zadd(QUEUE_NAME, {"forged": 1})
        ids = await submit_answers(engine, 3)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])
        await eventually(lambda: scored_once(engine, ids))

        async def gone() -> bool:
            return await redis.zcard(QUEUE_NAME) == 0 and not await redis.exists(key.format("forged"))

        await eventually(gone)


async def test_members_that_arq_overlooks_do_not_hide_the_queue(
    running: Running, engine: AsyncEngine, redis: Redis
) -> None:
    """Arq never runs and never removes a score of zero; more of them than one look reads are in the way."""
    await redis.zadd(QUEUE_NAME, {f"zero-{number}": 0 for number in range(250)})
    ids = await submit_answers(engine, 3)
    await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])

    async with running(sweep_seconds=NEVER):
        await eventually(lambda: scored_once(engine, ids))


async def test_a_queue_of_the_wrong_type(
    running: Running, engine: AsyncEngine, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With the queue itself unusable the sweep serves alone; when it is usable again, messages work."""
    caplog.set_level(logging.INFO)
    await redis.set(QUEUE_NAME, "no sorted set")
    async with running():
        first = await submit_answers(engine, 3)
        await eventually(lambda: scored_once(engine, first))
        await redis.delete(QUEUE_NAME)
        await eventually(lambda: "Redis is back" in caplog.text)
        second = await submit_answers(engine, 3)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(second))])
        await eventually(lambda: scored_once(engine, first + second))

        async def empty() -> bool:
            return not await redis.exists(QUEUE_NAME)

        await eventually(empty)


async def test_a_ring_is_heard_at_once(running: Running, engine: AsyncEngine, redis: Redis) -> None:
    """The wake-up brings the worker to the queue; its own beat, ten seconds away here, is not waited for."""
    async with running(sweep_seconds=NEVER, poll_seconds=10):

        async def listening() -> bool:
            return bool((await redis.pubsub_numsub("scoring:v1:wake"))[0][1])

        await eventually(listening)
        ids = await submit_answers(engine, 1)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])
        await eventually(lambda: scored_once(engine, ids), patience_seconds=8)


async def test_from_submit_to_score(running: Running, engine: AsyncEngine, redis: Redis) -> None:
    """A producer's submit is all it takes: the worker gets the message and scores."""
    await submit_answers(engine, 0)
    producer = Producer(engine, redis)
    async with running(sweep_seconds=NEVER):
        rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(50)))
        await eventually(lambda: scored_once(engine, [row["response_id"] for row in rows]))
    await producer.close()


async def test_a_full_worker_leaves_messages_to_others(
    running: Running, engine: AsyncEngine, redis: Redis, scorer: ScriptedScorer
) -> None:
    """Without a free slot no message is read; with one, it is read at once and not at the next beat."""
    async with running(sweep_seconds=NEVER, slots=2, poll_seconds=10) as runtime:
        scorer.hold()
        first = await submit_answers(engine, 2)
        await runtime.intake.take(first)
        [late] = await submit_answers(engine, 1)
        await Bell(redis).ring([ScoreResponses(response_ids=(late,))])

        async def looked() -> bool:
            return bool(await redis.exists(QUEUE_NAME)) and not runtime.intake.wants_messages

        await eventually(looked)
        assert await redis.zcard(QUEUE_NAME) == 1
        scorer.let_go()
        await eventually(lambda: scored_once(engine, [*first, late]), patience_seconds=8)


async def test_redis_forgets_everything(
    running: Running, engine: AsyncEngine, redis: Redis, scorer: ScriptedScorer
) -> None:
    """FLUSHALL in the middle: what was announced comes back through the sweep, nothing is scored twice."""
    async with running():
        scorer.hold()
        ids = await submit_answers(engine, 40)
        await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids[:20])), Drain(lane="live")])
        await eventually(lambda: scorer.running)
        await redis.flushdb()
        scorer.let_go()
        await eventually(lambda: scored_once(engine, ids))

    assert set(scorer.started.values()) == {1}


async def test_redis_is_killed_and_comes_back(
    breakable: Servers, scorer: ScriptedScorer, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is dead the sweep serves alone; when it is back, messages work again by themselves."""
    caplog.set_level(logging.INFO)
    settings = settings_of(breakable)
    runtime = Runtime(settings, scorer=scorer)
    await runtime.start()
    async with in_background(ArqLoop(runtime, settings).run()):
        before = await submit_answers(runtime.engine, 5)
        await runtime.bell.ring([ScoreResponses(response_ids=tuple(before))])
        await eventually(lambda: scored_once(runtime.engine, before))

        breakable.redis.kill()
        await eventually(lambda: "Redis is away" in caplog.text)
        during = await submit_answers(runtime.engine, 5)
        with pytest.raises(RedisConnectionError):
            await runtime.bell.ring([ScoreResponses(response_ids=tuple(during))])
        await eventually(lambda: scored_once(runtime.engine, before + during))

        breakable.redis.start()
        await eventually(lambda: "Redis is back" in caplog.text)
        after = await submit_answers(runtime.engine, 5)
        await runtime.bell.ring([ScoreResponses(response_ids=tuple(after))])
        await eventually(lambda: scored_once(runtime.engine, before + during + after))
        await runtime.stop()

    assert set(scorer.started.values()) == {1}


async def test_a_lost_connection_ends_no_loop(
    running: Running, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw, in polling or in closing the connection, costs one new connection."""
    polls = 0
    original = HardenedWorker.poll_once

    async def flaky(self: HardenedWorker) -> None:
        nonlocal polls
        polls += 1
        if polls == 2:
            raise ZeroDivisionError
        await original(self)

    finish = HardenedWorker.finish

    async def cannot_close(self: HardenedWorker, timeout_seconds: float) -> None:
        await finish(self, timeout_seconds)
        raise RedisConnectionError

    monkeypatch.setattr(HardenedWorker, "poll_once", flaky)
    with monkeypatch.context() as patched:
        patched.setattr(HardenedWorker, "finish", cannot_close)
        async with running(sweep_seconds=NEVER):
            await eventually(lambda: polls > 3)
            patched.undo()
            monkeypatch.setattr(HardenedWorker, "poll_once", original)
            ids = await submit_answers(engine, 2)
            await Bell(redis).ring([ScoreResponses(response_ids=tuple(ids))])
            await eventually(lambda: scored_once(engine, ids))


class Recorder:
    """In place of a runtime: writes down what messages name."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    async def take(self, response_ids: Sequence[int]) -> None:
        self.taken += response_ids
        await asyncio.sleep(0)


async def test_beside_arqs_own_worker(settings: Callable[..., ScoringSettings], redis: Redis) -> None:
    """Ours and arq's own worker read one queue side by side, and each message is run by one of them."""
    numbers = range(1, 301)
    for number in numbers:
        await Bell(redis).ring([ScoreResponses(response_ids=(number,))])
    ours, theirs = Recorder(), Recorder()
    worker = HardenedWorker(connect_arq(settings()), {"runtime": ours})
    arq = Worker(
        redis_pool=connect_arq(settings()),
        handle_signals=False,
        burst=True,
        poll_delay=0.001,
        ctx={"runtime": theirs},
        **arq_options(),
    )

    async def empty() -> bool:
        await worker.poll_once()
        return int(await redis.zcard(QUEUE_NAME)) == 0

    async with asyncio.TaskGroup() as group:
        group.create_task(arq.main())  # until it finds the queue empty
        await eventually(empty)
    await worker.finish(1)
    await arq.pool.aclose()

    assert sorted(ours.taken + theirs.taken) == list(numbers)
    assert ours.taken
    assert theirs.taken
    assert [key async for key in redis.scan_iter("arq:*")] == []


async def test_one_id_again_and_again_does_not_pass_the_bound(
    settings: Callable[..., ScoringSettings], redis: Redis
) -> None:
    """A message is gone when it is taken, and may be queued again while it is run: it counts each time."""
    go = asyncio.Event()

    class Waiting(Recorder):
        async def take(self, response_ids: Sequence[int]) -> None:
            await super().take(response_ids)
            await go.wait()

    ours = Waiting()
    worker = HardenedWorker(connect_arq(settings()), {"runtime": ours})
    for _ in range(3 * MAX_JOBS):
        await put(redis, "0123", frame(f="score_responses", a=[{"response_ids": [1]}]))
        await worker.poll_once()
        await settled()
    assert len(ours.taken) == MAX_JOBS

    go.set()
    await worker.finish(1)


async def test_a_message_that_arq_is_reading_is_left_to_it(
    settings: Callable[..., ScoringSettings], redis: Redis
) -> None:
    """What another worker has marked as being read is not taken, and does not hide what lies behind it."""
    for number in (1, 2):
        await Bell(redis).ring([ScoreResponses(response_ids=(number,))])
    first, _ = await redis.zrange(QUEUE_NAME, 0, -1)
    await redis.set(b"arq:in-progress:" + first, b"1")
    ours = Recorder()
    worker = HardenedWorker(connect_arq(settings()), {"runtime": ours})

    await worker.poll_once()
    await eventually(lambda: ours.taken)
    await worker.finish(1)

    assert ours.taken == [2]
    assert await redis.zrange(QUEUE_NAME, 0, -1) == [first]
    assert await redis.exists(b"arq:job:" + first)


async def test_a_claim_message_is_served(running: Running, engine: AsyncEngine, redis: Redis) -> None:
    """A message whose payload is read at once by the job of its name."""
    await submit_answers(engine, 1, anonymous_token="t-claims")
    producer = Producer(engine, redis)
    async with running(sweep_seconds=NEVER):
        await producer.claim(anonymous_token="t-claims", user_id=7)

        async def moved() -> bool:
            async with engine.connect() as conn:
                found = await conn.exec_driver_sql("SELECT user_id FROM assessment_responses")
                return found.scalars().all() == [7]

        await eventually(moved)
    await producer.close()


def test_a_message_as_arq_stores_it() -> None:
    """The frames of these tests are those of the contract."""
    assert json.loads(message(Drain(lane="live"))).keys() == json.loads(frame()).keys()
