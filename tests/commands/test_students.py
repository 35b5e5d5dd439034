"""What becomes of one student: ``scoring erase`` and ``scoring export``."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text

from demo.worker_process import SCORING
from storage.drafts import save_draft
from storage.verification import verify_settlement
from tests.commands.operating import a_student, history
from tests.factories import MODULE, QUESTION, count, submission, submit, token

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = pytest.mark.commits


async def test_an_erasure_leaves_nothing_and_says_what_went(commands: Commands, engine: AsyncEngine) -> None:
    """What a claim left under a token goes too; others keep theirs; the record has the number and no token."""
    anonymous = token()
    await a_student(engine, anonymous)

    shown = (await commands.run("erase", "--user", "3", "--dry-run")).stdout
    done = await commands.json("erase", "--user", "3", "--yes", "--by", "Ada")

    assert "1 tokens that only this user has claimed" in shown
    assert done["found"]["assessment_responses"] == done["erased"]["assessment_responses"] == 2
    assert not any(done["left"].values())
    assert anonymous not in json.dumps(done) + shown
    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == await count(conn, "scoring_handoffs") == 1
        assert (await verify_settlement(conn, full=True))["orphans"] == []
    rows = await commands.json("history")
    assert [(row["actor"], row["action"], row["affected"]) for row in rows] == [("Ada", "erase", 1)] * 2
    assert {row["details"]["user_id"] for row in rows} == {3}
    assert anonymous not in json.dumps(rows)
    assert "Nothing to erase." in (await commands.run("erase", "--user", "3", "--yes")).stdout


async def test_an_erasure_takes_drafts_and_says_how_many(commands: Commands, engine: AsyncEngine) -> None:
    """What a student has only begun to write is his too; another student's draft stays."""
    async with engine.begin() as conn:
        for user_id in (3, 4):
            await save_draft(
                conn,
                user_id=user_id,
                module_slug=MODULE,
                question_id=QUESTION,
                answer_text="Begun.",
                submission_key=uuid4(),
            )

    dry = await commands.json("erase", "--user", "3", "--dry-run")
    done = await commands.json("erase", "--user", "3", "--yes")

    assert dry["found"]["assessment_drafts"] == done["erased"]["assessment_drafts"] == 1
    assert (dry["erased"], done["left"]["assessment_drafts"]) == (None, 0)
    async with engine.connect() as conn:
        owners = await conn.execute(text("SELECT user_id FROM assessment_drafts"))
        assert list(owners.scalars()) == [4]


@pytest.mark.processes
async def test_a_token_is_read_and_never_written(commands: Commands, engine: AsyncEngine) -> None:
    """From standard input; neither output nor record knows it."""
    anonymous = token()
    async with engine.begin() as conn:
        await submit(conn, anonymous_token=anonymous)

    exported = await commands.process("export", "--anonymous-token-stdin", given=f"{anonymous}\n")
    erased = await commands.process("erase", "--anonymous-token-stdin", "--yes", given=f"{anonymous}\n")
    empty = await commands.process("erase", "--anonymous-token-stdin", "--yes", given="\n")

    assert [json.loads(line)["record"] for line in exported.stdout.splitlines()] == [
        *("export", "response", "handoff", "end")
    ]
    assert erased.returncode == 0, erased.stderr
    assert empty.returncode == 2
    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 0
    written = [each.stdout + each.stderr for each in (exported, erased, empty)]
    assert anonymous not in "".join(written) + json.dumps(await commands.json("history"))


@pytest.mark.processes
async def test_an_export_is_a_file_that_only_its_owner_may_read(
    commands: Commands, engine: AsyncEngine, tmp_path: Path
) -> None:
    """Whole, recorded, without a trace beside it; a file that is there is not replaced."""
    await a_student(engine, token())
    file = tmp_path / "student.jsonl"

    done = await commands.json("export", "--user", "3", "--output", str(file), "--by", "Ada")
    again = await commands.process("export", "--user", "3", "--output", str(file))
    nowhere = await commands.process("export", "--user", "3", "--output", str(tmp_path / "no" / "file"))

    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [file.name]  # noqa: PTH208 - pathlib's would be called blocking
    assert lines[0]["user_id"] == 3
    assert lines[-1] == {"record": "end", "counts": done["counts"]}
    assert done["counts"] == {"response": 2, "handoff": 2, "claim": 1, "action": 1}
    assert lines[1]["answer_text"] == submission()["answer_text"]
    assert (again.returncode, nowhere.returncode) == (2, 2)
    assert "exists already" in again.stderr
    assert "cannot be written" in nowhere.stderr
    assert (await history(commands))[-1] == ("Ada", "export", 2)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("redirection", "said"),
    [(">/dev/full", "Standard output cannot be written"), (">&-", "Standard output is closed")],
)
async def test_an_export_that_cannot_be_written_says_so(
    commands: Commands, engine: AsyncEngine, redirection: str, said: str
) -> None:
    """In one line and without a traceback: the disk is full, or nothing is there to write to."""
    await a_student(engine, token())
    command = f'exec "$@" {redirection}'
    done = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-c", command, "sh", *SCORING, "export", "--user", "3"],
        env={"PATH": "/usr/bin:/bin", **commands.environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
async def test_an_export_is_utf_8_whatever_the_terminal_speaks(
    commands: Commands, engine: AsyncEngine
) -> None:
    """An emoji does not end it in the middle."""
    async with engine.begin() as conn:
        await submit(conn, user_id=3, anonymous_token=None, answer_text="🌱")
    ascii_only = {**commands.environment, "PYTHONIOENCODING": "ascii"}
    done = await asyncio.to_thread(
        subprocess.run,
        [*SCORING, "export", "--user", "3"],
        env={"PATH": "/usr/bin:/bin", **ascii_only},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "🌱" in done.stdout.decode()
