"""Redis behind Sentinel: its primary is killed or changed under load, and the bell moves with it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from demo.sentinel import SERVICE, SentinelServers, sentinel_servers
from producers import Producer
from producers.bell import Bell, connect_redis
from producers.contract import QUEUE_NAME, WAKE_CHANNEL, Drain
from producers.errors import InvalidSettingsError
from producers.sentinel import PrimaryPool
from tests.databases import ROOT
from tests.factories import submission
from tests.faults.conftest import restart
from tests.faults.students import submitting
from tests.producers.waiting import eventually
from worker.runtime import Runtime
from worker.verification import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from demo.servers import Server
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

ENOUGH = 50
NEVER = 60.0  # a sweep that comes after the test
PASSWORD = "sesame"
NAME = "assessment-scoring"  # what our connections are called


@pytest.fixture
def sentinels() -> Iterator[SentinelServers]:
    """A primary, a replica and three sentinels that ask for a password."""
    with sentinel_servers(sentinel_password=PASSWORD) as servers:
        yield servers


@pytest.fixture
async def producer(site: Site, sentinels: SentinelServers) -> AsyncIterator[Producer]:
    """A producer whose Redis is behind Sentinel."""
    settings = site.settings(redis_url=sentinels.url)
    engine, redis = settings.engine(), settings.redis()
    producer = Producer(engine, redis)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(redis.aclose)
        stack.push_async_callback(producer.close)
        yield producer


def direct(server: Server) -> Redis:
    """A client of this server, whatever it is at the moment."""
    return Redis(host="127.0.0.1", port=server.port)


async def of_ours(server: Server) -> set[str]:
    """The names of our connections to a server."""
    async with direct(server) as redis:
        return {client["name"] for client in await redis.client_list() if client["name"].startswith(NAME)}


async def heard(server: Server) -> bool:
    """Whether a worker listens for wake-ups there."""
    async with direct(server) as redis:
        return bool((await redis.pubsub_numsub(WAKE_CHANNEL))[0][1])


async def queued(server: Server) -> int:
    """How many messages wait there."""
    async with direct(server) as redis:
        return int(await redis.zcard(QUEUE_NAME))


async def test_a_killed_primary_costs_no_answer(
    site: Site, sentinels: SentinelServers, start: Start, producer: Producer
) -> None:
    """Killed under load, replaced, and back as a replica: no submit fails, every answer is scored once."""
    worker = await start(REDIS_URL=sentinels.url)
    async with submitting(producer) as students:
        await eventually(lambda: len(students.stored) > ENOUGH)
        sentinels.first.kill()
        await eventually(lambda: worker.logged("Redis is away"))
        await eventually(lambda: sentinels.all_see(sentinels.second))
        await eventually(lambda: worker.logged("Redis is back"))
        await eventually(lambda: heard(sentinels.second))
        promoted = len(students.stored)
        await eventually(lambda: len(students.stored) > promoted + ENOUGH)
        await restart(sentinels.first)
        await eventually(lambda: sentinels.agree_on(sentinels.second))
        returned = len(students.stored)
        await eventually(lambda: len(students.stored) > returned + ENOUGH)

    assert students.refusals == 0
    ids = students.response_ids
    await eventually(lambda: site.scored(ids))
    await site.assert_nothing_lost(ids)
    assert set((await site.counters()).values()) == {0}
    findings = await verify(site.engine, site.settings(redis_url=sentinels.url), full=True)
    assert [finding for finding in findings if finding.holds is not True] == []
    await worker.stopped()


async def test_the_bell_works_at_the_new_primary(
    site: Site, sentinels: SentinelServers, start: Start, producer: Producer, calls: CallLog
) -> None:
    """No sweep comes to help: what is rung after the promotion is read from the new primary's queue."""
    worker = await start(REDIS_URL=sentinels.url, SWEEP_SECONDS=NEVER)
    before = (await producer.submit(**submission()))["response_id"]
    await eventually(lambda: site.scored([before]))

    sentinels.first.kill()
    await eventually(lambda: sentinels.all_see(sentinels.second))
    await eventually(lambda: heard(sentinels.second))
    await eventually(lambda: worker.logged("Redis is back"))
    await eventually(lambda: of_ours(sentinels.second))
    rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(ENOUGH)))
    ids = [before, *(row["response_id"] for row in rows)]

    await eventually(lambda: site.scored(ids))

    async def drained() -> bool:
        return await queued(sentinels.second) == 0

    await eventually(drained)
    assert set(calls.began.values()) == {1}
    await site.assert_nothing_lost(ids)
    await worker.stopped()


async def test_nobody_stays_with_a_demoted_primary(
    site: Site, sentinels: SentinelServers, start: Start, producer: Producer
) -> None:
    """Ops change the primary while both live: producer, worker and its listener move to the new one."""
    worker = await start(REDIS_URL=sentinels.url)
    async with submitting(producer) as students:
        await eventually(lambda: len(students.stored) > ENOUGH)
        assert await of_ours(sentinels.first) == {NAME, f"{NAME}-worker"}
        await sentinels_fail_over(sentinels)
        await eventually(lambda: sentinels.agree_on(sentinels.second))

        async def moved() -> bool:
            return await of_ours(sentinels.second) == {NAME, f"{NAME}-worker"}

        await eventually(moved)
        await eventually(lambda: heard(sentinels.second))

        async def left() -> bool:
            return not await of_ours(sentinels.first)

        await eventually(left)

    assert students.refusals == 0
    await eventually(lambda: site.scored(students.response_ids))
    await site.assert_nothing_lost(students.response_ids)
    await worker.stopped()


async def sentinels_fail_over(servers: SentinelServers) -> None:
    """Ask for another primary, as ops do before maintenance."""
    async with Redis(host="127.0.0.1", port=servers.sentinels[0].port, password=PASSWORD) as sentinel:
        await sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)  # type: ignore[no-untyped-call]


async def test_a_refused_write_is_a_lost_connection(sentinels: SentinelServers) -> None:
    """A primary became a replica and cut nobody off: no write is taken for done, and the client finds the new one."""
    redis = connect_redis(sentinels.url, timeout_seconds=5)
    bell = Bell(redis)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose)
        await bell.ring([Drain(lane="live")])
        async with direct(sentinels.first) as first:
            await first.replicaof("127.0.0.1", sentinels.second.port)  # behind the sentinels' back
        with pytest.raises(RedisConnectionError, match="now a slave"):
            await bell.ring([Drain(lane="bulk")])

        async def rings() -> bool:
            try:
                await bell.ring([Drain(lane="bulk")])
            except RedisConnectionError:
                return False
            return True

        await eventually(rings)


async def test_closing_closes_the_sentinels_connections_too(sentinels: SentinelServers) -> None:
    """One ``aclose`` by the owner is enough; afterwards nothing of ours is open anywhere."""
    redis = connect_redis(sentinels.url, timeout_seconds=5)
    await redis.ping()
    pool = redis.connection_pool
    assert isinstance(pool, PrimaryPool)
    pools = [pool, *(sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels)]
    opened = [connection for each in pools for connection in each._available_connections]
    assert len(opened) >= 2
    assert all(connection.is_connected for connection in opened)

    await redis.aclose()

    assert not any(connection.is_connected for connection in opened)


@pytest.mark.parametrize("login", ["", "?sentinel_password=canary"])
async def test_sentinels_that_refuse_the_login_stop_the_worker(
    site: Site, sentinels: SentinelServers, login: str
) -> None:
    """Like a wrong password of Redis itself: the refusal names the variable and shows no password."""
    url = sentinels.url.partition("?")[0] + login
    redis = connect_redis(url, timeout_seconds=5)
    with pytest.raises(AuthenticationError):
        await redis.ping()
    await redis.aclose()

    runtime = Runtime(site.settings(redis_url=SecretStr(url), scorer="lexical"))
    with pytest.raises(InvalidSettingsError, match=r"^SCORING_REDIS_URL is wrong: ") as refused:
        await runtime.start()
    await runtime.close()
    assert "canary" not in str(refused.value)


async def test_dead_sentinels_are_no_obstacle(sentinels: SentinelServers) -> None:
    """As long as one sentinel answers, the primary is found; a sentinel that hangs costs its share of the wait."""
    asleep, dead, _ = sentinels.sentinels
    assert asleep.process is not None
    dead.kill()
    asleep.process.send_signal(signal.SIGSTOP)
    redis = connect_redis(sentinels.url, timeout_seconds=3)
    try:
        await Bell(redis).ring([Drain(lane="live")])
    finally:
        await redis.aclose()
        asleep.process.send_signal(signal.SIGCONT)
    assert await queued(sentinels.first) == 1


async def test_arq_s_own_command_finds_the_primary(
    site: Site, sentinels: SentinelServers, producer: Producer
) -> None:
    """``arq worker.main.WorkerSettings`` takes the same URL, with a password for the sentinels."""
    variables = {
        "DATABASE_URL": site.database_url,
        "REDIS_URL": sentinels.url,
        "SCORER": "lexical",
        "SWEEP_SECONDS": str(NEVER),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "arq", "worker.main.WorkerSettings"),
        cwd=ROOT,
        env=os.environ | {f"SCORING_{name}": value for name, value in variables.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        rows = await asyncio.gather(*(producer.submit(**submission()) for _ in range(5)))
        await eventually(lambda: site.scored([row["response_id"] for row in rows]))

        async def drained() -> bool:
            return await queued(sentinels.first) == 0

        await eventually(drained)
    finally:
        process.send_signal(signal.SIGTERM)
        logged, _ = await process.communicate()
    assert b"unclosed" not in logged, logged.decode()
