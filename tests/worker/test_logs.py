"""What logs show, and what they never show."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from worker.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "what-the-student-wrote"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def log_a_traceback() -> None:
    """Log an error that is raised with an answer in a local variable."""
    answer = CANARY
    try:
        int(answer[:0])
    except ValueError:
        logging.getLogger("worker.test").exception("Something broke.", extra={"response_id": 7})


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_values(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tracebacks show code, not the values of local variables: answers are among them."""
    configure_logging(log_format, "INFO")

    log_a_traceback()

    shown = capsys.readouterr().err
    assert "Something broke." in shown
    assert "ValueError" in shown
    assert CANARY not in shown


def test_json_is_a_sentence_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line: the fixed sentence, its fields, when, and how grave."""
    configure_logging("json", "INFO")

    logging.getLogger("worker.test").info("Scored.", extra={"response_id": 7})
    logging.getLogger("worker.test").debug("Not shown.")

    (line,) = capsys.readouterr().err.splitlines()
    shown = json.loads(line)
    assert (shown["event"], shown["response_id"], shown["level"]) == ("Scored.", 7, "info")
    assert shown["timestamp"].endswith("Z")
