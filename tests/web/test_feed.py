"""The feed tells each owner how his answers fare, and nobody else."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from demo.servers import free_port
from producers.errors import ProducerClosedError, TooManyListenersError
from producers.feed import Cursor, Feed, FeedSettings, look, parse_cursor
from producers.feed.listeners import lineage_of
from storage import create_engine
from storage import feed as storage_feed
from storage.claims import apply_claim, request_claim
from storage.dead import rescore_responses, retry_dead
from storage.erasure import erase_responses
from storage.feed import read_lineage
from storage.responses import get_responses
from storage.settlements import Settlement, settle_handoffs
from storage.validation import Owner
from tests.factories import bury, handoff_of, lease, publish, settlement, submit, token
from tests.producers.waiting import eventually
from tests.races import committed
from tests.web.feeding import ADA, QUICK, Page, feeding, listening, shows

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits


async def settle(conn: AsyncConnection, response_id: int, overall_score: float = 4.0) -> None:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert await settle_handoffs(conn, [settlement(handoff, overall_score=overall_score)])


async def submitted(engine: AsyncEngine, **changes: object) -> int:
    return int((await committed(engine, lambda conn: submit(conn, **changes)))["response_id"])


async def test_an_answer_is_followed_from_submit_to_score(engine: AsyncEngine) -> None:
    """Waiting, scoring, scored: each state is told when it is committed, and the score with the last."""
    await committed(engine, publish)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        answer = await submitted(engine)
        await shows(page, listener, {answer: "waiting"})
        await committed(engine, lambda conn: lease(conn, answer))
        await shows(page, listener, {answer: "scoring"})
        await committed(engine, lambda conn: settle(conn, answer))
        await shows(page, listener, {answer: "scored"})

    score = page.shown[answer]["score"]
    assert (score["overall_score"], score["scale_min"], score["scale_max"]) == (4.0, 1.0, 5.0)
    assert (score["reasoning"], score["model_id"], score["dimensions"]) == ("Names both.", "test-model", [])
    assert page.shown[answer].keys() == {"id", "module_slug", "question_id", "state", "score"}


async def test_every_state_is_named_as_everywhere_else(engine: AsyncEngine) -> None:
    """A reader of the list and a listener are told the same word, whatever became of the answer."""
    unpublished = await submitted(engine, question_id="other")
    await committed(engine, publish)
    waiting, scoring, failed, scored = [await submitted(engine) for _ in range(4)]
    await committed(engine, lambda conn: lease(conn, scoring))
    await committed(engine, lambda conn: bury(conn, failed))
    await committed(engine, lambda conn: settle(conn, scored))
    page = Page()

    async with feeding(engine) as feed, listening(feed, page):
        listed = await committed(engine, lambda conn: get_responses(conn, user_id=1))

    states = {row["response_id"]: row["scoring_state"] for row in listed}
    assert {answer: page.state(answer) for answer in states} == states
    assert set(states.values()) == {"unpublished", "waiting", "scoring", "failed", "scored"}
    assert {unpublished, waiting} < states.keys()


async def test_a_dead_answer_that_is_retried_waits_again(engine: AsyncEngine) -> None:
    """What failed is watched on: a person may act."""
    await committed(engine, publish)
    answer = await submitted(engine)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        await committed(engine, lambda conn: bury(conn, answer))
        await shows(page, listener, {answer: "failed"})
        await committed(engine, lambda conn: retry_dead(conn, response_ids=[answer]))
        await shows(page, listener, {answer: "waiting"})


async def test_a_rescore_brings_the_new_score_of_an_old_answer(engine: AsyncEngine) -> None:
    """An answer that nobody watches any more, and that is none of the newest, is told about again."""
    digest = await committed(engine, publish)
    old = await submitted(engine)
    await committed(engine, lambda conn: settle(conn, old, 2.0))
    others = [await submitted(engine) for _ in range(3)]
    page = Page()
    newest = FeedSettings(look_seconds=0.02, newest=1)
    async with feeding(engine, newest) as feed, listening(feed, page) as listener:
        assert page.state(old) is None
        await committed(engine, lambda conn: publish(conn, rubric="Another one."))
        await committed(engine, lambda conn: rescore_responses(conn, response_ids=[old]))
        await shows(page, listener, {old: "waiting"})
        await committed(engine, lambda conn: settle(conn, old, 5.0))
        await shows(page, listener, {old: "scored"})
    assert page.score(old) == 5.0
    assert digest
    assert {page.state(other) for other in others} == {"waiting"}


async def test_nobody_is_told_about_another_s_answers(engine: AsyncEngine) -> None:
    """Neither at the beginning nor later, for users and tokens alike."""
    await committed(engine, publish)
    ours, theirs = token(), token()
    pages = {who: Page(who) for who in (ADA, Owner(2, None), Owner(None, ours), Owner(None, theirs))}
    before = {who: await submitted(engine, **owned(who)) for who in pages}
    async with feeding(engine) as feed:
        listeners = {who: feed.listen(who) for who in pages}
        after = {who: await submitted(engine, **owned(who)) for who in pages}
        for who in pages:
            await committed(engine, partial(settle, response_id=before[who]))
        for who, page in pages.items():
            await shows(page, listeners[who], {before[who]: "scored", after[who]: "waiting"})
            assert page.shown.keys() == {before[who], after[who]}


def owned(owner: Owner) -> dict[str, object]:
    return (
        {"user_id": owner.user_id}
        if owner.user_id is not None
        else {"anonymous_token": owner.anonymous_token}
    )


@pytest.mark.parametrize("in_doubt", [True, False])
async def test_a_claim_that_is_applied_while_he_listens_brings_the_answers(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, *, in_doubt: bool
) -> None:
    """They become his with all that has come before; whoever still has the token is told no more.

    Also when the first doubt is over, and cursors are as young as they can be.
    """
    if not in_doubt:
        monkeypatch.setattr(look, "SETTLING_SECONDS", 0.0)
    await committed(engine, publish)
    secret = token()
    scored, waiting = [
        await submitted(engine, anonymous_token=secret, question_id=name) for name in ("a", "b")
    ]
    await committed(engine, lambda conn: publish(conn, question_id="a"))
    await committed(engine, lambda conn: publish(conn, question_id="b"))
    await committed(engine, lambda conn: settle(conn, scored))
    before = await committed(engine, lambda conn: request_claim(conn, anonymous_token=secret, user_id=1))
    page, left = Page(), Page(Owner(None, secret))

    async with feeding(engine) as feed, listening(feed, page) as listener, listening(feed, left) as leaving:
        assert page.shown == {}
        if not in_doubt:
            first = page.cursor
            await submitted(engine, user_id=2)
            await eventually(lambda: listener.is_current and listener.cursor != first)
        assert await committed(engine, lambda conn: apply_claim(conn, before))
        await shows(page, listener, {scored: "scored", waiting: "waiting"})
        left.take(leaving)
        told = len(left.told)
        await committed(engine, lambda conn: settle(conn, waiting))
        await shows(page, listener, {waiting: "scored"})
        left.take(leaving)
        assert left.told[told:] == []


async def test_a_claim_applied_while_nobody_listened_is_told_to_who_comes_back(engine: AsyncEngine) -> None:
    """Answers that have become his since his cursor are among what he missed, also those scored long before."""
    await committed(engine, publish)
    secret = token()
    answer = await submitted(engine, anonymous_token=secret)
    await committed(engine, lambda conn: settle(conn, answer))
    page = Page()
    async with feeding(engine) as feed, listening(feed, page):
        pass
    claim = await committed(engine, lambda conn: request_claim(conn, anonymous_token=secret, user_id=1))
    await committed(engine, lambda conn: apply_claim(conn, claim))

    async with feeding(engine) as feed, listening(feed, page):
        assert page.shown.keys() == {answer}


async def test_erased_answers_are_watched_no_more(engine: AsyncEngine) -> None:
    """Erasure disturbs nobody, and nothing is told about what is gone."""
    await committed(engine, publish)
    answer = await submitted(engine)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        told = len(page.told)
        await committed(engine, lambda conn: erase_responses(conn, user_id=1))
        await eventually(lambda: not feed._groups[ADA].watched)
        page.take(listener)
        assert page.told[told:] == []
        later = await submitted(engine)
        await shows(page, listener, {later: "waiting"})
    assert answer in page.shown


async def test_a_slow_reader_gets_the_newest_state_once(engine: AsyncEngine) -> None:
    """What he has not taken is replaced, so that he costs one event for each answer, however long he sleeps."""
    await committed(engine, publish)
    answer = await submitted(engine)
    slow, quick = Page(), Page()
    async with feeding(engine) as feed, listening(feed, slow) as sleeper, listening(feed, quick) as awake:
        for number in range(5):
            await committed(engine, lambda conn: bury(conn, answer))
            await shows(quick, awake, {answer: "failed"})
            await committed(engine, lambda conn: retry_dead(conn, response_ids=[answer]))
            await shows(quick, awake, {answer: "waiting"})
            assert len(sleeper._pending) == 1, number
        told = len(slow.told)
        slow.take(sleeper)
        assert slow.told[told:] == [answer]


@pytest.mark.parametrize("is_ahead", [False, True])
async def test_who_has_no_cursor_of_this_database_is_told_how_all_stands(
    engine: AsyncEngine, *, is_ahead: bool
) -> None:
    """None, or one that this server cannot have given: the newest, and all not scored."""
    cursor = Cursor(2**62, await lineage(engine)) if is_ahead else None
    await committed(engine, publish)
    oldest, *others = [await submitted(engine) for _ in range(4)]
    for answer in others:
        await committed(engine, partial(settle, response_id=answer))
    page = Page(cursor=cursor)

    async with feeding(engine, FeedSettings(look_seconds=0.02, newest=2)) as feed, listening(feed, page):
        assert page.shown.keys() == {oldest, *others[-2:]}
        assert page.cursor is not None
        assert page.cursor.transaction < 2**62


@pytest.mark.parametrize("ahead", [0, 2**62])
async def test_who_comes_from_another_line_misses_nothing(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """A server that took over gives transaction ids anew: what was scored below the cursor is told all the same.

    As far back as a standby may lack something, and no further.
    """
    monkeypatch.setattr(look, "LOST_TRANSACTIONS", 20)
    await committed(engine, publish)
    old, lost = [await submitted(engine) for _ in range(2)]
    await committed(engine, partial(settle, response_id=old))
    for _ in range(25):
        await committed(engine, lambda conn: conn.execute(text("SELECT pg_current_xact_id()")))
    await committed(engine, partial(settle, response_id=lost))
    page, here = Page(), await lineage(engine)

    async with feeding(engine, FeedSettings(look_seconds=0.02, newest=0)) as feed:
        async with listening(feed, page):
            assert page.told == []
            assert page.cursor is not None
            assert page.cursor.lineage == here
        position = page.cursor.transaction
        page.cursor = Cursor(position + ahead, here ^ 1)
        async with listening(feed, page):
            assert page.shown.keys() == {lost}
            assert page.cursor >= Cursor(position, here)


async def test_a_server_that_does_not_say_its_line_is_read_all_the_same(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every server shows what we ask for; readers come back as if there were one line only."""
    monkeypatch.setattr(storage_feed, "_LINEAGE", text("SELECT no_such_function()"))
    await committed(engine, publish)
    answer = await submitted(engine)
    page = Page()

    async with feeding(engine) as feed:
        async with listening(feed, page) as listener:
            await shows(page, listener, {answer: "waiting"})
            await committed(engine, partial(settle, response_id=answer))
            await shows(page, listener, {answer: "scored"})
        assert page.cursor is not None
        assert page.cursor.lineage == 0


async def lineage(engine: AsyncEngine) -> int:
    return lineage_of(await committed(engine, read_lineage))


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "x",
        "-1",
        "0",
        "1.5",
        " 1",
        "٣",
        "9" * 19,
        "1" * 5000,
        "1\x00",
        "1-",
        "1-0000FFFF",
        "1-123456789",
    ],
)
def test_a_malformed_cursor_is_none(given: str | None) -> None:
    """Nothing that a client sends is an error, or reaches a statement."""
    assert parse_cursor(given) is None
    assert parse_cursor("123-0000ffff") == Cursor(123, 65535)
    assert str(Cursor(123, 65535)) == "123-0000ffff"
    assert parse_cursor("123") == Cursor(123, 0)  # as of a process of an older version


async def test_a_thousand_listeners_share_one_connection(engine: AsyncEngine) -> None:
    """However many listen, the feed holds one connection; and none once nobody does."""
    await committed(engine, publish)
    held = engine.pool.checkedout()  # type: ignore[attr-defined]
    async with feeding(engine) as feed:
        listeners = [feed.listen(Owner(None, f"token {number}")) for number in range(1000)]
        await eventually(lambda: all(listener.is_current for listener in listeners))
        assert engine.pool.checkedout() == held + 1  # type: ignore[attr-defined]
        for listener in listeners:
            feed.leave(listener)
        await eventually(lambda: engine.pool.checkedout() == held)  # type: ignore[attr-defined]
        assert (feed._task, feed._groups, feed._waiting) == (None, {}, {})
        page = Page()
        async with listening(feed, page):
            assert page.cursor is not None


async def test_there_are_limits(engine: AsyncEngine) -> None:
    """For one owner, for all together, and after the end."""
    feed = Feed(engine, FeedSettings(per_owner=2, in_total=3))
    first = feed.listen(ADA)
    feed.listen(ADA)
    with pytest.raises(TooManyListenersError) as refused:
        feed.listen(ADA)
    assert refused.value.is_owners
    feed.listen(Owner(2, None))
    with pytest.raises(TooManyListenersError) as refused:
        feed.listen(Owner(3, None))
    assert not refused.value.is_owners
    feed.leave(first)
    last = feed.listen(ADA)

    await feed.close()

    assert last.ended
    with pytest.raises(ProducerClosedError):
        feed.listen(ADA)


async def test_a_lost_connection_costs_nothing_but_time(engine: AsyncEngine) -> None:
    """What was committed while the feed could not see it is told when it can again."""
    await committed(engine, publish)
    answer = await submitted(engine)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        async with engine.begin() as conn:
            # Whoever begins a look while this holds the tables is ended in the middle of it.
            await conn.execute(text("LOCK TABLE assessment_scores IN ACCESS EXCLUSIVE MODE"))
            waits = text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            )
            await eventually(lambda: _any(conn, waits))
            await settle(conn, answer)
        later = await submitted(engine)
        await shows(page, listener, {answer: "scored", later: "waiting"})


async def test_an_outage_may_last_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the feed has failed, it tries again: else its streams were silent until the next deployment."""
    monkeypatch.setattr("producers.feed.feed.MAX_PAUSE_SECONDS", 0.01)
    engine = create_engine(f"postgresql+asyncpg://127.0.0.1:{free_port()}/nothing")
    async with feeding(engine) as feed:
        feed.listen(ADA)
        feed._failures = so_far = 5_000
        await eventually(lambda: feed._failures > so_far + 2)
        assert feed._task is not None
        assert not feed._task.done()
    await engine.dispose()


async def _any(conn: AsyncConnection, query: object) -> bool:
    return bool((await conn.execute(query)).all())  # type: ignore[call-overload]


async def test_a_reader_that_is_cancelled_leaves_nothing(engine: AsyncEngine) -> None:
    """Waiting has an end, and a cancelled wait loses no event."""
    page = Page()
    async with feeding(engine, QUICK) as feed, listening(feed, page) as listener:
        page.take(listener)
        assert not await listener.wait(0)
        waiting = asyncio.create_task(listener.wait(60))
        await asyncio.sleep(0)
        waiting.cancel()
        await committed(engine, publish)
        answer = await submitted(engine)
        await shows(page, listener, {answer: "waiting"})


@pytest.mark.parametrize("data", [{"overall_score": 1, "dimensions": [1]}, {"dimensions": 5}])
async def test_what_cannot_be_shown_holds_up_nobody(engine: AsyncEngine, data: dict[str, Any]) -> None:
    """A score that is none is left out, and everybody else is told as before."""
    await committed(engine, publish)
    answer = await submitted(engine)
    handoff = await committed(engine, partial(handoff_of, response_id=answer))
    assert handoff is not None
    broken = Settlement(handoff["handoff_id"], handoff["created_at"], "m", "p", data)
    page = Page()
    async with feeding(engine) as feed, listening(feed, page) as listener:
        await committed(engine, lambda conn: settle_handoffs(conn, [broken]))
        later = await submitted(engine)
        await shows(page, listener, {later: "waiting"})
    assert page.state(answer) == "waiting"
