"""The settler: many results in one commit, and a score that was paid for is written."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, select, text

from storage import create_engine
from storage.settlements import Release, Settlement, settle_handoffs
from storage.tables import scores
from tests.factories import lease, settlement
from tests.producers.waiting import eventually, settled
from tests.worker.scripted import (
    a_lease,
    change,
    good_score,
    in_background,
    read_handoffs,
    score_counts,
    scored_once,
    submit_answers,
)
from worker.decisions import Bury, Fail, HandBack, Postpone, Settle, Surroundings, decide
from worker.leased import Lease
from worker.settler import Settler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.producers.proxy import Proxy
    from worker.scorers.protocol import Score

pytestmark = pytest.mark.commits


class Settling:
    """A settler through a proxy, and what it is done with."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.done: list[int] = []
        self.statements: list[str] = []
        self.settler = Settler(engine, max_attempts=5, on_done=self.done.append)
        event.listen(engine.sync_engine, "before_cursor_execute", self._record)

    def _record(self, _conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        self.statements.append(statement)

    def put_scores(self, leases: list[Lease], **changes: Any) -> None:
        """Have a score written for each."""
        for held in leases:
            self.settler.put(held, settle(held, good_score(**changes)))


def settle(held: Lease, score: Score) -> Settle:
    """The decision on a score."""
    decision = decide(held, score, Surroundings(), max_attempts=5)
    assert isinstance(decision, Settle)
    return decision


@pytest.fixture
async def settling(proxied_database_url: str) -> AsyncIterator[Settling]:
    """A settler that runs; its one connection goes through ``postgres_proxy``."""
    engine = create_engine(proxied_database_url, pool_size=1)
    settling = Settling(engine)
    async with in_background(settling.settler.run()):
        yield settling
    await engine.dispose()


async def leases_of(engine: AsyncEngine, response_ids: list[int]) -> list[Lease]:
    """Lease these responses."""
    async with engine.begin() as conn:
        return [Lease.from_row(row) for row in await lease(conn, *response_ids)]


async def test_what_gathers_is_one_commit(settling: Settling, engine: AsyncEngine) -> None:
    """Fifty scores that are put together are one statement, and each is written once."""
    ids = await submit_answers(engine, 50)
    leases = await leases_of(engine, ids)

    settling.put_scores(leases)
    await settling.settler.wait_idle()

    assert len(settling.statements) == 1
    assert await scored_once(engine, ids)
    assert sorted(settling.done) == sorted(held.handoff_id for held in leases)
    assert settling.settler.counts == {"settle": 50}


async def test_a_batch_is_bounded(
    settling: Settling, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exceeds one statement goes into the next."""
    monkeypatch.setattr("worker.settler.MAX_BATCH", 10)
    ids = await submit_answers(engine, 25)

    settling.put_scores(await leases_of(engine, ids))
    await settling.settler.wait_idle()

    assert len(settling.statements) == 3
    assert await scored_once(engine, ids)


async def test_every_kind_of_result_is_performed(settling: Settling, engine: AsyncEngine) -> None:
    """One batch with all five: each handoff ends where its decision says."""
    ids = await submit_answers(engine, 5)
    leases = await leases_of(engine, ids)
    kinds = [Settle, Fail, Postpone, Bury, HandBack]
    for held, kind in zip(leases, kinds, strict=True):
        end = Release(held.handoff_id, held.lease_token, 60.0 * (kind is not HandBack), f"{kind.__name__}.")
        what = settle(held, good_score()) if kind is Settle else kind(end)
        settling.settler.put(held, what)

    await settling.settler.wait_idle()

    rows = await read_handoffs(engine)
    ended = {held.response_id: kind for held, kind in zip(leases, kinds, strict=True)}
    by_kind = {ended[response_id]: row for response_id, row in rows.items()}
    assert set(by_kind) == {Fail, Postpone, Bury, HandBack}
    assert (by_kind[Fail]["attempts"], by_kind[Postpone]["postponements"]) == (1, 1)
    assert by_kind[Bury]["state"] == "dead"
    assert (by_kind[HandBack]["attempts"], by_kind[HandBack]["postponements"]) == (0, 0)
    assert all(row["lease_token"] is None for row in rows.values())
    assert settling.settler.counts == {"settle": 1, "fail": 1, "postpone": 1, "bury": 1, "handback": 1}


async def test_scores_wait_while_postgres_is_away(
    settling: Settling, engine: AsyncEngine, postgres_proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Finished scores are kept and written when PostgreSQL is back; one warning, one info."""
    caplog.set_level(logging.INFO)
    ids = await submit_answers(engine, 20)
    leases = await leases_of(engine, ids)
    postgres_proxy.break_down()

    settling.put_scores(leases[:10])
    await eventually(lambda: settling.settler.troubled)
    settling.put_scores(leases[10:])
    await settled()
    assert not settling.done
    postgres_proxy.refuses = False
    await settling.settler.wait_idle()

    assert await scored_once(engine, ids)
    assert not settling.settler.troubled
    outages = [record.levelname for record in caplog.records if record.name == "worker.outage"]
    assert outages == ["WARNING", "INFO"]


async def test_a_lost_acknowledgement_is_not_counted_as_too_late(
    settling: Settling, engine: AsyncEngine, postgres_proxy: Proxy
) -> None:
    """The score was written, the reply was lost: the repetition finds nothing, and says "in doubt"."""
    first, second = await submit_answers(engine, 2)
    settling.put_scores(await leases_of(engine, [first]))
    await settling.settler.wait_idle()
    leases = await leases_of(engine, [second])
    postgres_proxy.lose_next_reply(that_contains=b"INSERT 0 1\x00")

    settling.put_scores(leases)
    await settling.settler.wait_idle()

    assert postgres_proxy.lost_replies == 1
    assert await scored_once(engine, [first, second])
    assert settling.settler.counts == {"settle": 1, "settle_in_doubt": 1}


@pytest.mark.parametrize("reasoning", ["a\x00b", "lone \ud800"])
async def test_one_score_that_cannot_be_stored_fails_alone(
    settling: Settling, engine: AsyncEngine, reasoning: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Among many good ones, one that PostgreSQL refuses uses up its own attempt; the others are written."""
    ids = await submit_answers(engine, 20)
    leases = await leases_of(engine, ids)
    for held in leases:
        bad = held.response_id == ids[7]
        settling.settler.put(held, settle(held, good_score(reasoning=reasoning if bad else "Names both.")))

    await settling.settler.wait_idle()

    [(response_id, row)] = (await read_handoffs(engine)).items()
    assert response_id == ids[7]
    assert (row["attempts"], row["lease_token"]) == (1, None)
    assert "refused to store" in row["last_error"]
    assert sum((await score_counts(engine)).values()) == 19
    assert settling.settler.counts == {"settle": 19, "fail": 1}
    assert len(settling.done) == 20
    assert reasoning not in caplog.text


async def test_a_number_that_is_no_json_fails_alone(settling: Settling, engine: AsyncEngine) -> None:
    """NaN in a score's data is refused before it reaches PostgreSQL, or by it; its attempt fails."""
    [response_id] = await submit_answers(engine, 1)
    [held] = await leases_of(engine, [response_id])
    bad = Settlement(held.handoff_id, held.created_at, "m", "1", {"overall_score": float("nan")})

    settling.settler.put(held, Settle(bad))
    await settling.settler.wait_idle()

    assert (await read_handoffs(engine))[response_id]["attempts"] == 1


async def test_the_last_unstorable_score_buries(settling: Settling, engine: AsyncEngine) -> None:
    """A scorer that always returns what cannot be stored does not go on for ever."""
    [response_id] = await submit_answers(engine, 1)
    await change(engine, response_id, attempts=4)
    [held] = await leases_of(engine, [response_id])

    settling.put_scores([held], reasoning="\x00")
    await settling.settler.wait_idle()

    row = (await read_handoffs(engine))[response_id]
    assert (row["state"], row["attempts"]) == ("dead", 5)
    assert settling.settler.counts == {"bury": 1}


async def test_a_late_score_is_dropped_and_counted(
    settling: Settling, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else was first: his score stays the only one, ours is counted as paid twice."""
    caplog.set_level(logging.INFO)
    [response_id] = await submit_answers(engine, 1)
    [held] = await leases_of(engine, [response_id])
    async with engine.begin() as conn:
        await settle_handoffs(conn, [settlement(held, model_id="the first")])

    settling.put_scores([held])
    await settling.settler.wait_idle()

    async with engine.connect() as conn:
        assert (await conn.execute(select(scores.c.model_id))).scalars().all() == ["the first"]
    assert settling.settler.counts == {"settle_too_late": 1}
    assert settling.done == [held.handoff_id]
    assert "too late" in caplog.text


async def test_a_slow_worker_s_score_counts_while_the_handoff_is_there(
    settling: Settling, engine: AsyncEngine
) -> None:
    """The lease was lost to another worker, but nobody has scored yet: the first score wins."""
    [response_id] = await submit_answers(engine, 1)
    [held] = await leases_of(engine, [response_id])
    await change(engine, response_id, lease_token=uuid4())

    settling.put_scores([held])
    await settling.settler.wait_idle()

    assert await scored_once(engine, [response_id])


@pytest.mark.parametrize("kind", [Fail, Postpone, Bury, HandBack])
async def test_who_lost_its_lease_has_no_say(
    settling: Settling, engine: AsyncEngine, kind: type[Fail | Postpone | Bury | HandBack]
) -> None:
    """A release under an old token changes nothing, and is counted."""
    [response_id] = await submit_answers(engine, 1)
    [held] = await leases_of(engine, [response_id])
    await change(engine, response_id, lease_token=uuid4())
    before = await read_handoffs(engine)

    settling.settler.put(held, kind(Release(held.handoff_id, held.lease_token, 1, "No.")))
    await settling.settler.wait_idle()

    after = (await read_handoffs(engine))[response_id]
    assert after["lease_token"] == before[response_id]["lease_token"]
    assert (after["attempts"], after["postponements"], after["state"]) == (0, 0, "open")
    assert settling.settler.counts == {f"{kind.__name__.lower()}_too_late": 1}


async def test_a_release_that_cannot_be_stored_is_left_to_its_lease(
    settling: Settling, engine: AsyncEngine
) -> None:
    """It is let go of, and neither blocks the others nor the settler."""
    ids = await submit_answers(engine, 3)
    leases = await leases_of(engine, ids)
    for held, reason in zip(leases, ["Good.", "bad \x00", "Good."], strict=True):
        settling.settler.put(held, Postpone(Release(held.handoff_id, held.lease_token, 1, reason)))

    await settling.settler.wait_idle()

    assert len(settling.done) == 3
    assert settling.settler.counts == {"postpone": 2, "postpone_refused": 1}
    assert sum(row["lease_token"] is not None for row in (await read_handoffs(engine)).values()) == 1


async def test_a_missing_privilege_uses_up_no_attempt(
    settling: Settling, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """What a person can mend keeps the scores in memory until it is mended, with an error in the log."""
    ids = await submit_answers(engine, 2)
    leases = await leases_of(engine, ids)
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE assessment_scores RENAME TO hidden_scores"))
    try:
        settling.put_scores(leases)
        await eventually(lambda: settling.settler.troubled)
        assert all(row["attempts"] == 0 for row in (await read_handoffs(engine)).values())
    finally:
        async with engine.begin() as conn:
            await conn.execute(text("ALTER TABLE hidden_scores RENAME TO assessment_scores"))
    await settling.settler.wait_idle()

    assert await scored_once(engine, ids)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_idle_means_written(settling: Settling, engine: AsyncEngine) -> None:
    """Waiting for idleness with nothing put returns at once; with something put, when it is written."""
    await asyncio.wait_for(settling.settler.wait_idle(), 10)
    ids = await submit_answers(engine, 1)
    settling.put_scores(await leases_of(engine, ids))

    await settling.settler.wait_idle()

    assert await scored_once(engine, ids)


def test_an_answer_is_not_in_the_repr_of_its_lease() -> None:
    """A lease that is logged by accident shows no answer."""
    assert "light" not in repr(a_lease())


async def test_a_locked_handoff_holds_up_nobody_else(settling: Settling, engine: AsyncEngine) -> None:
    """While somebody holds one handoff locked, the others of its batch are settled; it follows when it is free."""
    ids = await submit_answers(engine, 8)
    leases = await leases_of(engine, ids)
    async with engine.connect() as conn, conn.begin() as locking:
        await conn.execute(
            text("SELECT 1 FROM scoring_handoffs WHERE response_id = :id FOR UPDATE"), {"id": ids[3]}
        )

        settling.put_scores(leases)

        async def others_are_scored() -> bool:
            return set(await score_counts(engine)) == set(ids) - {ids[3]}

        await eventually(others_are_scored)
        assert not settling.settler.troubled
        await locking.rollback()
    await settling.settler.wait_idle()
    assert await scored_once(engine, ids)
