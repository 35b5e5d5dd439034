from __future__ import annotations

import asyncio
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, ProgrammingError

from demo.servers import free_port
from storage import (
    InvalidInputError,
    NotMigratedError,
    StorageError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
    create_engine,
    get_responses,
)
from storage.errors import AccessDeniedError, StorageBusyError, StorageMisconfiguredError
from storage.translation import translate, translated
from tests.factories import publish, submit
from tests.races import PATIENCE_SECONDS, blocked, committed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def perform(conn: AsyncConnection, statement: str) -> None:
    with translated():
        await conn.execute(text(statement))


async def connect(engine: AsyncEngine) -> None:
    with translated():
        async with engine.connect():
            pass


async def raised_by(conn: AsyncConnection, statement: str) -> StorageError:
    """What storage says when PostgreSQL refuses a statement."""
    with pytest.raises(StorageError) as caught:
        async with conn.begin_nested():
            await perform(conn, statement)
    assert isinstance(caught.value.__cause__, DBAPIError)
    return caught.value


async def refusal(url: str, **changes: Any) -> StorageError:
    """What storage says when one cannot connect."""
    engine = create_engine(make_url(url).set(**changes).render_as_string(hide_password=False))
    try:
        with pytest.raises(StorageError) as caught:
            await connect(engine)
        return caught.value
    finally:
        await engine.dispose()


def state_error(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'answer text' USING ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08006", StorageUnavailableError),
        ("25006", StorageUnavailableError),
        ("40001", StorageUnavailableError),
        ("40P01", StorageUnavailableError),
        ("53100", StorageUnavailableError),
        ("53300", StorageUnavailableError),
        ("55P03", StorageBusyError),
        ("57014", StorageUnavailableError),
        ("57P01", StorageUnavailableError),
        ("57P03", StorageUnavailableError),
        ("58030", StorageUnavailableError),
        ("XX000", StorageUnavailableError),
        ("42P01", NotMigratedError),
        ("42703", NotMigratedError),
        ("3F000", NotMigratedError),
        ("28P01", StorageMisconfiguredError),
        ("28000", StorageMisconfiguredError),
        ("3D000", StorageMisconfiguredError),
        ("42501", AccessDeniedError),
        ("22003", InvalidInputError),
        ("22021", InvalidInputError),
        ("22P05", InvalidInputError),
    ],
)
async def test_every_condition_has_an_error_of_ours(
    conn: AsyncConnection, state: str, expected: type[StorageError]
) -> None:
    """A caller tells by the type whether to try again, to mend its configuration, or to refuse the input."""
    error = await raised_by(conn, state_error(state))

    assert type(error) is expected
    assert "answer text" not in str(error)


async def test_a_missing_partition_is_nothing_that_the_student_did(conn: AsyncConnection) -> None:
    """PostgreSQL reports it as a broken check without a name; it is the operator's, and the answer may come again."""
    await conn.execute(text("CREATE TEMPORARY TABLE years (n integer) PARTITION BY RANGE (n)"))

    with pytest.raises(StorageUnavailableError, match="partition"), translated():
        await conn.execute(text("INSERT INTO years VALUES (1)"))


@pytest.mark.parametrize("state", ["42601", "23502", "23503", "23505", "P0001"])
async def test_a_bug_stays_what_it_is(conn: AsyncConnection, state: str) -> None:
    """What no condition explains is not dressed up as one."""
    with pytest.raises(DBAPIError), translated():
        await conn.execute(text(state_error(state)))


@pytest.mark.parametrize(
    ("state", "constraint", "expected"),
    [
        ("23503", "fk_assessment_responses_user", UnknownUserError),
        ("23503", "fk_assessment_claims_user", UnknownUserError),
        ("23505", "uq_assessment_responses_submission_key", SubmissionKeyConflictError),
        ("23514", "ck_assessment_responses_answer", InvalidInputError),
    ],
)
async def test_some_constraints_speak_for_themselves(
    conn: AsyncConnection, state: str, constraint: str, expected: type[StorageError]
) -> None:
    """The constraint's name says what the caller got wrong."""
    statement = (
        f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}', CONSTRAINT = '{constraint}'; END $$"
    )

    assert type(await raised_by(conn, statement)) is expected


@pytest.mark.parametrize("exc", [TypeError("a bug"), ValueError("a bug"), KeyError("a bug")])
async def test_an_error_in_our_code_is_no_condition(exc: Exception) -> None:
    """Only what driver, pool and network raise is translated."""
    assert translate(exc) is None
    with pytest.raises(type(exc)), translated():
        raise exc


async def test_an_error_of_ours_passes_unchanged() -> None:
    """Translating twice is translating once."""
    error = UnknownUserError()

    assert translate(error) is error
    with pytest.raises(UnknownUserError) as caught, translated():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("exc", [ConnectionRefusedError(), TimeoutError(), OSError("no route")])
async def test_a_network_that_fails_is_worth_another_try(exc: OSError) -> None:
    """Whatever the operating system says, nothing was half-written."""
    with pytest.raises(StorageUnavailableError, match="trying again later is safe") as caught, translated():
        raise exc
    assert caught.value.__cause__ is exc


async def test_an_unmigrated_database_says_what_to_do(
    make_database: Callable[[], Awaitable[str]],
) -> None:
    """The message names the command."""
    engine = create_engine(await make_database())
    try:
        for work in (submit, publish, partial(get_responses, user_id=1)):
            with pytest.raises(NotMigratedError, match="run `scoring migrate`"):
                await committed(engine, work)
    finally:
        await engine.dispose()


async def test_a_wrong_database_or_user(database_url: str) -> None:
    """Trying again would not help: the message names the variable."""
    for changes in ({"database": "no_such_database"}, {"username": "no_such_user", "password": "wrong"}):
        error = await refusal(database_url, **changes)
        assert type(error) is StorageMisconfiguredError
        assert "SCORING_DATABASE_URL" in str(error)


async def test_nobody_listens(database_url: str) -> None:
    """A server that is down is worth another try."""
    error = await refusal(database_url, host="127.0.0.1", port=free_port())

    assert type(error) is StorageUnavailableError


async def test_a_server_that_never_answers(database_url: str) -> None:
    """Connecting has a time-out: whoever hangs is as good as down."""
    waiting = asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await waiting.wait()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = make_url(database_url).set(host="127.0.0.1", port=silent.sockets[0].getsockname()[1])
    engine = create_engine(url.render_as_string(hide_password=False), timeout_seconds=0.1)
    try:
        with pytest.raises(StorageUnavailableError):
            await connect(engine)
    finally:
        waiting.set()
        silent.close()
        await silent.wait_closed()
        await engine.dispose()


async def test_a_statement_that_takes_too_long(database_url: str) -> None:
    """Statements have a time-out, and the connection is not used again."""
    engine = create_engine(database_url, pool_size=1, timeout_seconds=0.2)
    try:
        with pytest.raises(StorageUnavailableError):
            await committed(engine, partial(perform, statement="SELECT pg_sleep(30)"))
        async with engine.connect() as conn:
            assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await engine.dispose()


async def test_a_pool_that_is_used_up(database_url: str) -> None:
    """Waiting for a connection has a time-out, and its error says what was short."""
    engine = create_engine(database_url, pool_size=1, timeout_seconds=0.1)
    try:
        async with engine.connect():
            with pytest.raises(StorageUnavailableError, match="No PostgreSQL connection became free"):
                await connect(engine)
    finally:
        await engine.dispose()


async def test_a_session_that_was_ended(engine: AsyncEngine) -> None:
    """A submit on a connection that the server has closed fails with a clear error."""
    async with engine.connect() as conn, engine.connect() as admin:
        pid = (await conn.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await admin.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(StorageUnavailableError):
            await submit(conn)
        await conn.invalidate()


@pytest.mark.commits
async def test_a_deadlock_is_worth_another_try(engine: AsyncEngine) -> None:
    """PostgreSQL sacrifices one of the two; its caller may simply repeat the transaction."""
    lock = text("SELECT pg_advisory_xact_lock(:key)")

    async def first_then_second(conn: AsyncConnection) -> None:
        await conn.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
        await conn.execute(lock, {"key": 1})
        with translated():
            await conn.execute(lock, {"key": 2})

    async with engine.connect() as conn:
        await conn.execute(text("SET LOCAL deadlock_timeout = '1h'"))
        await conn.execute(lock, {"key": 2})
        async with blocked(engine, first_then_second) as other, asyncio.timeout(PATIENCE_SECONDS):
            await conn.execute(lock, {"key": 1})
            await conn.rollback()
        with pytest.raises(StorageUnavailableError):
            await other


async def test_errors_explain_themselves() -> None:
    """An error without a message of its own says what its docstring says, in one line."""
    assert str(StorageUnavailableError()) == StorageUnavailableError.__doc__
    assert "nothing was stored" in str(InvalidInputError("field", "rule"))
    assert str(StorageError("said")) == "said"


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("field", "rule"),
        UnknownUserError(),
        SubmissionKeyConflictError(),
        NotMigratedError(),
    ],
)
async def test_errors_survive_a_process_boundary(error: StorageError) -> None:
    """They can be pickled, as multiprocessing and some test runners do."""
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)


async def test_an_error_never_quotes_what_was_sent(conn: AsyncConnection) -> None:
    """Tracebacks get logged: they show the statement, but no parameter."""
    with pytest.raises(ProgrammingError) as caught:
        await conn.execute(
            text("SELECT nonsense FROM nowhere WHERE answer = :answer"), {"answer": "my secret"}
        )

    assert "secret" not in str(caught.value)
