"""The model of the handoff protocol, searched exhaustively; see docs/model.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.databases import ROOT
from tests.measuring import note

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK = ROOT / "model" / "check"
# A minute on an idle machine.
PATIENCE_SECONDS = 900


@pytest.fixture(scope="module")
def _tools() -> None:
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{' and '.join(missing)} is missing", pytrace=False)
    if missing:
        pytest.skip(f"{' and '.join(missing)} is missing: apt-get install spin gcc")


@pytest.fixture
def check(_tools: None, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Run model/check and show what it found."""

    def run(what: str) -> str:
        done = subprocess.run(
            [CHECK, what], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        for line in filter(None, done.stdout.splitlines()):
            note(request.config, f"model: {line}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.processes
def test_the_protocol_keeps_every_promise(check: Callable[[str], str]) -> None:
    """In every order that its steps can have, nothing is lost or scored twice, and all comes to an end."""
    found = check("--properties")

    assert re.findall(r"^(\w+) +(?:one|two|claims)", found, re.MULTILINE) == ["holds"] * 6


@pytest.mark.processes
def test_each_guard_is_needed(check: Callable[[str], str]) -> None:
    """Without any one of its guards the protocol breaks a promise, and the search finds out."""
    found = check("--mutants")

    guards = set(re.findall(r"#ifn?def M_(\w+)", (CHECK.parent / "handoff.pml").read_text()))
    assert set(re.findall(r"^broken +without a guard: (\w+)", found, re.MULTILINE)) == guards
