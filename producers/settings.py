"""Settings of a producer, read from ``SCORING_…`` variables of the environment or given in code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio.connection import parse_url
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from producers.errors import InvalidSettingsError
from storage.engine import create_engine
from storage.limits import DEFAULT_MAX_ANSWER_CHARS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

ENV_PREFIX = "SCORING_"


def _postgres_url(url: SecretStr) -> SecretStr:
    try:
        parsed = make_url(url.get_secret_value())
    except (ArgumentError, ValueError):  # the latter for a port that is no number, and it quotes it
        parsed = None
    if parsed is None or parsed.get_backend_name() != "postgresql":
        msg = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise ValueError(msg)
    return SecretStr(parsed.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False))


def _redis_url(url: SecretStr) -> SecretStr:
    try:
        parse_url(url.get_secret_value())
    except ValueError:
        msg = "expected redis://:PASSWORD@HOST:PORT/NUMBER (or rediss://, unix://)"
        raise ValueError(msg) from None
    return url


class DatabaseSettings(BaseSettings):
    """How to reach PostgreSQL."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,  # Compose passes a variable that is mentioned and not set as an empty one
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = Field(
        description="PostgreSQL, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
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

    def engine(self) -> AsyncEngine:
        """Make an engine from these settings; its owner disposes of it."""
        return create_engine(
            self.database_url.get_secret_value(),
            pool_size=self.database_pool_size,
            timeout_seconds=self.database_timeout_seconds,
            pgbouncer=self.pgbouncer,
        )


class ProducerSettings(DatabaseSettings):
    """What a web process needs to hand answers over."""

    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        description="Redis, as redis://:PASSWORD@HOST:PORT/NUMBER"
    )
    redis_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="longest wait for Redis to connect or to answer, seconds"
    )
    max_answer_chars: int = Field(
        default=DEFAULT_MAX_ANSWER_CHARS,
        ge=1,
        le=1_000_000,
        description="longest answer that is accepted, characters",
    )


def explain(exc: ValidationError) -> str:
    """Say in one line a variable what is wrong with the settings, without repeating any value."""
    lines = []
    for error in exc.errors(include_url=False, include_input=False, include_context=False):
        variable = ENV_PREFIX + "_".join(str(part) for part in error["loc"][:1]).upper()
        if not error["loc"]:
            lines.append(error["msg"].removeprefix("Value error, "))
        elif error["type"] == "missing":
            lines.append(f"{variable} is not set.")
        else:
            lines.append(f"{variable} is wrong: {error['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)
