"""The producer: durable first, announced afterwards, by whatever means the web app has."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url

from demo.servers import free_port
from producers import InvalidSettingsError, Producer, ProducerClosedError, ProducerSettings, open_producer
from producers.contract import QUEUE_NAME, message_key
from storage import submit_response
from storage.errors import (
    InvalidInputError,
    NotMigratedError,
    StorageUnavailableError,
    UnknownUserError,
)
from tests.factories import count, handoff_of, submission, token
from tests.producers.waiting import eventually, settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy

pytestmark = pytest.mark.commits

CANARY = "canary-answer-f00d"


async def messages(redis: Redis) -> list[bytes]:
    """Every message in the queue, oldest first."""
    members = await redis.zrange(QUEUE_NAME, 0, -1)
    return [await redis.get(message_key(member.decode())) for member in members]


async def everything_in(redis: Redis) -> bytes:
    """Keys and values of the whole database."""
    found = b""
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        found += key + (
            b"".join(await redis.zrange(key, 0, -1)) if kind == b"zset" else await redis.get(key) or b""
        )
    return found


async def test_an_answer_is_stored_and_announced(
    producer: Producer, redis: Redis, engine: AsyncEngine, published: str
) -> None:
    """A submit returns the stored row, its handoff is due, and its id is on its way to the workers."""
    row = await producer.submit(**submission())

    [message] = await eventually(lambda: messages(redis))
    assert b'{"response_ids":[%d]}' % row["response_id"] in message
    async with engine.connect() as conn:
        handoff = await handoff_of(conn, row["response_id"])
    assert handoff is not None
    assert (handoff["state"], handoff["question_digest"]) == ("open", published)


async def test_redis_holds_no_answer(producer: Producer, redis: Redis) -> None:
    """Neither answers nor tokens nor metadata are in Redis, and nothing there is a pickle."""
    secret = token()
    await producer.submit(
        **submission(anonymous_token=secret, answer_text=CANARY, answer_metadata={"note": CANARY})
    )
    await producer.claim(anonymous_token=secret, user_id=1)

    await eventually(lambda: messages(redis))
    await producer.close()

    found = await everything_in(redis)
    assert b"response_ids" in found
    assert b"claim_ids" in found
    assert CANARY.encode() not in found
    assert secret.encode() not in found
    assert b"\x80\x04" not in found


async def test_every_submit_is_a_new_attempt_unless_its_key_repeats(producer: Producer) -> None:
    """Two equal submits are two rows; two with one key are one."""
    key = uuid4()

    rows = [
        await producer.submit(**submission(submission_key=given)) for given in (None, None, key, str(key))
    ]

    assert len({row["response_id"] for row in rows}) == 3
    assert rows[2] == rows[3]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"user_id": 1, "anonymous_token": "t"}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"answer_text": " \n"}, "answer_text"),
        ({"answer_text": "a\x00b"}, "answer_text"),
        ({"answer_text": "x" * 20_001}, "answer_text"),
        ({"answer_metadata": {"x": float("nan")}}, "answer_metadata"),
        ({"submission_key": "no uuid"}, "submission_key"),
    ],
)
async def test_bad_input_is_refused_and_nothing_stored(
    producer: Producer, engine: AsyncEngine, statements: list[str], changes: dict[str, Any], field: str
) -> None:
    """A refusal names the field and costs no statement."""
    with pytest.raises(InvalidInputError) as refused:
        await producer.submit(**submission(**changes))

    assert field in refused.value.field
    assert not statements


async def test_the_limit_of_answers_is_the_settings(own_engine: AsyncEngine, redis: Redis) -> None:
    """``max_chars`` counts, in place of the environment."""
    producer = Producer(own_engine, redis, max_chars=5)

    with pytest.raises(InvalidInputError):
        await producer.submit(**submission(answer_text="123456"))
    await producer.submit(**submission(answer_text="12345"))

    await producer.close()


async def test_an_unknown_user_is_refused(producer: Producer) -> None:
    """The caller gets the error of his own submit."""
    with pytest.raises(UnknownUserError):
        await producer.submit(**submission(user_id=999_999))


async def test_with_redis_away_answers_and_claims_are_stored(
    own_engine: AsyncEngine, dead_redis: Redis, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis down: every submit and claim succeeds, and one warning is logged for all of them."""
    caplog.set_level(logging.INFO)
    producer = Producer(own_engine, dead_redis)

    for _ in range(3):
        await producer.submit(**submission())
        await eventually(lambda: caplog.records)
    claim_id = await producer.claim(anonymous_token=token(), user_id=1)
    await producer.close()

    assert claim_id
    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 3
        assert await count(conn, "assessment_claims") == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_with_redis_hanging_nobody_waits(
    own_engine: AsyncEngine, fragile_redis: Redis, redis_proxy: Proxy
) -> None:
    """A Redis that accepts connections and never answers delays no submit."""
    redis_proxy.silent = True
    producer = Producer(own_engine, fragile_redis)

    await producer.submit(**submission())
    await eventually(lambda: redis_proxy.seen)
    row = await producer.submit(**submission())

    assert producer._announcer._task is not None
    assert not producer._announcer._task.done()
    assert row["response_id"]
    redis_proxy.break_down()
    await producer.close()


async def test_announcements_go_on_when_redis_is_back(
    own_engine: AsyncEngine,
    fragile_redis: Redis,
    redis_proxy: Proxy,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After an outage new answers are announced again by the same producer, and one line says so."""
    caplog.set_level(logging.INFO)
    producer = Producer(own_engine, fragile_redis)
    redis_proxy.break_down()
    await producer.submit(**submission())
    await eventually(lambda: caplog.records)

    redis_proxy.refuses = False
    row = await producer.submit(**submission())
    await eventually(lambda: messages(redis))
    await producer.close()

    assert b"%d" % row["response_id"] in (await messages(redis))[-1]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_announce_after_a_transaction_of_the_web_app(
    producer: Producer, engine: AsyncEngine, redis: Redis
) -> None:
    """A web app that stores in its own transaction announces afterwards, and the same message comes."""
    async with engine.begin() as conn:
        row = await submit_response(conn, **submission())

    producer.announce([row["response_id"]])

    [message] = await eventually(lambda: messages(redis))
    assert b'{"response_ids":[%d]}' % row["response_id"] in message


async def test_a_claim_is_durable_and_announced(
    producer: Producer, engine: AsyncEngine, redis: Redis
) -> None:
    """A claim returns when its request is stored; a worker is told to apply it."""
    claim_id = await producer.claim(anonymous_token=token(), user_id=3)

    [message] = await eventually(lambda: messages(redis))
    assert b'{"claim_ids":[%d]}' % claim_id in message
    async with engine.connect() as conn:
        row = (await conn.execute(text("SELECT user_id, applied_at FROM assessment_claims"))).one()
    assert tuple(row) == (3, None)


async def test_a_claim_for_an_unknown_user_is_refused(producer: Producer, engine: AsyncEngine) -> None:
    """Nothing is stored for a user that is not there."""
    with pytest.raises(UnknownUserError):
        await producer.claim(anonymous_token=token(), user_id=999_999)

    async with engine.connect() as conn:
        assert await count(conn, "assessment_claims") == 0


async def test_a_closed_producer_refuses(producer: Producer, engine: AsyncEngine, redis: Redis) -> None:
    """After closing, nothing is stored; announcing is silently left to the sweep."""
    await producer.close()

    with pytest.raises(ProducerClosedError):
        await producer.submit(**submission())
    with pytest.raises(ProducerClosedError):
        await producer.claim(anonymous_token=token(), user_id=1)
    producer.announce([1])
    await settled()

    assert await messages(redis) == []
    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 0


async def test_closing_commits_and_announces(own_engine: AsyncEngine, redis: Redis) -> None:
    """Leaving ``open_producer`` means: what was submitted is stored, and its ids are in Redis."""
    async with open_producer(engine=own_engine, redis=redis) as producer:
        submitting = [asyncio.create_task(producer.submit(**submission())) for _ in range(5)]
        await settled()

    rows = await asyncio.gather(*submitting)
    written = b"".join(await messages(redis))
    assert all(b"%d" % row["response_id"] in written for row in rows)


async def test_what_the_web_app_owns_stays_open(own_engine: AsyncEngine, redis: Redis) -> None:
    """Engine and client that were given are usable after the producer is closed."""
    async with open_producer(engine=own_engine, redis=redis) as producer:
        await producer.submit(**submission())

    async with own_engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 1
    assert await redis.ping()


async def test_opened_from_the_environment(
    database_url: str, redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two variables are all that a web process needs; the limit of answers is read there too."""
    monkeypatch.setenv("SCORING_DATABASE_URL", database_url)
    monkeypatch.setenv("SCORING_REDIS_URL", redis_url)
    monkeypatch.setenv("SCORING_MAX_ANSWER_CHARS", "10")

    async with open_producer() as producer:
        await producer.submit(**submission(answer_text="short"))
        with pytest.raises(InvalidInputError):
            await producer.submit(**submission(answer_text="longer than ten"))

    assert len(await messages(redis)) == 1


async def test_opened_with_settings_and_an_engine(
    own_engine: AsyncEngine, database_url: str, redis_url: str, redis: Redis
) -> None:
    """One of the two may be given, the other is made from the settings and closed at the end."""
    settings = ProducerSettings(database_url=SecretStr(database_url), redis_url=SecretStr(redis_url))

    async with open_producer(settings, engine=own_engine) as producer:
        await producer.submit(**submission())

    async with own_engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 1
    assert len(await messages(redis)) == 1


async def test_missing_variables_are_named() -> None:
    """Without variables nothing is opened; the message names both."""
    with pytest.raises(InvalidSettingsError, match="SCORING_DATABASE_URL is not set") as refused:
        async with open_producer():
            pass

    assert "SCORING_REDIS_URL is not set" in str(refused.value)


async def test_a_wrong_port_is_unavailable(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL where nobody listens: the submit fails with the error that says so."""
    monkeypatch.setattr("producers.batching.RETRY_PAUSES_SECONDS", (0.0,))
    settings = ProducerSettings(
        database_url=SecretStr(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
    )

    async with open_producer(settings, redis=redis) as producer:
        with pytest.raises(StorageUnavailableError):
            await producer.submit(**submission())
        with pytest.raises(StorageUnavailableError):
            await producer.claim(anonymous_token=token(), user_id=1)


async def test_an_unmigrated_database_says_what_to_do(
    make_database: Callable[[], Awaitable[str]], redis: Redis
) -> None:
    """Tables are missing: the message names the command."""
    settings = ProducerSettings(
        database_url=SecretStr(await make_database()), redis_url=SecretStr("redis://127.0.0.1:1/0")
    )

    async with open_producer(settings, redis=redis) as producer:
        with pytest.raises(NotMigratedError, match="scoring migrate"):
            await producer.submit(**submission())
        with pytest.raises(NotMigratedError, match="scoring migrate"):
            await producer.claim(anonymous_token=token(), user_id=1)


async def test_statements_never_show_an_answer(
    own_engine: AsyncEngine, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the error of a refused submit, nor its causes, nor the log quote the answer."""
    caplog.set_level(logging.DEBUG)
    producer = Producer(own_engine, redis)

    with pytest.raises(UnknownUserError) as refused:
        await producer.submit(**submission(user_id=999_999, answer_text=CANARY))
    await producer.close()

    error: BaseException | None = refused.value
    while error is not None:
        assert CANARY not in str(error)
        assert CANARY not in repr(error)
        error = error.__cause__
    ours = [
        record for record in caplog.records if record.name.startswith(("producers", "storage", "sqlalchemy"))
    ]
    assert all(CANARY not in record.getMessage() for record in ours)


async def test_urls_keep_their_options(database_url: str) -> None:
    """A URL may name another driver; ours is used."""
    settings = ProducerSettings(
        database_url=SecretStr(
            make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(False)
        ),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
    )
    engine = settings.engine()
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()
