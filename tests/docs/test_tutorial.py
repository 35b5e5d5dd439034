"""The tutorial is followed to the letter, in an empty folder, on servers that it starts itself."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import httpx
import pytest

from demo.servers import die_with_parent, free_port
from tests.databases import ROOT
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TUTORIAL: Final = ROOT / "docs" / "tutorial.md"
COMMAND_SECONDS: Final = 120
# What is marked in the page: <!-- run -->, <!-- run in the background -->, <!-- file: NAME -->, <!-- answer -->.
_BLOCKS: Final = re.compile(
    r"<!-- (?P<what>run.*?|file: .*?|answer) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL
)


@contextmanager
def background(command: str, environment: Mapping[str, str], folder: Path, log: Path) -> Iterator[None]:
    """Run a command until the block ends, and then stop it; it must not have ended by itself."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - only a prctl
        )
    try:
        yield
        assert process.poll() is None, f"{command} ended by itself:\n{log.read_text()}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(COMMAND_SECONDS)


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Run what ``make servers`` runs, and paste the lines that it prints."""
    (recipe,) = re.findall(r"^servers: .*\n\t@\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    log = folder / "servers.log"
    python = shlex.quote(sys.executable)
    command = f"PYTHONPATH={ROOT} {recipe.replace('python', python, 1)}"
    with background(command, os.environ, folder, log):
        exported = r"^export (SCORING_\w+)=(.*)$"

        def pasted() -> dict[str, str]:
            found = dict(re.findall(exported, log.read_text(), re.MULTILINE))
            return found if len(found) == 2 else {}

        yield asyncio.run(eventually(pasted, patience_seconds=COMMAND_SECONDS))


def commands(text: str) -> list[str]:
    """The lines that a reader types."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


@pytest.mark.processes
def test_the_tutorial_ends_with_a_scored_answer(tmp_path: Path) -> None:
    """Files are saved and commands run in the page's order; the browser then shows the answer and its points."""
    classroom = tmp_path / "classroom"
    classroom.mkdir()
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    blocks = [(block["what"], block["text"]) for block in _BLOCKS.finditer(TUTORIAL.read_text())]
    assert [what.partition(":")[0] for what, _ in blocks] == [
        *("run", "file", "run", "run in the background", "file", "run in the background", "answer", "run"),
    ]

    with ExitStack() as running:
        pasted = running.enter_context(servers(tmp_path))
        # Coverage of processes is measured elsewhere; here a reader's environment counts.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | pasted | {"PATH": path}
        worker = running.enter_context(ExitStack())
        for number, (what, text) in enumerate(blocks):
            match what.split(": "):
                case ["file", name]:
                    (classroom / name).parent.mkdir(exist_ok=True)
                    (classroom / name).write_text(text)
                case ["run"]:
                    for command in commands(text):
                        run(command, environment, classroom)
                case ["run in the background"]:
                    (command,) = commands(text)
                    # The page's port may be taken on this machine.
                    command = command.replace("--port 8000", f"--port {port}")
                    log = tmp_path / f"{number}.log"
                    scores = "scoring worker" in command
                    (worker if scores else running).enter_context(
                        background(command, environment, classroom, log)
                    )
                case _:
                    browse(address, text.strip())

        (again,) = (commands(text)[0] for _, text in blocks if "scoring worker" in text)
        worker.close()
        with httpx.Client() as browser:
            browser.get(address)
            browser.post(address, data={"key": str(uuid4()), "answer": "Ice floats."}, follow_redirects=True)
            assert "<b>waiting</b>" in browser.get(address).text
            with background(again, environment, classroom, tmp_path / "again.log"):
                asyncio.run(eventually(lambda: "points." in browser.get(address).text))


def run(command: str, environment: Mapping[str, str], folder: Path) -> None:
    """Run one command to its end."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


def browse(address: str, answer: str) -> None:
    """Do what a student does: open the page, hand the answer in twice by a double click, look for the points."""
    with httpx.Client(follow_redirects=True, timeout=10) as browser:

        def page() -> str:
            try:
                return browser.get(address).text
            except httpx.TransportError:
                return ""  # uvicorn has not opened its port yet

        shown = asyncio.run(eventually(page, patience_seconds=COMMAND_SECONDS))
        (key,) = re.findall(r'name="key" value="([^"]+)"', shown)
        form = {"key": key, "answer": answer}
        for _ in range(2):
            handed_in = browser.post(address, data=form)
            assert handed_in.status_code == 200
            assert handed_in.text.count(answer) == 1
        assert browser.post(address, data=form | {"key": "no key", "answer": " "}).status_code == 422

        scored = asyncio.run(eventually(lambda: re.findall(r"<b>([0-9.]+) points\.", page())))
        assert 1 < float(scored[0]) <= 5
