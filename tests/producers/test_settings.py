"""Settings: a wrong one stops the process with a sentence that names it and never shows it."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis, SSLConnection

from producers.bell import connect_redis
from producers.errors import InvalidSettingsError
from producers.sentinel import PrimaryPool, parse_sentinel_url
from producers.settings import ProducerSettings, QueueSettings

CANARY = "canary"
DATABASE_URL = "postgresql://user:canary@localhost/db"
REDIS_URL = "redis://:canary@localhost:6379/0"


def set_all(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Set the variables that a producer needs, with changes."""
    for name, value in ({"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL} | changes).items():
        monkeypatch.setenv(f"SCORING_{name}", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "canary"),
        ("DATABASE_URL", "mysql://user:canary@localhost/db"),
        ("DATABASE_URL", "postgresql:user:canary@localhost/db"),
        ("DATABASE_URL", "postgresql://localhost:canary/db"),
        ("DATABASE_URL", "postgresql://user@localhost:5432canary/db"),
        ("REDIS_URL", "canary"),
        ("REDIS_URL", "http://:canary@localhost"),
        ("REDIS_URL", "redis://:canary/x@localhost:6379/0"),
        ("REDIS_URL", "redis://:canary#x@localhost:6379/0"),
        ("REDIS_URL", "redis://localhost:canary/0"),
        ("REDIS_URL", "redis://[canary/0"),
        ("REDIS_URL", "redis://localhost/0?canary=1"),
        ("REDIS_URL", "redis://localhost/0?socket_timeout=canary"),
        ("REDIS_URL", "redis+sentinel://:canary@"),
        ("REDIS_URL", "redis+sentinel://:canary@host:26379"),
        ("REDIS_URL", "redis+sentinel://:canary@host:26379/"),
        ("REDIS_URL", "redis+sentinel://:canary@host,/service"),
        ("REDIS_URL", "redis+sentinel://:canary@/service"),
        ("REDIS_URL", "redis+sentinel://host:canary/service"),
        ("REDIS_URL", "redis+sentinel://host:123456/service?sentinel_password=canary"),
        ("REDIS_URL", "redis+sentinel://[canary/service"),
        ("REDIS_URL", "redis+sentinel://host/service/canary"),
        ("REDIS_URL", "redis+sentinel://host/service/0/canary"),
        ("REDIS_URL", "redis+sentinel://host/canary!"),
        ("REDIS_URL", "redis+sentinel://:12#canary@host/service"),
        ("REDIS_URL", "redis+sentinel://user:12/canary@host/service"),
        ("REDIS_URL", "redis+sentinel://user:12?canary@host/service"),
        ("REDIS_URL", "redis+sentinel://host/service?canary=1"),
        ("REDIS_URL", "redis+sentinel://host/service?ssl_ca_certs=canary"),
        ("REDIS_URL", "sentinel://host/service?sentinel_password=canary"),
        ("MAX_ANSWER_CHARS", "canary"),
        ("MAX_ANSWER_CHARS", "0"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DATABASE_TIMEOUT_SECONDS", "canary"),
        ("REDIS_TIMEOUT_SECONDS", "-1"),
        ("PGBOUNCER", "canary"),
    ],
)
def test_a_wrong_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message names the variable; neither it nor its traceback shows what was in it."""
    set_all(monkeypatch, **{name: value})

    with pytest.raises(InvalidSettingsError) as refused:
        ProducerSettings.from_environment()

    shown = "".join(traceback.format_exception(refused.value))
    assert str(refused.value).startswith(f"SCORING_{name} is wrong: ")
    assert CANARY not in shown


@pytest.mark.parametrize(
    ("url", "hosts", "options", "sentinel_options"),
    [
        ("redis+sentinel://one/main", (("one", 26379),), {"db": 0}, {}),
        (
            "redis+sentinel://one:1,two,[::1]:3/main/7",
            (("one", 1), ("two", 26379), ("::1", 3)),
            {"db": 7},
            {},
        ),
        (
            "REDIS+SENTINEL://me:canary%2F@one/main/?socket_read_size=9&max_connections=3",
            (("one", 26379),),
            {"db": 0, "username": "me", "password": "canary/", "socket_read_size": "9", "max_connections": 3},
            {},
        ),
        (
            "redis+sentinel://:canary@one/main?sentinel_username=you&sentinel_password=s%2B1",
            (("one", 26379),),
            {"db": 0, "password": "canary"},
            {"username": "you", "password": "s+1"},
        ),
        (
            "rediss+sentinel://one/main?ssl_ca_certs=/ca.pem",
            (("one", 26379),),
            {"db": 0, "ssl": True, "ssl_ca_certs": "/ca.pem"},
            {"ssl": True, "ssl_ca_certs": "/ca.pem"},
        ),
    ],
)
def test_what_a_sentinel_url_says(
    url: str,
    hosts: tuple[tuple[str, int], ...],
    options: dict[str, object],
    sentinel_options: dict[str, object],
) -> None:
    """Hosts with their ports, the service, and who logs in where; nothing of it that is secret is printed."""
    address = parse_sentinel_url(url)

    assert (address.hosts, address.service) == (hosts, "main")
    assert (address.options, address.sentinel_options) == (options, sentinel_options)
    client = connect_redis(url, timeout_seconds=6)
    assert CANARY not in f"{address!r} {address} {client!r}"
    assert connection_options(client).items() >= options.items() - {("max_connections", 3)}


async def test_every_connection_behind_sentinel_has_its_time_out() -> None:
    """Those to Redis wait as long as is set, and those to all sentinels together do, too."""
    settings = QueueSettings(
        redis_url=SecretStr("redis+sentinel://a,b,c/main?sentinel_password=x"), redis_timeout_seconds=6
    )
    client = settings.redis()

    pool = client.connection_pool
    assert isinstance(pool, PrimaryPool)
    sentinels = pool.sentinel_manager.sentinels
    assert [options["socket_timeout"] for options in map(connection_options, sentinels)] == [2, 2, 2]
    assert [options["socket_connect_timeout"] for options in map(connection_options, sentinels)] == [2, 2, 2]
    options = connection_options(client)
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (6, 6)
    assert options["client_name"] == "assessment-scoring"


def connection_options(client: Redis) -> dict[str, object]:
    """With what a client connects; TLS as the kind of its connections."""
    pool = client.connection_pool
    uses_tls = issubclass(pool.connection_class, SSLConnection)
    return pool.connection_kwargs | ({"ssl": True} if uses_tls else {})


def test_settings_made_in_code_show_no_value() -> None:
    """The same holds for a wrong URL that is passed in code."""
    with pytest.raises(ValidationError) as refused:
        ProducerSettings(database_url=SecretStr("canary"), redis_url=SecretStr("canary"))

    assert CANARY not in str(refused.value)
    assert CANARY not in repr(refused.value)


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing the settings shows no secret."""
    set_all(monkeypatch)

    settings = ProducerSettings.from_environment()

    assert CANARY not in f"{settings!r} {settings!s}"
    assert CANARY in settings.database_url.get_secret_value()
    assert CANARY not in repr(settings.engine())


def test_every_wrong_variable_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """All faults are told at once."""
    set_all(monkeypatch, REDIS_URL="x", DATABASE_POOL_SIZE="x", MAX_ANSWER_CHARS="x")

    with pytest.raises(InvalidSettingsError) as refused:
        ProducerSettings.from_environment()

    assert len(str(refused.value).splitlines()) == 3


def test_other_variables_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's variables in a shared environment do not disturb a producer."""
    set_all(monkeypatch, SLOTS="12", WHATEVER="x")

    assert ProducerSettings.from_environment().max_answer_chars == 20_000
