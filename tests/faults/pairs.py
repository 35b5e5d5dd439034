"""Two things that happen at the same moment, on connections of two processes, and what must be true afterwards.

Answers are submitted through the producer's batcher, scores and claims are written by the worker's settler and
claimer, each with its own tries; what ops, sweep and renewer do is called once and must not be refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import event, text

from producers.batching import SubmissionBatcher
from storage import create_engine, publish_questions
from storage.claims import request_claim
from storage.engine import single_statements
from storage.erasure import erase_responses
from storage.leases import pull_handoffs
from storage.translation import translated
from storage.validation import checked_submission
from storage.verification import verify_settlement, verify_timeliness
from tests.databases import USER_IDS
from tests.factories import LEASE_SECONDS, question, settlement, submission
from tests.races import committed
from tests.worker.scripted import in_background
from worker.claiming import Claimer
from worker.decisions import Settle
from worker.leased import Lease
from worker.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from sqlalchemy.engine.interfaces import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# The one that is ahead is so by less than a statement takes: then each order happens.
HEAD_START_SECONDS = 0.004
MOST = 8


def watched_engine(url: str, refusals: Counter[str]) -> AsyncEngine:
    """An engine that counts what PostgreSQL refuses, by SQLSTATE, also where somebody tries again and succeeds."""
    engine = create_engine(url, pool_size=2)

    def refused(context: ExceptionContext) -> None:
        refusals[getattr(context.original_exception, "sqlstate", None) or "no answer"] += 1

    def look_soon(connection: Any, _record: object) -> None:
        # Before a settlement gives up a locked row, or a deadlock would pass for somebody who is busy.
        connection.cursor().execute("SET deadlock_timeout = '20ms'")
        connection.commit()

    event.listen(engine.sync_engine, "handle_error", refused)
    event.listen(engine.sync_engine, "connect", look_soon)
    return engine


@dataclass(frozen=True)
class Round:
    """One moment: who takes part, and what chance decides."""

    name: str
    one: AsyncEngine
    other: AsyncEngine
    observer: AsyncEngine
    random: Random

    async def together(self, *works: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Start all at the same moment, in any order, and return what each returns."""
        barrier = asyncio.Barrier(len(works))

        async def start(work: Callable[[], Awaitable[Any]], delay_seconds: float) -> Any:
            await barrier.wait()
            await asyncio.sleep(delay_seconds)
            return await work()

        delays = [self.random.choice((0.0, self.random.uniform(0, HEAD_START_SECONDS))) for _ in works]
        return list(await asyncio.gather(*map(start, works, delays)))

    def user(self) -> int:
        """One of the users there are."""
        return self.random.choice(USER_IDS)

    def somebody(self) -> dict[str, Any]:
        """A user, or somebody nobody knows."""
        return self.random.choice(({"user_id": self.user()}, {"anonymous_token": f"{uuid4()}"}))

    def some(self, least: int = 1) -> int:
        """How many of something."""
        return self.random.randint(least, MOST)

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        """The same in another order."""
        return self.random.sample(list(items), len(items))

    def questions(self, number: int, **changes: Any) -> list[dict[str, Any]]:
        """Questions of this round alone."""
        return [question(question_id=f"{self.name} {index}", **changes) for index in range(number)]

    async def publish(self, questions: Sequence[dict[str, Any]], engine: AsyncEngine | None = None) -> None:
        """As ops do."""
        await committed(engine or self.observer, partial(publish_questions, given=questions))

    async def submit(
        self, given: Sequence[dict[str, Any]], engine: AsyncEngine | None = None
    ) -> list[dict[str, Any]]:
        """As a web process does, all in one batch."""
        batcher = SubmissionBatcher(engine or self.observer, lambda _: None)
        checked = [checked_submission({"submission_key": uuid4(), **one}) for one in given]
        try:
            return list(await asyncio.gather(*(batcher.submit(one) for one in checked)))
        finally:
            await batcher.close()

    async def answers(self, number: int, *, questions: int = 2, **owner: Any) -> list[dict[str, Any]]:
        """Answers of somebody to published questions of this round."""
        published = self.questions(questions)
        await self.publish(published)
        chosen = [self.random.choice(published)["question_id"] for _ in range(number)]
        return await self.submit([submission(question_id=name, **owner) for name in chosen])

    async def leases(self, limit: int = 1000) -> list[Lease]:
        """Lease what is due."""

        async def pull(conn: AsyncConnection) -> list[dict[str, Any]]:
            return await pull_handoffs(
                conn, lane="live", lease_token=uuid4(), lease_seconds=LEASE_SECONDS, limit=limit
            )

        return [Lease.from_row(row) for row in await committed(self.observer, pull)]

    async def settle(self, leases: Sequence[Lease], engine: AsyncEngine) -> Counter[str]:
        """As a worker does; every lease is done with at the end."""
        if not leases:
            return Counter()
        done: list[int] = []
        settler = Settler(engine, max_attempts=5, on_done=done.append)
        async with in_background(settler.run()):
            for lease in leases:
                settler.put(lease, Settle(settlement(lease)))
            await settler.wait_idle()
        assert sorted(done) == sorted(lease.handoff_id for lease in leases)
        assert (
            settler.counts.total()
            == settler.counts["settle"] + settler.counts["settle_too_late"]
            == len(leases)
        )
        return settler.counts

    async def claim(self, claim_id: int, engine: AsyncEngine) -> int:
        """As a worker does."""
        return await Claimer(engine).apply([claim_id])

    async def request(self, token: str, user_id: int) -> int:
        """As a web process does."""
        return await committed(self.observer, partial(request_claim, anonymous_token=token, user_id=user_id))

    async def erase(self, engine: AsyncEngine, **owner: Any) -> dict[str, int]:
        """As ops do."""
        return await committed(engine, partial(erase_responses, **owner))

    async def once(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        """A statement of a worker, without another try."""
        with translated():
            async with single_statements(engine) as conn:
                return await work(conn)

    async def rows(self, query: str, **given: Any) -> list[Any]:
        """Look at what is committed."""
        async with self.observer.connect() as conn:
            return list((await conn.execute(text(query), given)).all())

    async def value(self, query: str, **given: Any) -> Any:
        """Look at one value."""
        [[found]] = await self.rows(query, **given)
        return found

    async def assert_invariants(self) -> None:
        """What ``scoring verify`` checks in the database, without patience."""
        async with self.observer.begin() as conn:
            settled = await verify_settlement(conn, full=True)
            late = await verify_timeliness(conn, lease_seconds=LEASE_SECONDS, sweep_seconds=0)
        assert (settled["orphans"], settled["settled_twice"]) == ([], []), self.name
        assert late["missed_publication"] == [], self.name
