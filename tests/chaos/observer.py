"""What a run looks at while it goes on, past every proxy. With PostgreSQL away it sees nothing, and looks again."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from storage.engine import single_statements
from storage.errors import StorageUnavailableError
from storage.translation import translated
from tests.chaos.terms import BACKLOG_ANSWERS, PROMPT_SECONDS, PROMPT_SHARE, WINDOW_ANSWERS, WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncEngine

LOOK_SECONDS = 0.1
WATCH_SECONDS = 0.5

# Of the answers stored within a window: how many, and how many of those were picked up promptly. The newest
# thousand are enough, and cost no scan of the table.
_PROMPT = text("""
    SELECT count(*) AS stored, count(*) FILTER (
        WHERE coalesce(
            (SELECT min(s.picked_up_at) FROM assessment_scores AS s WHERE s.response_id = r.response_id), h.leased_at
        ) <= r.created_at + make_interval(secs => :prompt)
    ) AS prompt
    FROM assessment_responses AS r LEFT JOIN scoring_handoffs AS h USING (response_id)
    WHERE r.response_id > (SELECT max(response_id) - 1000 FROM assessment_responses)
        AND r.created_at >= to_timestamp(:since) AND r.created_at < to_timestamp(:until)
        AND r.question_digest IS NOT NULL
""")

# Which of these still await a score, as far as it is not their own fault.
_AWAITED = text("""
    SELECT count(*) FROM scoring_handoffs AS h JOIN assessment_responses AS r USING (response_id)
    WHERE h.response_id = ANY (CAST(:response_ids AS bigint[])) AND h.state = 'open'
        AND h.lane = 'live' AND h.question_digest IS NOT NULL AND r.answer_text NOT LIKE 'poison: %'
""")

_ATTEMPTS = text("SELECT response_id, attempts FROM scoring_handoffs WHERE attempts > 0")

# How many are due and not taken; counting stops where it does not matter any more.
_DUE = text(f"""
    SELECT count(*) FROM (
        SELECT 1 FROM scoring_handoffs
        WHERE state = 'open' AND question_digest IS NOT NULL AND lane = 'live' AND due_at <= clock_timestamp()
        LIMIT {BACKLOG_ANSWERS + 1}
    ) AS due
""")

_UNSETTLED = text("""
    SELECT (SELECT count(*) FROM scoring_handoffs WHERE state = 'open')
        + (SELECT count(*) FROM assessment_claims WHERE applied_at IS NULL) AS unsettled
""")


class Observer:
    """Asks PostgreSQL directly.

    Args:
        engine: Past the proxies.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # Responses of which an attempt was seen used up, and how many.
        self.attempts: dict[int, int] = {}

    async def rows(self, statement: Any, **given: Any) -> Sequence[RowMapping]:
        """Ask once.

        Raises:
            StorageUnavailableError: PostgreSQL is away.
        """
        with translated():
            async with single_statements(self._engine) as conn:
                return (await conn.execute(statement, given)).mappings().all()

    async def until(self, look: Callable[[], Awaitable[bool]]) -> float:
        """Look again and again until what is seen is true.

        Returns:
            When that was, seconds since the epoch.
        """
        while True:
            now = time.time()
            with suppress(StorageUnavailableError):
                if await look():
                    return now
            await asyncio.sleep(LOOK_SECONDS)

    async def prompt(self, *, since: float) -> float:
        """Wait until answers are picked up promptly again.

        Returns:
            The beginning of the first window of answers for which that holds, not before ``since``.
        """
        begun = since

        async def look() -> bool:
            nonlocal begun
            # Whoever was stored at the end of the window has had the time to be picked up, and to be committed.
            begun = time.time() - WINDOW_SECONDS - 2 * PROMPT_SECONDS
            if begun < since:
                return False
            window = {"since": begun, "until": begun + WINDOW_SECONDS, "prompt": PROMPT_SECONDS}
            seen = (await self.rows(_PROMPT, **window))[0]
            return bool(seen["stored"] >= WINDOW_ANSWERS and seen["prompt"] >= PROMPT_SHARE * seen["stored"])

        await self.until(look)
        return begun

    async def scored(self, response_ids: Sequence[int]) -> float:
        """Wait until none of these awaits its score any more.

        Returns:
            When that was.
        """

        async def look() -> bool:
            return not (await self.rows(_AWAITED, response_ids=list(response_ids)))[0]["count"]

        return await self.until(look)

    async def unsettled(self) -> int:
        """How many handoffs are open, and claims not applied."""
        return int((await self.rows(_UNSETTLED))[0]["unsettled"])

    async def watch(self, on_backlog: Callable[[int], None]) -> None:
        """Note for ever who has used up an attempt, and tell how many answers are due.

        A failed attempt waits for seconds before the next one: nobody is missed.
        """
        while True:
            with suppress(StorageUnavailableError):
                for row in await self.rows(_ATTEMPTS):
                    self.attempts[row["response_id"]] = row["attempts"]
                on_backlog((await self.rows(_DUE))[0]["count"])
            await asyncio.sleep(WATCH_SECONDS)
