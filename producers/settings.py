"""Settings of a producer, read from ``SCORING_…`` variables of the environment or given in code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.exceptions import RedisError

from producers.bell import connect_redis
from producers.errors import InvalidSettingsError
from storage.engine import create_engine, parse_database_url
from storage.limits import DEFAULT_MAX_ANSWER_CHARS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

ENV_PREFIX = "SCORING_"


def _postgres_url(url: SecretStr) -> SecretStr:
    parse_database_url(url.get_secret_value())
    return url


def _redis_url(url: SecretStr) -> SecretStr:
    try:
        client = connect_redis(url.get_secret_value(), timeout_seconds=1)
        # Nothing is sent; but redis-py looks at the options of a URL no earlier than here.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError):
        msg = (
            "expected redis://:PASSWORD@HOST:PORT/NUMBER (or rediss://, unix://), "
            "or redis+sentinel://:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/NUMBER (or rediss+sentinel://)"
        )
        raise ValueError(msg) from None
    return url


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,  # Compose passes a variable that is mentioned and not set as an empty one
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings from the environment.

        Returns:
            Valid settings.

        Raises:
            InvalidSettingsError: A variable is missing or wrong; the message names it and says what was expected.
        """
        try:
            return cls()
        except ValidationError as exc:
            raise InvalidSettingsError(explain(exc)) from None  # the cause would show the value

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Variables of the environment that look like settings of this class and are none."""
        known = {f"{ENV_PREFIX}{name}".upper() for name in cls.model_fields}
        return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)


class DatabaseSettings(_Settings):
    """How to reach PostgreSQL."""

    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = Field(
        description="PostgreSQL, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, where needed with ?sslmode=require"
    )
    database_pool_size: int = Field(
        default=5, ge=1, le=100, description="PostgreSQL connections that one process keeps"
    )
    database_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="longest wait for a connection or for one statement, seconds"
    )
    pgbouncer: bool = Field(
        default=False, description="true behind PgBouncer in transaction mode: prepare no named statements"
    )

    def engine(self) -> AsyncEngine:
        """Make an engine from these settings; its owner disposes of it."""
        return create_engine(
            self.database_url.get_secret_value(),
            pool_size=self.database_pool_size,
            timeout_seconds=self.database_timeout_seconds,
            pgbouncer=self.pgbouncer,
        )


class QueueSettings(_Settings):
    """How to reach Redis."""

    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        description="Redis, as redis://:PASSWORD@HOST:PORT/NUMBER, or behind Sentinel as "
        "redis+sentinel://:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/NUMBER"
    )
    redis_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="longest wait for Redis to connect or to answer, seconds"
    )

    def redis(self) -> Redis:
        """Make a client with time-outs from these settings; its owner closes it."""
        return connect_redis(self.redis_url.get_secret_value(), timeout_seconds=self.redis_timeout_seconds)


class ProducerSettings(DatabaseSettings, QueueSettings):
    """What a web process needs to hand answers over."""

    max_answer_chars: int = Field(
        default=DEFAULT_MAX_ANSWER_CHARS,
        ge=1,
        le=1_000_000,
        description="longest answer that is accepted, characters",
    )


# What pydantic's kinds of error mean, in the words of the other refusals.
_EXPECTATIONS = {
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected at least {ge:g}",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected at most {le:g}",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "literal_error": "expected {expected}",
}


def explain(exc: ValidationError) -> str:
    """Say in one line a variable what is wrong with the settings, without repeating any value."""
    lines = []
    for error in exc.errors(include_url=False, include_input=False):
        variable = ENV_PREFIX + "_".join(str(part) for part in error["loc"][:1]).upper()
        if not error["loc"]:
            lines.append(error["msg"].removeprefix("Value error, "))
        elif error["type"] == "missing":
            lines.append(f"{variable} is not set.")
        else:
            lines.append(f"{variable} is wrong: {_expectation(error)}.")
    return "\n".join(lines)


def _expectation(error: ErrorDetails) -> str:
    known = _EXPECTATIONS.get(error["type"])
    return known.format(**error.get("ctx", {})) if known else error["msg"].removeprefix("Value error, ")
