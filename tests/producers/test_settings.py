"""Settings: a wrong one stops the process with a sentence that names it and never shows it."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr, ValidationError

from producers.errors import InvalidSettingsError
from producers.settings import ProducerSettings

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
