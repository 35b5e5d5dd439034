"""The network swallows everything: established connections never answer, new ones hang while they connect."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from producers import open_producer
from storage import create_engine
from storage.claims import apply_claim, request_claim
from storage.errors import StorageUnavailableError
from storage.keys import time_ordered_uuid
from tests.factories import submission, submit, token
from tests.fake_model import FakeModel
from tests.faults.line import Line
from tests.faults.processes import END_PATIENCE_SECONDS, start_process
from tests.faults.students import submitting
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog
    from tests.faults.students import Students

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

TIMEOUT_SECONDS = 1.0
# Longer than a busy machine takes for a reply that does come.
MODEL_TIMEOUT_SECONDS = 2.0
SLOTS = 8
# A single student, who takes a while: model calls take a worker long, and more would only wait in a longer queue.
STUDENTS, PAUSE_SECONDS = 1, 0.05
ENOUGH = 20
FEW = 5


@dataclass(frozen=True)
class Lines:
    """One to each server."""

    postgres: Line
    redis: Line
    model: Line
    fake: FakeModel

    def chosen(self, server: str) -> list[Line]:
        """The line to one server, or all of them."""
        by_name = {"postgres": self.postgres, "redis": self.redis, "model": self.model}
        return list(by_name.values()) if server == "all" else [by_name[server]]

    def variables(self, site: Site, server: str) -> dict[str, object]:
        """For a worker process at the other end of the lines; with a language model where the test is about that."""
        with_a_model = {
            "SCORER": "llm",
            "LLM_MODEL": "fake",
            "LLM_BASE_URL": f"http://127.0.0.1:{self.model.port}/v1",
            "LLM_TIMEOUT_SECONDS": MODEL_TIMEOUT_SECONDS,
        }
        return {
            "DATABASE_URL": self.postgres.to(site.database_url),
            "DATABASE_TIMEOUT_SECONDS": TIMEOUT_SECONDS,
            "REDIS_URL": self.redis.to(site.redis_url),
            "REDIS_TIMEOUT_SECONDS": TIMEOUT_SECONDS,
            "GRACE_SECONDS": 1,
            "SLOTS": SLOTS,
            **(with_a_model if server in {"model", "all"} else {}),
        }


@pytest.fixture
async def lines(site: Site) -> AsyncIterator[Lines]:
    """A line to each server; the model is a real server too, and answers well."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeModel(delay_seconds=0.02))
        model_port = urlsplit(fake.openai_url).port
        assert model_port is not None
        yield Lines(
            postgres=await stack.enter_async_context(Line(site.servers.postgres.port)),
            redis=await stack.enter_async_context(Line(site.servers.redis.port)),
            model=await stack.enter_async_context(Line(model_port)),
            fake=fake,
        )


def says(worker: WorkerProcess, sentence: str) -> int:
    """How often a worker said something."""
    return sum(record["event"] == sentence for record in worker.records)


async def goes_on(
    site: Site, server: str, worker: WorkerProcess, students: Students, producer: Producer, calls: CallLog
) -> None:
    """While one server is a black hole, the worker does what can be done without it, and says what is amiss."""
    if server == "postgres":
        # Nothing can be done, but what is finished is kept, and messages do not look like PostgreSQL's return.
        before = says(worker, "PostgreSQL is back.")
        calls.let_go()
        await eventually(lambda: calls.began == calls.ended)
        await eventually(lambda: worker.logged("PostgreSQL is away", "scores wait in memory"))
        await students.stored_again(ENOUGH)
        assert says(worker, "PostgreSQL is back.") == before
    elif server == "redis":
        await eventually(lambda: worker.logged("Redis is away"))
        row = await producer.submit(**submission())
        await site.all_scored([row["response_id"]])
    else:
        await eventually(lambda: worker.logged("breaker is open"))
        await producer.claim(anonymous_token=token(), user_id=2)
        await eventually(lambda: worker.logged("claim was applied"))


@pytest.mark.parametrize(
    ("server", "late"), [("postgres", True), ("postgres", False), ("redis", False), ("model", True)]
)
async def test_a_worker_outlives_a_black_hole(
    site: Site, start: Start, lines: Lines, producer: Producer, calls: CallLog, server: str, *, late: bool
) -> None:
    """Meanwhile it goes on with what it can; afterwards all is scored once and no attempt was used up.

    Whether what was sent into the hole arrives late or never.
    """
    worker = await start(**lines.variables(site, server))
    async with submitting(producer, STUDENTS, pause_seconds=PAUSE_SECONDS) as students:
        await students.stored_again(ENOUGH)
        if server == "postgres":
            calls.hold()
            await eventually(lambda: (calls.began - calls.ended).total() >= FEW)

        [line] = lines.chosen(server)
        line.go_dead()
        await goes_on(site, server, worker, students, producer, calls)
        line.come_back(late=late)

    stored = [row[0] for row in await site.sql("SELECT response_id FROM assessment_responses")]
    assert set(students.response_ids) <= set(stored)
    await site.all_scored(stored)
    await site.assert_nothing_lost(stored)
    assert (await site.counters())["attempts"] == 0
    if server != "model":
        assert set(calls.began.values()) == {1}
    await worker.stopped()


@pytest.mark.parametrize("server", ["redis", "all"])
async def test_a_worker_stops_in_a_black_hole(
    site: Site, start: Start, lines: Lines, producer: Producer, server: str
) -> None:
    """SIGTERM ends it in peace, whichever server does not answer; what it could not write another one scores."""
    worker = await start(**lines.variables(site, server))
    async with submitting(producer, STUDENTS, pause_seconds=PAUSE_SECONDS) as students:
        await students.stored_again(ENOUGH)
        for line in lines.chosen(server):
            line.go_dead()
        await students.stored_again(ENOUGH)

        worker.told_to_stop()
        await worker.ended()

    for line in lines.chosen(server):
        line.come_back(late=True)
    await start()
    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)
    assert (await site.counters())["attempts"] == 0


async def test_a_worker_starts_while_redis_is_a_black_hole(
    site: Site, start: Start, lines: Lines, producer: Producer
) -> None:
    """Redis is only the bell: without an answer from it the worker starts all the same, and scores."""
    lines.redis.go_dead()

    await start(**lines.variables(site, "redis"))

    row = await producer.submit(**submission())
    await site.all_scored([row["response_id"]])


async def test_a_worker_does_not_start_while_postgres_is_a_black_hole(
    site: Site, lines: Lines, tmp_path: Path
) -> None:
    """It says so and exits with 1, so that whoever supervises it tries again."""
    lines.postgres.go_dead()
    given = {"SCORER": "lexical"} | lines.variables(site, "postgres")
    environment = {f"SCORING_{name}": str(value) for name, value in given.items()}

    worker = await start_process(environment, tmp_path / "worker.log")
    async with asyncio.timeout(END_PATIENCE_SECONDS):
        exit_status = await worker.process.wait()

    assert exit_status == 1
    assert "PostgreSQL cannot be reached" in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()


@pytest.fixture
async def far_producer(site: Site, lines: Lines) -> AsyncIterator[Producer]:
    """A producer at the other end of the lines."""
    settings = site.settings(
        database_url=lines.postgres.to(site.database_url),
        database_timeout_seconds=TIMEOUT_SECONDS / 2,  # a submit tries four times
        redis_url=lines.redis.to(site.redis_url),
        redis_timeout_seconds=TIMEOUT_SECONDS,
    )
    async with open_producer(settings) as producer:
        yield producer


async def test_a_submit_into_a_black_hole_is_refused(
    site: Site, start: Start, lines: Lines, far_producer: Producer
) -> None:
    """It never hangs; repeated with its key it is stored once, although the first one arrives after all."""
    await start()
    keys = [time_ordered_uuid() for _ in range(ENOUGH)]
    before = await far_producer.submit(**submission())
    lines.postgres.go_dead()

    refused = await asyncio.gather(
        *(far_producer.submit(**submission(submission_key=key)) for key in keys), return_exceptions=True
    )
    assert {type(refusal) for refusal in refused} == {StorageUnavailableError}
    assert "trying again later is safe" in str(refused[0])
    with pytest.raises(StorageUnavailableError):
        await far_producer.claim(anonymous_token=token(), user_id=2)
    lines.postgres.come_back(late=True)

    rows = await asyncio.gather(*(far_producer.submit(**submission(submission_key=key)) for key in keys))
    ids = [before["response_id"], *(row["response_id"] for row in rows)]
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)


async def test_a_submit_does_not_wait_for_redis_in_a_black_hole(
    site: Site, start: Start, lines: Lines, far_producer: Producer
) -> None:
    """Answers and claims are taken as ever; the sweep finds them."""
    await start()
    lines.redis.go_dead()

    rows = [await far_producer.submit(**submission()) for _ in range(ENOUGH)]
    await far_producer.claim(anonymous_token=token(), user_id=2)
    await far_producer.close()

    ids = [row["response_id"] for row in rows]
    await site.all_scored(ids)

    async def applied() -> bool:
        return await site.sql("SELECT 1 FROM assessment_claims WHERE applied_at IS NULL") == []

    await eventually(applied)
    await site.assert_nothing_lost(ids)


async def test_who_vanishes_in_a_transaction_locks_nobody_out(site: Site, start: Start, lines: Lines) -> None:
    """PostgreSQL never hears of the end of a session in a black hole: its locks must not wait for that."""
    secret = token()
    engine = create_engine(lines.postgres.to(site.database_url), timeout_seconds=TIMEOUT_SECONDS)
    async with site.engine.begin() as conn:
        row = await submit(conn, anonymous_token=secret)
        claim_id = await request_claim(conn, anonymous_token=secret, user_id=2)

    async def apply_and_vanish() -> None:
        async with engine.begin() as conn:
            await apply_claim(conn, claim_id)
            lines.postgres.go_dead()

    with pytest.raises(TimeoutError):
        await apply_and_vanish()
    worker = await start()

    await eventually(lambda: worker.logged("claim was applied"))
    await site.all_scored([row["response_id"]])
    await engine.dispose()
