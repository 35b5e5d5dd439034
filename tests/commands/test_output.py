"""Whatever standard output is: no command ends in a traceback."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from demo.worker_process import SCORING
from storage.actions import record_action
from tests.factories import bury, publish, submit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = [pytest.mark.commits, pytest.mark.processes]

LISTS = (
    ("history",),
    ("dead", "list"),
    ("dead", "show", "{dead}"),
    ("rescore", "--list"),
    ("status",),
    ("stats",),
)
WORDS = [*LISTS, *((*words, "--json") for words in LISTS), ("--help",), ("dead", "--help")]
REASON, ACTOR = "The model says “no” 不.", "Zoë 李"


@pytest.fixture
async def response_id(engine: AsyncEngine) -> int:
    """A dead answer, and a record, with characters that ASCII does not have."""
    async with engine.begin() as conn:
        await publish(conn)
        dead = int((await submit(conn))["response_id"])
        await bury(conn, dead, reason=REASON)
        await record_action(conn, actor=ACTOR, action="retry", affected=1)
    return dead


async def printed(commands: Commands, words: tuple[str, ...], **options: Any) -> tuple[int | None, str, str]:
    environment = {"PATH": "/usr/bin:/bin", **commands.environment, **options.pop("environment", {})}
    process = await asyncio.create_subprocess_exec(
        *SCORING, *words, env=environment, stderr=asyncio.subprocess.PIPE, **options
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, (out or b"").decode(), err.decode()


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
async def test_a_full_disk_is_said_in_a_sentence(
    commands: Commands, response_id: int, words: tuple[str, ...]
) -> None:
    """Exit status 2, and one line that says why."""
    words = tuple(word.format(dead=response_id) for word in words)
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123 - a device that never keeps anybody waiting
        status, _, err = await printed(commands, words, stdout=full)

    assert (status, err) == (2, "Standard output cannot be written: No space left on device.\n")


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
async def test_ascii_is_enough(commands: Commands, response_id: int, words: tuple[str, ...]) -> None:
    """What cannot be written is escaped; JSON stays JSON."""
    words = tuple(word.format(dead=response_id) for word in words)
    status, out, err = await printed(
        commands, words, stdout=asyncio.subprocess.PIPE, environment={"PYTHONIOENCODING": "ascii"}
    )

    assert (status, err) == (0, "")
    assert out.isascii()
    if words[0] in {"history", "dead"} and "--json" in words:
        told = json.loads(out)
        [row] = told if isinstance(told, list) else [told]
        assert row.get("actor", ACTOR) == ACTOR
        assert row.get("last_error", REASON) == REASON


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
async def test_a_reader_who_left_is_no_error(
    commands: Commands, response_id: int, words: tuple[str, ...]
) -> None:
    """As with `| head -1`: exit status 1, and not a word."""
    words = tuple(word.format(dead=response_id) for word in words)
    read, write = os.pipe()
    os.close(read)
    try:
        status, _, err = await printed(commands, words, stdout=write)
    finally:
        os.close(write)

    assert (status, err) == (1, "")


EVIL = "a\x9b2J b\x7f \u202etxt.exe\u202c c"


@pytest.mark.parametrize("words", [("dead", "list"), ("dead", "show", "{dead}"), ("stats",)], ids=" ".join)
async def test_no_reason_commands_a_terminal(
    commands: Commands, engine: AsyncEngine, words: tuple[str, ...]
) -> None:
    """Control characters, and those that turn the direction of writing, are escaped in tables and in JSON."""
    async with engine.begin() as conn:
        await publish(conn)
        dead = int((await submit(conn))["response_id"])
        await bury(conn, dead, reason=EVIL)
    words = tuple(word.format(dead=dead) for word in words)

    told = ""
    for given in (words, (*words, "--json")):
        status, told, err = await printed(commands, given, stdout=asyncio.subprocess.PIPE)
        assert (status, err) == (0, "")
        assert not set(told) & set("\x9b\x7f\u202e\u202c"), given
        assert "u202etxt.exe" in told
    assert json.dumps(EVIL) in json.dumps(json.loads(told)), "JSON says the same as before"
