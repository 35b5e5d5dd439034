"""PostgreSQL is there and cannot write: its disk is full, or somebody made it read-only."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import DBAPIError

from storage.errors import StorageUnavailableError
from storage.keys import time_ordered_uuid
from tests.databases import raw_connection
from tests.factories import submission
from tests.faults.conftest import needed, restart
from tests.faults.students import submitting
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from producers import Producer
    from tests.faults.conftest import Site
    from tests.faults.processes import WorkerProcess
    from tests.faults.scorers import CallLog

    Start = Callable[..., Awaitable[WorkerProcess]]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("published")]

SOURCE = Path(__file__).with_name("full_disk.c")
FEW = 5
ENOUGH = 20
# More than any page has left: each answer and each score needs blocks of its own.
LONG_CHARS = 10_000
STUDENTS, PAUSE_SECONDS = 2, 0.05
# New sessions only: everybody has to connect anew.
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'assessment-scoring'"


class Disk:
    """The disk of a PostgreSQL server, full on command.

    Args:
        flag: The file that says what finds no room; see full_disk.c.
    """

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def fill(self, *, part: str) -> None:
        """Leave no room for a part of the files: ``base`` (tables and indexes) or ``pg_wal``."""
        self._flag.write_text(f"/{part}/")
        self._flag.chmod(0o644)

    def clear(self) -> None:
        """Make room again."""
        self._flag.unlink(missing_ok=True)


@pytest.fixture
def library(site: Site) -> Path:
    """What makes a disk full, compiled, where PostgreSQL can read it whoever runs it."""
    needed("gcc", package="gcc")
    library = site.servers.postgres.folder.parent / "full_disk.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture
async def disk(site: Site, library: Path) -> AsyncIterator[Disk]:
    """The disk of the site's PostgreSQL."""
    server = site.servers.postgres
    flag = library.with_suffix(".flag")
    disk, command = Disk(flag), server.command
    await asyncio.to_thread(server.stop)
    server.command = ["env", f"LD_PRELOAD={library}", f"FULL_DISK_FLAG={flag}", *command]
    try:
        await restart(server)
        await site.engine.dispose()
        yield disk
    finally:
        disk.clear()
        await asyncio.to_thread(server.stop)
        server.command = command
        await restart(server)


async def refused(producer: Producer) -> UUID:
    """Submit while PostgreSQL cannot write; returns the key to repeat it with."""
    key = time_ordered_uuid()
    with pytest.raises(StorageUnavailableError, match="cannot write now; trying again later is safe"):
        await producer.submit(**submission(submission_key=key, answer_text=secrets.token_urlsafe(LONG_CHARS)))
    return key


async def have_answers_in_hand(calls: CallLog) -> None:
    """Wait until the worker has some answers, and keep them with its scorer."""
    calls.hold()
    await eventually(lambda: (calls.began - calls.ended).total() >= FEW)


async def finish_and_keep(worker: WorkerProcess, calls: CallLog) -> None:
    """Finish what is with the scorer, and wait until the worker says that it keeps the scores."""
    calls.let_go()
    await eventually(lambda: calls.began == calls.ended)
    await eventually(lambda: worker.logged("PostgreSQL is away", "scores wait in memory"))


async def test_a_full_disk_costs_nothing(
    site: Site, disk: Disk, start: Start, producer: Producer, calls: CallLog
) -> None:
    """Submits are refused and leave nothing behind, finished scores are kept; with room again all goes on."""
    worker = await start(score_chars=LONG_CHARS)
    text = secrets.token_urlsafe(LONG_CHARS)
    async with submitting(producer, STUDENTS, pause_seconds=PAUSE_SECONDS, answer_text=text) as students:
        await students.stored_again(ENOUGH)
        await have_answers_in_hand(calls)

        disk.fill(part="base")
        key = await refused(producer)
        await finish_and_keep(worker, calls)
        disk.clear()

        row = await producer.submit(**submission(submission_key=key, answer_text=text))
        await students.stored_again(ENOUGH)

    assert students.refusals
    ids = [*students.response_ids, row["response_id"]]
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)
    assert set(calls.began.values()) == {1}
    assert (await site.counters())["attempts"] == 0
    await worker.stopped()


async def test_no_room_for_the_log_costs_nothing(
    site: Site, disk: Disk, start: Start, producer: Producer, calls: CallLog
) -> None:
    """Without room for its write-ahead log PostgreSQL gives up; started again, with room, all goes on."""
    worker = await start()
    async with submitting(producer, STUDENTS, pause_seconds=PAUSE_SECONDS) as students:
        await students.stored_again(ENOUGH)
        await have_answers_in_hand(calls)
        await site.on_disk()

        disk.fill(part="pg_wal")

        async def refuses_all() -> bool:
            """Whether the next segment of the log was needed, and could not be had."""
            try:
                await site.sql("SELECT pg_switch_wal()")
            except (DBAPIError, OSError):
                return bool(students.refusals)
            return False

        await eventually(refuses_all)
        await refused(producer)
        await finish_and_keep(worker, calls)
        disk.clear()
        await asyncio.to_thread(site.servers.postgres.stop)
        await restart(site.servers.postgres)
        await site.engine.dispose()

        await students.stored_again(ENOUGH)

    await site.all_scored(students.response_ids)
    await site.assert_nothing_lost(students.response_ids)
    assert set(calls.began.values()) == {1}
    assert (await site.counters())["attempts"] == 0
    await worker.stopped()


@asynccontextmanager
async def read_only(site: Site, how: str) -> AsyncIterator[None]:
    """Make PostgreSQL read-only while the block lasts: the running server, or all new sessions of the database."""
    subject = "SYSTEM" if how == "server" else "DATABASE postgres"
    async with raw_connection(site.database_url) as connection:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER {subject} SET default_transaction_read_only = on")
        await connection.execute("SELECT pg_reload_conf()" if how == "server" else CUT)
        try:
            yield
        finally:
            await connection.execute(f"ALTER {subject} RESET default_transaction_read_only")
            await connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("how", ["server", "database"])
async def test_a_read_only_postgres_costs_nothing(
    site: Site, start: Start, producer: Producer, calls: CallLog, how: str
) -> None:
    """Submits are refused and leave nothing behind, finished scores are kept; mended, all goes on by itself.

    Also where only sessions are read-only that began meanwhile: they would stay so for ever.
    """
    worker = await start()
    async with submitting(producer, STUDENTS, pause_seconds=PAUSE_SECONDS) as students:
        await students.stored_again(ENOUGH)
        await have_answers_in_hand(calls)
        async with read_only(site, how):
            await students.refused_again()
            key = await refused(producer)
            before = await site.sql("SELECT count(*) FROM assessment_responses")
            await finish_and_keep(worker, calls)
            assert await site.sql("SELECT count(*) FROM assessment_responses") == before

        row = await producer.submit(**submission(submission_key=key))
        await students.stored_again(ENOUGH)

    assert students.refusals
    ids = [*students.response_ids, row["response_id"]]
    await site.all_scored(ids)
    await site.assert_nothing_lost(ids)
    assert set(calls.began.values()) == {1}
    assert (await site.counters())["attempts"] == 0
    await worker.stopped()
