"""Play the class: students answer, two of them sign in, and everybody waits for the scores."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import text

from demo.classroom import CLASSROOM, SIGN_INS, STUDENTS, Student, Submission
from storage import InvalidInputError, get_responses
from storage.workers import list_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers import Producer

# Answers arrive one after the other, as in a real class, only faster.
PAUSE_SECONDS = 0.02
LOOK_SECONDS = 0.1
TIMEOUT_SECONDS = 300
WORKER_TIMEOUT_SECONDS = 30

# In the demo's own database, `users` holds nothing but ids; in a web app's it belongs to the web app.
_ADD_USERS = text("INSERT INTO users (user_id) SELECT unnest(CAST(:ids AS integer[])) ON CONFLICT DO NOTHING")
# Whether every claim of the class has been applied, and how.
_CLAIMS = text(
    "SELECT claim_id, moved, skipped FROM assessment_claims WHERE claim_id = ANY (:ids) AND applied_at IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it. ``answers`` holds a row of ``get_responses`` for every stored answer."""

    answers: list[tuple[Submission, dict[str, Any]]]
    refused: list[tuple[Student, str]]
    claims: list[tuple[Student, Student, int, int]]


def answers_expected() -> int:
    """How many answers of the class are stored."""
    return sum(not submission.is_refused for submission in CLASSROOM)


async def add_users(engine: AsyncEngine) -> None:
    """Add the class to ``users``."""
    async with engine.begin() as conn:
        await conn.execute(_ADD_USERS, {"ids": [student.user_id for student in STUDENTS if student.user_id]})


async def wait_for_worker(engine: AsyncEngine) -> None:
    """Wait until a worker reports; a web app would not, but the milliseconds shall tell of a running system.

    Raises:
        TimeoutError: None did within half a minute.
    """
    async with asyncio.timeout(WORKER_TIMEOUT_SECONDS):
        while True:
            async with engine.connect() as conn:
                if await list_workers(conn):
                    return
            await asyncio.sleep(LOOK_SECONDS)


async def play(producer: Producer, engine: AsyncEngine, on_progress: Callable[[int, int], None]) -> Played:
    """Play the class and wait until everything is scored and claimed.

    Args:
        producer: Where answers and claims are handed over.
        engine: Where scores are read.
        on_progress: Called with answers submitted and answers scored.

    Returns:
        What came of it.

    Raises:
        TimeoutError: Something was not scored within five minutes.
    """
    # A token is a bearer secret: made here, never printed.
    tokens = {student.nickname: str(uuid4()) for student in STUDENTS if student.nickname}
    owners: dict[int, Submission] = {}
    refused: list[tuple[Student, str]] = []
    for submission in CLASSROOM:
        student = submission.student
        try:
            row = await producer.submit(
                user_id=student.user_id,
                anonymous_token=tokens.get(student.nickname or ""),
                module_slug=submission.module_slug,
                question_id=submission.question_id,
                answer_text=submission.answer_text,
                answer_metadata={"client": "demo"},
            )
        except InvalidInputError as exc:
            refused.append((student, str(exc)))
        else:
            owners[row["response_id"]] = submission
        on_progress(len(owners), 0)
        await asyncio.sleep(PAUSE_SECONDS)
    claims = {
        await producer.claim(anonymous_token=tokens[sign_in.nickname], user_id=sign_in.user_id): sign_in
        for sign_in in SIGN_INS
    }
    by_user = {student.user_id: student for student in STUDENTS if student.user_id}
    by_nickname = {student.nickname: student for student in STUDENTS if student.nickname}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            rows = await _read(engine, tokens)
            scored = {row["response_id"] for row in rows if row["scoring_state"] in {"scored", "failed"}}
            on_progress(len(owners), len(scored & owners.keys()))
            async with engine.connect() as conn:
                applied = (await conn.execute(_CLAIMS, {"ids": list(claims)})).all()
            if owners.keys() <= scored and len(applied) == len(claims):
                break
            await asyncio.sleep(LOOK_SECONDS)
    return Played(
        answers=[(owners[row["response_id"]], row) for row in rows if row["response_id"] in owners],
        refused=refused,
        claims=[
            (
                by_nickname[claims[row.claim_id].nickname],
                by_user[claims[row.claim_id].user_id],
                row.moved,
                row.skipped,
            )
            for row in applied
        ],
    )


async def _read(engine: AsyncEngine, tokens: dict[str, str]) -> list[dict[str, Any]]:
    """Read every student's responses, oldest first, as the web app would: one owner at a time."""
    rows: list[dict[str, Any]] = []
    async with engine.connect() as conn:
        for student in STUDENTS:
            rows += await get_responses(
                conn,
                user_id=student.user_id,
                anonymous_token=tokens.get(student.nickname or ""),
                limit=200,
            )
    return sorted(rows, key=lambda row: int(row["response_id"]))
