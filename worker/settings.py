"""Settings of a worker process and of the ``scoring`` command."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from producers.settings import DatabaseSettings, ProducerSettings
from storage.engine import parse_database_url

# Shorter ones can be guessed.
MIN_CONSOLE_TOKEN_CHARS = 16


def _postgres_url(url: SecretStr) -> SecretStr:
    parse_database_url(url.get_secret_value())
    return url


def _long_enough(token: SecretStr) -> SecretStr:
    if len(token.get_secret_value()) < MIN_CONSOLE_TOKEN_CHARS:
        msg = (
            f"expected at least {MIN_CONSOLE_TOKEN_CHARS} characters, for example from: openssl rand -hex 24"
        )
        raise ValueError(msg)
    return token


class VerifySettings(DatabaseSettings):
    """What ``scoring verify`` needs to know: what is overdue depends on these."""

    lease_seconds: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="how long an answer stays with a worker that stopped renewing, seconds",
    )
    sweep_seconds: float = Field(default=1.5, ge=0.01, le=60, description="pause between two sweeps, seconds")


class ScoringSettings(VerifySettings, ProducerSettings):
    """Everything that ops can set, each as ``SCORING_…`` in the environment."""

    slots: int = Field(
        default=100, ge=1, le=10_000, description="answers that one process scores at the same time"
    )
    renew_seconds: float | None = Field(
        default=None,
        ge=0.01,
        description="pause between two renewals of the leases, seconds; unset: a third of SCORING_LEASE_SECONDS",
    )
    answer_seconds: float = Field(
        default=120.0,
        ge=1,
        le=3600,
        description="longest time for scoring one answer, repair included, seconds",
    )
    grace_seconds: float = Field(
        default=25.0,
        ge=0,
        le=3600,
        description="time to finish answers after SIGTERM before they are handed back, seconds",
    )
    max_attempts: int = Field(
        default=5, ge=1, le=100, description="failed attempts after which an answer is dead"
    )
    poll_seconds: float = Field(
        default=0.5,
        ge=0.01,
        le=10,
        description="pause between two looks at the queue when nobody wakes us, seconds",
    )

    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="the provider's limit on requests, for all workers together; unset: none",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="the provider's limit on tokens, input and output, for all workers together; unset: none",
    )

    scorer: str = Field(default="llm", description="llm, lexical, or package.module:factory for your own")
    llm_provider: Literal["openai", "anthropic"] = Field(
        default="openai",
        description="protocol of the model server: openai (also vLLM, Ollama, …) or anthropic",
    )
    llm_model: str = Field(default="", description="name of the model, as its server calls it")
    llm_api_key: SecretStr | None = Field(default=None, description="key for the model server")
    llm_base_url: str | None = Field(
        default=None, description="URL of the model server, where it is not the provider's"
    )
    llm_timeout_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="longest wait for one reply, seconds"
    )
    llm_max_output_tokens: int = Field(default=1024, ge=64, le=100_000, description="longest reply, tokens")
    llm_temperature: float | None = Field(
        default=None, ge=0, le=2, description="sampling temperature; unset: the model's own default"
    )

    log_format: Literal["console", "json"] = Field(default="console", description="console or json")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least level that is logged"
    )

    http_host: str = Field(
        default="127.0.0.1",
        description="address of the worker's own HTTP port, with probes, metrics and the console; 0.0.0.0: reachable from "
        "other machines",
    )
    http_port: int = Field(
        default=8422,
        ge=0,
        le=65_535,
        description="the worker's own HTTP port; 0: none; one that is taken is warned of, and the worker goes on",
    )
    http_required: bool = Field(
        default=False, description="true: a worker whose HTTP port is taken does not start"
    )
    http_allowed_hosts: str = Field(
        default="",
        description="names under which the HTTP port may be asked, separated by commas, besides localhost and every address",
    )
    console_token: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None,
        description="what an operator must know to act on the console, at least 16 characters, and to see it where "
        "SCORING_HTTP_HOST is no loopback address; unset: nobody acts",
    )
    console_database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] | None = Field(
        default=None,
        description="PostgreSQL login for acting on the console, a member of scoring_ops; unset: the worker's own, "
        "which may not where scoring grant is used",
    )

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The names of SCORING_HTTP_ALLOWED_HOSTS, in small letters."""
        names = (name.strip().lower().rstrip(".") for name in self.http_allowed_hosts.split(","))
        return frozenset(filter(None, names))

    @property
    def renewal_seconds(self) -> float:
        """Pause between two renewals: as set, or so that two may be lost and the lease is kept."""
        return self.lease_seconds / 3 if self.renew_seconds is None else self.renew_seconds

    @property
    def provider(self) -> str | None:
        """What workers that share a provider have in common, and nothing secret; None where none is asked."""
        match self.scorer:
            case "lexical":
                return None
            case "llm":
                host = urlsplit(self.llm_base_url or "").netloc.rpartition("@")[2] or self.llm_provider
                return f"{host}/{self.llm_model}"
            case path:
                return path

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.renew_seconds is not None and self.renew_seconds > self.lease_seconds / 2:
            msg = "SCORING_RENEW_SECONDS is wrong: expected at most half of SCORING_LEASE_SECONDS, so that one lost renewal loses no lease."
            raise ValueError(msg)
        if self.scorer not in {"llm", "lexical"} and ":" not in self.scorer:
            msg = "SCORING_SCORER is wrong: expected llm, lexical or package.module:factory."
            raise ValueError(msg)
        return self
