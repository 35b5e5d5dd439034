"""Nothing is skipped: transactions that commit out of order, holes, new processes, lost connections, chance."""

from __future__ import annotations

import json
import os
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from producers.feed import look, scan
from storage.claims import apply_claim, request_claim
from storage.dead import rescore_responses
from storage.responses import get_responses
from storage.settlements import settle_handoffs
from storage.validation import Owner
from tests.factories import bury, handoff_of, publish, settlement, submit
from tests.producers.waiting import eventually
from tests.races import committed
from tests.web.feeding import ADA, Page, feeding, listening, shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from producers.feed import Feed

pytestmark = pytest.mark.commits
# Repeats a random run; the seed of each is printed at the end of the report.
SEED_VARIABLE = "FEED_SEED"
STEPS = 150


async def settle(conn: AsyncConnection, response_id: int, overall_score: float = 4.0) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff, overall_score=overall_score)])


async def submitted(engine: AsyncEngine, **changes: Any) -> int:
    return int((await committed(engine, lambda conn: submit(conn, **changes)))["response_id"])


@asynccontextmanager
async def open_transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One that commits when the test says so."""
    async with engine.connect() as conn:
        await conn.begin()
        yield conn


async def looked(feed: Feed, times: int = 3) -> None:
    """Wait until the feed has looked again, with the eyes of one who comes now."""
    for _ in range(times):
        async with listening(feed, Page(Owner(20, None))):
            pass


async def old_answer(engine: AsyncEngine, **changes: Any) -> int:
    """A scored answer with a handoff to be rescored, which no feed has seen yet."""
    answer = await submitted(engine, **changes)
    await committed(engine, lambda conn: settle(conn, answer, 1.0))
    return answer


@pytest.fixture
def _doubting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first doubt does not end: what is told was found by its id."""
    monkeypatch.setattr(look, "SETTLING_SECONDS", 3600.0)


@pytest.mark.usefixtures("_doubting")
async def test_a_score_with_a_low_id_that_commits_late_is_told(engine: AsyncEngine) -> None:
    """Of an answer that nobody watches: the gap that its id leaves is looked at until it is filled."""
    await committed(engine, publish)
    late, early = await old_answer(engine), await old_answer(engine)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        async with open_transaction(engine) as slow:
            await rescore_responses(slow, response_ids=[late])
            await settle(slow, late, 5.0)
            await committed(engine, lambda conn: rescore_responses(conn, response_ids=[early]))
            await committed(engine, lambda conn: settle(conn, early, 3.0))
            await shows(page, listener, {early: "scored"})
            await eventually(lambda: _shows_score(page, listener, early, 3.0))
            await looked(feed)
            assert page.score(late) == 1.0
            await slow.commit()
        await eventually(lambda: _shows_score(page, listener, late, 5.0))


def _shows_score(page: Page, listener: Any, response_id: int, expected: float) -> bool:
    page.take(listener)
    return page.score(response_id) == expected


@pytest.mark.usefixtures("_doubting")
async def test_an_answer_with_a_low_id_that_commits_late_is_told(engine: AsyncEngine) -> None:
    """Also when its transaction began before the feed did, and others passed it."""
    await committed(engine, publish)
    page = Page()
    async with open_transaction(engine) as slow:
        late = int((await submit(slow))["response_id"])
        early = await submitted(engine)
        async with feeding(engine) as feed, listening(feed, page) as listener:
            assert page.shown.keys() == {early}
            await slow.commit()
            await shows(page, listener, {late: "waiting"})


@pytest.mark.parametrize("knows_gaps", [True, False])
async def test_what_ran_when_the_first_look_was_taken_is_told(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, *, knows_gaps: bool
) -> None:
    """Even if its ids lie further back than the first look reads: then as soon as all that ran then is over."""
    monkeypatch.setattr(look, "SETTLING_SECONDS", 0.0)
    if not knows_gaps:
        monkeypatch.setattr(look, "LOOK_BACK_IDS", 0)
    await committed(engine, publish)
    old = await old_answer(engine)
    page = Page()
    async with open_transaction(engine) as slow:
        await rescore_responses(slow, response_ids=[old])
        await settle(slow, old, 5.0)
        late = int((await submit(slow))["response_id"])
        early = await old_answer(engine, user_id=2)
        async with feeding(engine) as feed, listening(feed, page) as listener:
            await looked(feed)
            assert page.score(old) == 1.0
            await slow.commit()
            await shows(page, listener, {late: "waiting"})
            await eventually(lambda: _shows_score(page, listener, old, 5.0))
    assert early not in page.shown


async def test_the_cursor_waits_for_a_transaction_that_runs(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes back to another process, after others have gone on, is told what commits meanwhile."""
    monkeypatch.setattr(look, "SETTLING_SECONDS", 0.0)
    await committed(engine, publish)
    old = await old_answer(engine)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        first = page.cursor
        await submitted(engine, user_id=2)
        # No doubt is left that would hold it.
        await eventually(lambda: listener.is_current and listener.cursor != first)
        async with open_transaction(engine) as slow:
            await rescore_responses(slow, response_ids=[old])
            await settle(slow, old, 5.0)
            for _ in range(3):
                later = await old_answer(engine)
                await shows(page, listener, {later: "scored"})
            page.take(listener)
            feed.leave(listener)
            await slow.commit()
    assert page.score(old) == 1.0

    async with feeding(engine) as feed, listening(feed, page):
        assert page.score(old) == 5.0


async def test_two_that_ran_at_the_first_look_end_one_after_the_other(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor that was given between their ends does not lie behind the first of them."""
    monkeypatch.setattr(look, "LOOK_BACK_IDS", 0)
    await committed(engine, publish)
    one, two = await old_answer(engine), await old_answer(engine)
    page = Page()
    async with open_transaction(engine) as first, open_transaction(engine) as second:
        for conn, answer in ((first, one), (second, two)):
            await rescore_responses(conn, response_ids=[answer])
            await settle(conn, answer, 5.0)
        await old_answer(engine, user_id=2)
        async with feeding(engine) as feed, listening(feed, page) as listener:
            await looked(feed)
            await first.commit()
            await looked(feed)
            page.take(listener)
            assert (page.score(one), page.score(two)) == (1.0, 1.0)
        await second.commit()

    async with feeding(engine) as feed, listening(feed, page):
        assert (page.score(one), page.score(two)) == (5.0, 5.0)


async def test_a_rollback_leaves_a_hole_that_is_forgotten(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up nothing, and is not looked for for ever."""
    monkeypatch.setattr(scan, "SETTLING_SECONDS", 0.0)
    await committed(engine, publish)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        async with open_transaction(engine) as broken:
            await submit(broken)
            await broken.rollback()
        answer = await submitted(engine)
        await shows(page, listener, {answer: "waiting"})
        cursor = page.cursor
        later = await submitted(engine)
        await shows(page, listener, {later: "waiting"})
        assert page.cursor is not None
        assert cursor is not None
        assert page.cursor >= cursor


async def test_more_gaps_than_can_be_remembered_lose_nothing(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers may leap: what hid in the gap is told when all that ran at that time is over."""
    monkeypatch.setattr(look, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(scan, "MAX_GAPS", 3)
    await committed(engine, publish)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        await looked(feed)
        async with open_transaction(engine) as slow:
            hidden = int((await submit(slow))["response_id"])
            leap = text(
                "SELECT setval(pg_get_serial_sequence('assessment_responses', 'response_id'), :to, true)"
            )
            await committed(engine, lambda conn: conn.execute(leap, {"to": hidden + 5_000_000_000}))
            answer = await submitted(engine)
            await shows(page, listener, {answer: "waiting"})
            assert hidden not in page.shown
            await slow.commit()
        await shows(page, listener, {hidden: "waiting"})


async def test_a_reader_who_gets_half_of_a_look_comes_back_for_the_rest(engine: AsyncEngine) -> None:
    """Only the last event of a look carries the new cursor."""
    await committed(engine, publish)
    page = Page()
    async with feeding(engine) as feed:
        async with listening(feed, page) as listener:
            cursor = page.cursor
            answers = [
                int(row["response_id"]) for row in await committed(engine, lambda conn: _submit_many(conn, 5))
            ]
            await eventually(lambda: len(listener._pending) == 5)
            events, _ = listener.take()
            first = json.loads(events[0])
            page.shown[first["id"]] = first
        page.cursor = cursor
        async with listening(feed, page):
            assert page.shown.keys() == set(answers)


async def _submit_many(conn: AsyncConnection, number: int) -> list[dict[str, Any]]:
    return [await submit(conn) for _ in range(number)]


async def test_who_comes_while_a_score_is_committed_is_told(engine: AsyncEngine) -> None:
    """Whether his first look falls before the commit or after it, he ends up with the score."""
    await committed(engine, publish)
    for number in range(20):
        answer = await submitted(engine)
        page = Page()
        async with feeding(engine) as feed, open_transaction(engine) as conn:
            await settle(conn, answer, float(number % 5 + 1))
            listener = feed.listen(ADA)
            await conn.commit()
            await shows(page, listener, {answer: "scored"})
            feed.leave(listener)
        assert page.score(answer) == float(number % 5 + 1)


def test_a_gap_is_given_up_only_when_nobody_can_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transaction that ran when it was noticed is over, and whoever was drawing an id has had his time."""
    monkeypatch.setattr(scan, "SETTLING_SECONDS", 10.0)
    table = scan.Scan(5)
    assert table.saw([6, 9], next_to_start=100, now=0.0)
    assert (table.high, table.gaps) == (9, [7, 8])

    table.forget(oldest_running=99, now=1000.0)
    assert table.gaps == [7, 8]
    table.forget(oldest_running=100, now=9.9)
    assert table.gaps == [7, 8]
    assert table.saw([8], next_to_start=101, now=9.9)
    assert table.gaps == [7]
    table.forget(oldest_running=100, now=10.0)
    assert table.gaps == []


class Chaos:
    """Random transactions that overlap, and readers who come and go."""

    def __init__(self, engine: AsyncEngine, stack: AsyncExitStack, seed: int) -> None:
        self.engine = engine
        self.stack = stack
        self.chance = random.Random(seed)
        self.open: list[tuple[AsyncConnection, int | None]] = []
        self.busy: set[int] = set()

    async def begin(self) -> None:
        """Begin a transaction that does something and stays open."""
        conn = await self.stack.enter_async_context(open_transaction(self.engine))
        answers = {
            row["response_id"]: row["scoring_state"]
            for owner in ({"user_id": 1}, {"anonymous_token": "chance"})
            for row in await get_responses(conn, limit=1000, **owner)
        }
        free = sorted(answers.keys() - self.busy)
        answer = self.chance.choice(free) if free and self.chance.random() < 0.7 else None
        if answer is None:
            owner: dict[str, Any] = (
                {"user_id": 1} if self.chance.random() < 0.6 else {"anonymous_token": "chance"}
            )
            question = f"q{self.chance.randrange(10_000)}"
            if self.chance.random() < 0.8:
                await self._publish(question_id=question)
            answer = int((await submit(conn, question_id=question, **owner))["response_id"])
        elif answers[answer] == "scored":
            await self._publish(rubric=f"r{self.chance.random()}")
            if await rescore_responses(conn, response_ids=[answer]):
                await settle(conn, answer, self.chance.random())
        elif answers[answer] == "waiting":
            if self.chance.random() < 0.8:
                await settle(conn, answer, self.chance.random())
            else:
                await bury(conn, answer)
        self.busy.add(answer)
        self.open.append((conn, answer))

    async def _publish(self, **changes: Any) -> None:
        # At once: whoever publishes makes others wait until he is done.
        await committed(self.engine, lambda conn: publish(conn, **changes))

    async def end(self) -> None:
        """End any of those that are open."""
        conn, answer = self.open.pop(self.chance.randrange(len(self.open)))
        await (conn.rollback() if self.chance.random() < 0.2 else conn.commit())
        await conn.close()
        self.busy.discard(answer or 0)

    async def claim(self) -> None:
        """Move what lies under the token, once nobody works on it."""
        while self.open:
            await self.end()
        claim_id = await committed(
            self.engine, lambda conn: request_claim(conn, anonymous_token="chance", user_id=1)
        )
        if self.chance.random() < 0.7:
            await committed(self.engine, lambda conn: apply_claim(conn, claim_id))


class Reader:
    """A page whose stream breaks now and then, and whose process is sometimes another one afterwards."""

    def __init__(self, engine: AsyncEngine, process: AsyncExitStack, chance: random.Random) -> None:
        self.engine = engine
        self.process = process
        self.chance = chance
        self.page = Page()
        self.reconnects = 0

    async def start(self) -> None:
        self.feed = await self.process.enter_async_context(feeding(self.engine))
        self.listener = self.feed.listen(self.page.owner, self.page.cursor)

    def take(self) -> None:
        self.page.take(self.listener)

    async def lose(self) -> None:
        """Lose the stream in the middle of what was written, and come back."""
        events, cursor = self.listener.take()
        kept = self.chance.randrange(len(events) + 1)
        self.page.shown |= {event["id"]: event for event in map(json.loads, events[:kept])}
        if kept == len(events):
            self.page.cursor = cursor
        self.feed.leave(self.listener)
        self.reconnects += 1
        if self.chance.random() < 0.5:
            await self.process.aclose()
            await self.start()
        else:
            self.listener = self.feed.listen(self.page.owner, self.page.cursor)

    async def step(self, chaos: Chaos) -> None:
        """Do anything."""
        step = self.chance.random()
        if step < 0.45 and len(chaos.open) < 4:
            await chaos.begin()
        elif step < 0.8 and chaos.open:
            await chaos.end()
        elif step < 0.83:
            await chaos.claim()
        elif step < 0.9:
            self.take()
        elif step < 0.94:
            await looked(self.feed, 1)
        else:
            await self.lose()


@pytest.mark.parametrize("look_back", [1000, 0])
async def test_whatever_happens_a_reader_ends_up_with_what_is_stored(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, measured: Callable[[str], None], look_back: int
) -> None:
    """Random transactions that overlap, readers that lose their streams halfway, processes that start anew."""
    monkeypatch.setattr(look, "LOOK_BACK_IDS", look_back)
    monkeypatch.setattr(look, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(scan, "SETTLING_SECONDS", 0.0)
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    chance = random.Random(seed)
    await committed(engine, publish)
    async with AsyncExitStack() as process, AsyncExitStack() as transactions:
        chaos, reader = Chaos(engine, transactions, seed), Reader(engine, process, chance)
        await reader.start()
        for _ in range(STEPS):
            await reader.step(chaos)
        while chaos.open:
            await chaos.end()
        stored = {
            row["response_id"]: (row["scoring_state"], (row["score"] or {}).get("score_id"))
            for row in await committed(engine, lambda conn: get_responses(conn, user_id=1, limit=1000))
        }

        left: dict[int, Any] = {}

        def differs() -> dict[int, Any]:
            reader.take()
            known = {
                answer: (event["state"], (event["score"] or {}).get("id"))
                for answer, event in reader.page.shown.items()
            }
            left.clear()
            left.update(
                (answer, (known.get(answer), stored.get(answer)))
                for answer in known.keys() | stored.keys()
                if known.get(answer) != stored.get(answer)
            )
            return left

        measured(
            f"live feed: {len(stored)} answers, {reader.reconnects} reconnects; again: {SEED_VARIABLE}={seed}"
        )
        try:
            await eventually(lambda: not differs())
        except AssertionError:
            pytest.fail(f"known and stored: {left}")
        reader.feed.leave(reader.listener)
