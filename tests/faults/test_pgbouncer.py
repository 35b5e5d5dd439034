"""Everything through PgBouncer in transaction mode, with fewer connections than there are clients."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from producers import Producer, open_producer
from storage import submit_responses
from tests.commands.conftest import Commands
from tests.databases import USER_IDS
from tests.factories import MODULE, QUESTION, submission, token
from tests.faults.conftest import PROGRAMS, needed, restart
from tests.faults.pgbouncer import POOL_SIZE, PROGRAM, pgbouncer
from tests.faults.students import submitting
from tests.producers.waiting import eventually
from tests.web.host import Host, host_app

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from demo.servers import Server
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = pytest.mark.processes

# Many more than PgBouncer has connections.
STUDENTS = 30
ENOUGH = 300
# Not the first user, who answers the question all the time: a claim skips what its user has answered.
SIGNING_IN = USER_IDS[1:]
KILLS = 3
# Before each of them.
CUTS = 20
# On average, between two cuts.
PAUSE_SECONDS = 0.01
# The connections to PostgreSQL that PgBouncer keeps: what runs on them may be of any client.
OURS = """
    SELECT pid, row_number() OVER (ORDER BY backend_start, pid) - 1 AS number, count(*) OVER () AS all_of_them
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'test'
"""
CUT_ONE = f"""
    SELECT pg_terminate_backend(pid) FROM ({OURS}) AS ours
    WHERE number = floor(CAST(:luck AS double precision) * all_of_them)
"""
QUESTIONS = f"""
module: {MODULE}
questions:
  - id: {QUESTION}
    question: What does a plant need light for?
    rubric: Full marks for naming photosynthesis and sugar.
"""


@pytest.fixture
def bouncer(site: Site) -> Iterator[Server]:
    """PgBouncer in front of the servers of the site."""
    needed(PROGRAM, package=PROGRAM)
    server = pgbouncer(site.servers.postgres, shutil.which(PROGRAM, path=PROGRAMS) or PROGRAM)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def bounced_url(site: Site, bouncer: Server) -> str:
    """The database through PgBouncer."""
    return make_url(site.database_url).set(port=bouncer.port).render_as_string(hide_password=False)


@pytest.fixture
async def bounced(site: Site, bounced_url: str) -> AsyncIterator[Producer]:
    """A producer of a web process behind PgBouncer."""
    settings = site.settings(database_url=bounced_url, pgbouncer=True)
    engine, redis = settings.engine(), settings.redis()
    producer = Producer(engine, redis)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(redis.aclose)
        stack.push_async_callback(producer.close)
        yield producer


@pytest.fixture
def commands(site: Site, bounced_url: str) -> Commands:
    """The ``scoring`` command behind PgBouncer."""
    return Commands(
        {
            "SCORING_DATABASE_URL": bounced_url,
            "SCORING_PGBOUNCER": "true",
            "SCORING_REDIS_URL": site.redis_url,
            "SCORING_SWEEP_SECONDS": "0.2",
        }
    )


@pytest.fixture
def start_bounced(start: Start, bounced_url: str) -> Callable[[], Awaitable[WorkerProcess]]:
    """Starts worker processes behind PgBouncer."""
    return lambda: start(DATABASE_URL=bounced_url, PGBOUNCER="true", LEASE_SECONDS=30, scorer_seconds=0.01)


@pytest.fixture
async def published(commands: Commands, tmp_path: Path) -> None:
    """The question that submissions answer, published as ops do it: by a command."""
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "biology.yaml").write_text(QUESTIONS)
    assert [each["published"] for each in await commands.json("questions", "sync", folder)] == [True]


async def printed(commands: Commands, *words: str) -> Any:
    """Run a command as a process, beside others, and read what it prints."""
    done = await commands.process(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def sign_in(producer: Producer, user_id: int) -> int:
    """A student answers anonymously and signs in. Returns the response."""
    secret = token()
    row = await producer.submit(**submission(anonymous_token=secret))
    await producer.claim(anonymous_token=secret, user_id=user_id)
    return int(row["response_id"])


@pytest.mark.usefixtures("published")
async def test_all_of_it_works_in_transaction_mode(
    site: Site,
    bounced: Producer,
    start_bounced: Callable[[], Awaitable[WorkerProcess]],
    commands: Commands,
    calls: CallLog,
) -> None:
    """Submits, claims, sweeps, scores and commands share four connections, and none of them meets an error."""
    workers = [await start_bounced(), await start_bounced()]
    async with submitting(bounced, STUDENTS) as students:
        claimed = await asyncio.gather(*(sign_in(bounced, user_id) for user_id in SIGNING_IN))
        async with bounced._engine.begin() as conn:
            unannounced = await submit_responses(conn, [submission() for _ in range(20)])
        status, dead, findings = await asyncio.gather(
            printed(commands, "status"),
            printed(commands, "dead", "list"),
            printed(commands, "verify", "--full"),
        )
        await students.stored_again(ENOUGH)
        [[connections]] = await site.sql(f"SELECT count(*) FROM ({OURS}) AS ours")
        assert 0 < connections <= POOL_SIZE

    ids = students.response_ids + claimed + [int(row["response_id"]) for row in unannounced]
    await site.all_scored(ids)

    async def all_applied() -> bool:
        owners = await site.sql(
            "SELECT user_id FROM assessment_responses WHERE response_id = ANY (:ids)", ids=claimed
        )
        return sorted(user_id or 0 for (user_id,) in owners) == list(SIGNING_IN)

    await eventually(all_applied)
    await site.assert_nothing_lost(ids)
    assert set((await site.counters()).values()) == {0}
    assert calls.began == dict.fromkeys(ids, 1)
    assert {worker["pid"] for worker in status["workers"]} == {worker.pid for worker in workers}
    assert dead == []
    assert [finding["holds"] for finding in findings] == [True] * 6
    assert (await commands.run("health")).exit_code == 0
    for worker in workers:
        await worker.stopped()
        assert {record["level"] for record in worker.records} == {"info"}


@pytest.mark.usefixtures("published")
async def test_a_killed_pgbouncer_and_cut_connections_lose_nothing(
    site: Site,
    bouncer: Server,
    bounced: Producer,
    start_bounced: Callable[[], Awaitable[WorkerProcess]],
    chance: random.Random,
) -> None:
    """Whatever breaks on either side of it: every acknowledged answer is scored once, no attempt is used up."""
    workers = [await start_bounced(), await start_bounced()]
    async with submitting(bounced, STUDENTS) as students:
        for _ in range(KILLS):
            cut = 0
            while cut < CUTS:
                cut += len(await site.sql(CUT_ONE, luck=chance.random()))
                await asyncio.sleep(chance.expovariate(1 / PAUSE_SECONDS))
            await asyncio.to_thread(bouncer.kill)
            await students.refused_again()
            await restart(bouncer)
            await students.stored_again(STUDENTS)

    ids = students.response_ids
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)
    assert (await site.counters())["attempts"] == 0
    for worker in workers:
        await worker.stopped()


async def test_the_router_behind_pgbouncer(site: Site, bounced_url: str) -> None:
    """More students than connections, who keep drafts, submit each answer twice, read and claim, all at once."""
    settings = site.settings(database_url=bounced_url, pgbouncer=True)
    engine = settings.engine()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        producer = await stack.enter_async_context(open_producer(settings, engine=engine))
        transport = httpx.ASGITransport(host_app(Host(engine=engine, producer=producer)))
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://host/assessment")
        )

        async def student(number: int) -> None:
            headers = {"x-token": f"student {number}"}
            for attempt in range(5):
                key = str(uuid4())
                draft = {"answer_text": "It tur", "submission_key": key}
                body = {"module_slug": MODULE, "question_id": f"q{attempt}", "answer_text": "It turns."}
                path = f"/drafts/{MODULE}/q{attempt}"
                assert (await client.put(path, json=draft, headers=headers)).status_code == 200
                assert (await client.get(path, headers=headers)).json()["submission_key"] == key
                replies = [
                    await client.post("/responses", json=body, headers=headers | {"Idempotency-Key": key})
                    for _ in range(2)
                ]
                assert replies[0].status_code == 201
                assert replies[0].content == replies[1].content
                assert (await client.get(path, headers=headers)).status_code == 404
            listed = (await client.get("/responses", headers=headers)).json()["items"]
            assert len(listed) == 5
            user = {"x-user": str(number % 20 + 1), "x-held": headers["x-token"]}
            assert (await client.post("/claims", json={}, headers=user)).status_code == 202

        await asyncio.gather(*(student(number) for number in range(STUDENTS)))

    assert await site.sql("SELECT count(*) FROM assessment_responses") == [(STUDENTS * 5,)]
