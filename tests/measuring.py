"""Figures that tests find out: how many crashes were survived, how soon something was back. They end the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_NOTES = pytest.StashKey[list[str]]()
# Under this name a test process of its own sends them to the one that prints the report.
_SENT = "measured"


def note(config: pytest.Config, line: str) -> None:
    """Note a figure, to be printed at the end of the report."""
    config.stash.setdefault(_NOTES, []).append(line)


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Notes a figure."""
    return lambda line: note(pytestconfig, line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what was noted, where the tests run in several processes."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_SENT] = session.config.stash.get(_NOTES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive what a test process noted; one that crashed has sent nothing."""
    for line in getattr(node, "workeroutput", {}).get(_SENT, []):
        note(node.config, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was noted, as the last thing that a person sees."""
    lines: list[str] = config.stash.get(_NOTES, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)
