"""One line when trouble begins, one when it ends, as grave as what a person must do about it."""

from __future__ import annotations

import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from storage.errors import NotMigratedError, StorageUnavailableError
from worker.outage import Outage

CANARY = "redis://:secret@host"


@pytest.mark.parametrize(
    ("trouble", "level", "word"),
    [
        (RedisConnectionError(CANARY), "WARNING", "away"),
        (TimeoutError(CANARY), "WARNING", "away"),
        (ReadOnlyError(CANARY), "WARNING", "away"),
        (StorageUnavailableError(), "WARNING", "away"),
        (ResponseError(f"WRONGTYPE {CANARY}"), "ERROR", "refuses"),
        (NoPermissionError(CANARY), "ERROR", "refuses"),
        (NotMigratedError(), "ERROR", "refuses"),
    ],
)
def test_a_person_is_called_where_one_must_act(
    caplog: pytest.LogCaptureFixture, trouble: Exception, level: str, word: str
) -> None:
    """What passes by itself is a warning; what does not is an error; neither quotes a driver."""
    caplog.set_level(logging.INFO)
    outage = Outage("The server", "This waits.")

    outage.met(trouble)
    outage.met(trouble)
    assert outage.ongoing
    outage.over()
    outage.over()

    begun, ended = caplog.records
    assert (begun.levelname, ended.levelname) == (level, "INFO")
    assert word in begun.message
    assert "back" in ended.message
    assert CANARY not in f"{begun.__dict__}"
