"""Store submissions together: while one batch is being committed, the next one gathers."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.errors import ProducerClosedError
from storage import submit_responses
from storage.engine import single_statements
from storage.errors import InvalidInputError, StorageError, StorageUnavailableError
from storage.translation import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from storage.validation import Submission

logger = logging.getLogger(__name__)

# Rows in one statement. Beyond some hundreds the gain per row is gone, and each waits for all.
MAX_BATCH = 500
# Submissions that may wait at a time; beyond it, saying no at once is kinder than an answer after minutes.
MAX_WAITING = 50_000
# A connection that died while idle, a deadlock victim, a fail-over that is just ending: worth so many more
# tries, with so long a pause, before the student hears of it. The submission key makes each harmless.
RETRY_PAUSES_SECONDS = (0.02, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class _Waiting:
    submission: Submission
    stored: asyncio.Future[dict[str, Any]]


class SubmissionBatcher:
    """Commits submissions in batches. At low load a batch holds one submission, and nothing waits."""

    def __init__(self, engine: AsyncEngine, announce: Callable[[list[int]], None]) -> None:
        self._engine = engine
        self._announce = announce
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._in_commit = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Submissions that are not stored yet, those of the batch under way among them."""
        return len(self._waiting) + self._in_commit

    async def submit(self, submission: Submission) -> dict[str, Any]:
        """Store one submission with whatever else is being submitted now.

        Cancelling the caller takes the submission out of the batch that gathers; one that is being committed
        is stored and announced all the same.

        Args:
            submission: Checked, with a submission key.

        Returns:
            The stored row, after its commit.

        Raises:
            StorageError: It was not stored, or (StorageUnavailableError) perhaps: repeating it with the same
                submission key is safe.
            ProducerClosedError: The batcher was closed; nothing was stored.
        """
        if self._closed:
            raise ProducerClosedError
        if len(self._waiting) >= MAX_WAITING:
            raise StorageUnavailableError(
                "Too many answers wait to be stored; nothing was stored, try again later."
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting(submission, loop.create_future())
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            # In a context of its own: it stores the answers of many requests, and what an instrumented driver tells of
            # that must not go into the trace of the one that happened to start it.
            self._task = loop.create_task(self._run(), name="scoring-submissions", context=Context())
        return await waiting.stored

    async def close(self) -> None:
        """Refuse new submissions and commit those that wait."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._waiting:
            batch = [waiting for waiting in self._waiting[:MAX_BATCH] if not waiting.stored.done()]
            del self._waiting[:MAX_BATCH]
            self._in_commit = len(batch)
            try:
                await self._store(batch)
            except BaseException as exc:
                # Whoever waits must hear of it, even when this task is cancelled with its event loop.
                _refuse(batch + self._waiting, exc)
                self._waiting.clear()
                if not isinstance(exc, Exception):
                    raise
                logger.exception("Storing a batch of submissions failed in a way that was not foreseen.")
            finally:
                self._in_commit = 0

    async def _store(self, batch: list[_Waiting]) -> None:
        """Store a batch; where it is refused, store its halves, until only the bad submissions fail."""
        if not batch:
            return
        try:
            rows = await self._insert(batch)
        except Exception as exc:  # noqa: BLE001 - one bad row fails a whole statement, in ways nobody can list
            of_them_all = isinstance(exc, StorageError) and not isinstance(exc, InvalidInputError)
            if of_them_all:
                # Whoever came meanwhile would wait for the same end: the next one to come tries anew.
                _refuse(batch + self._waiting, exc)
                self._waiting.clear()
                return
            if len(batch) == 1:
                _refuse(batch, exc)
                return
            middle = len(batch) // 2
            await self._store(batch[:middle])
            await self._store(batch[middle:])
        else:
            self._announce([row["response_id"] for row in rows])
            for waiting, row in zip(batch, rows, strict=True):
                if not waiting.stored.done():
                    waiting.stored.set_result(row)

    async def _insert(self, batch: list[_Waiting]) -> list[dict[str, Any]]:
        submissions = [waiting.submission for waiting in batch]
        for pause_seconds in (*RETRY_PAUSES_SECONDS, None):
            try:
                with translated():
                    async with single_statements(self._engine) as conn:
                        return await submit_responses(conn, submissions)
            except StorageUnavailableError:
                if pause_seconds is None:
                    raise
                await asyncio.sleep(pause_seconds)
        raise AssertionError  # the last round returns or raises


def _refuse(batch: list[_Waiting], exc: BaseException) -> None:
    for waiting in batch:
        if waiting.stored.done():
            continue
        if isinstance(exc, asyncio.CancelledError):
            waiting.stored.cancel()
        elif isinstance(exc, InvalidInputError):
            waiting.stored.set_exception(exc)  # of this one alone
        else:
            # One error object for many waiters would grow a traceback with each of them.
            refusal = type(exc)(str(exc)) if isinstance(exc, StorageError) else StorageUnavailableError()
            refusal.__cause__ = exc
            waiting.stored.set_exception(refusal)
