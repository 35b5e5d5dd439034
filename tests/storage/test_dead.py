from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import InvalidInputError, StorageUnavailableError, dead, get_responses, submit_responses
from storage.dead import (
    dismiss_dead,
    list_dead,
    newest_dead,
    rescore_responses,
    retry_dead,
    retry_next_dead,
)
from storage.settlements import MAX_REASON_CHARS, postpone_handoffs, settle_handoffs
from tests.factories import (
    bury,
    change_handoff,
    count,
    handoff_of,
    lease,
    publish,
    release,
    scores_of,
    settlement,
    submission,
    submit,
)
from tests.races import blocked, committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def submitted(conn: AsyncConnection, number: int) -> list[int]:
    await publish(conn)
    return [row["response_id"] for row in await submit_responses(conn, [submission()] * number)]


async def handoff(conn: AsyncConnection, response_id: int) -> dict[str, Any]:
    found = await handoff_of(conn, response_id)
    assert found is not None
    return found


async def scored(conn: AsyncConnection) -> int:
    [response_id] = await submitted(conn, 1)
    [held] = await lease(conn, response_id)
    await settle_handoffs(conn, [settlement(held)])
    return response_id


async def test_the_list_shows_what_a_person_needs_and_no_answer(conn: AsyncConnection) -> None:
    """Question, counters and reason; never what the student wrote."""
    alive, dead = await submitted(conn, 2)
    await bury(conn, dead, reason="refused by the model")

    [listed] = await list_dead(conn)

    expected = await handoff(conn, dead)
    assert listed.pop("submitted_at") is not None
    assert listed.pop("last_error_at") == expected["last_error_at"]
    assert listed == {
        "handoff_id": expected["handoff_id"],
        "response_id": dead,
        "state": "dead",
        "lane": "live",
        "module_slug": "biology",
        "question_id": "photosynthesis",
        "question_digest": expected["question_digest"],
        "attempts": 1,
        "postponements": 0,
        "lease_losses": 0,
        "last_error": "refused by the model",
    }
    assert await list_dead(conn, response_id=alive) == []


async def test_the_list_comes_in_pages(conn: AsyncConnection) -> None:
    """Oldest first, without gaps or repeats; the dismissed only where they are asked for."""
    ids = await submitted(conn, 7)
    for response_id in ids:
        await bury(conn, response_id)
    await dismiss_dead(conn, response_ids=[ids[3]], dismissed_by="ops")
    seen: list[int] = []
    after = 0
    while page := await list_dead(conn, after_handoff_id=after, limit=2):
        seen += [row["response_id"] for row in page]
        after = page[-1]["handoff_id"]

    assert seen == [*ids[:3], *ids[4:]]
    everything = await list_dead(conn, include_dismissed=True)
    assert [row["response_id"] for row in everything] == ids
    [one] = await list_dead(conn, include_dismissed=True, response_id=ids[3])
    assert one["state"] == "dismissed"


async def test_a_retry_holds_nothing_against_the_answer(conn: AsyncConnection) -> None:
    """Every counter is at zero again, and it is due at once; the old reason stays to be read."""
    dead, other = await submitted(conn, 2)
    for response_id in (dead, other):
        await bury(conn, response_id, reason="refused")
    await change_handoff(conn, dead, attempts=5, postponements=9, suspicions=4, lease_losses=10)

    assert await retry_dead(conn, response_ids=[dead]) == [dead]

    revived = await handoff(conn, dead)
    assert [revived[name] for name in ("attempts", "postponements", "suspicions", "lease_losses")] == [0] * 4
    assert (revived["state"], revived["last_error"]) == ("open", "refused")
    assert len(await lease(conn, dead, other)) == 1


async def test_retry_all_that_died_of_one_cause(conn: AsyncConnection) -> None:
    """The reason is compared literally, so a wildcard in it means itself; the dismissed stay dismissed."""
    quota, percent, other, dismissed, alive = await submitted(conn, 5)
    await bury(conn, quota, reason="the quota is used up")
    await bury(conn, percent, reason="100% of the quota")
    await bury(conn, other, reason="refused")
    await bury(conn, dismissed, reason="the quota is used up")
    await dismiss_dead(conn, response_ids=[dismissed], dismissed_by="ops")

    assert await retry_dead(conn, reason="%quota") == []
    assert await retry_dead(conn, reason="100%") == [percent]
    assert await retry_dead(conn, reason="quota") == [quota]
    assert await retry_dead(conn) == [other]
    assert await retry_dead(conn) == []
    assert (await handoff(conn, dismissed))["state"] == "dismissed"
    assert (await handoff(conn, alive))["state"] == "open"


async def test_all_are_retried_in_parts(conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part goes on where the one before ended, also past those of another reason; the newer dead are left alone."""
    monkeypatch.setattr(dead, "RETRY_PART", 2)
    ids = await submitted(conn, 6)
    for response_id, reason in zip(ids[:5], ("key", "quota", "quota", "key", "quota"), strict=True):
        await bury(conn, response_id, reason=reason)
    until = await newest_dead(conn)
    await bury(conn, ids[5], reason="quota")
    after: int | None = 0
    parts = []

    while after is not None:
        after, revived = await retry_next_dead(
            conn, after_handoff_id=after, until_handoff_id=until, reason="quota"
        )
        parts.append(revived)
        if revived == [ids[1]]:  # dies again while the rest is retried
            await bury(conn, ids[1], reason="quota")

    assert parts == [[ids[1]], [ids[2]], [ids[4]], []]
    states = [(await handoff(conn, response_id))["state"] for response_id in ids]
    assert states == ["dead", "dead", "open", "dead", "open", "dead"]


async def test_none_is_retried_where_none_is_dead(conn: AsyncConnection) -> None:
    """There is no end to go to, and no part to do."""
    await submitted(conn, 1)

    assert await newest_dead(conn) == 0
    assert await retry_next_dead(conn, after_handoff_id=0, until_handoff_id=0) == (None, [])


async def test_what_is_named_is_retried_even_if_dismissed(conn: AsyncConnection) -> None:
    """Whoever names an answer means it; naming none means none, and the living are left alone."""
    dismissed, alive = await submitted(conn, 2)
    await bury(conn, dismissed)
    await dismiss_dead(conn, response_ids=[dismissed], dismissed_by="ops")

    assert await retry_dead(conn, response_ids=[]) == []
    assert await retry_dead(conn, response_ids=[dismissed, alive, 10**9]) == [dismissed]
    assert await retry_dead(conn, response_ids=[dismissed], reason="another") == []


async def test_a_retry_without_a_question_waits_for_it(conn: AsyncConnection) -> None:
    """An answer whose question is not published becomes unpublished again, not due."""
    response_id = (await submit(conn))["response_id"]
    await change_handoff(conn, response_id, state="dead", last_error="hopeless")

    assert await retry_dead(conn, response_ids=[response_id]) == [response_id]

    assert await lease(conn, response_id) == []
    [row] = await get_responses(conn, user_id=1)
    assert row["scoring_state"] == "unpublished"


async def test_a_dismissal_is_signed(conn: AsyncConnection) -> None:
    """Who dismissed it is kept with the reason; the answer stays unscored and leaves the list."""
    dead, alive = await submitted(conn, 2)
    await bury(conn, dead, reason="refused")

    assert await dismiss_dead(conn, response_ids=[dead, alive, 10**9], dismissed_by="Ada") == [dead]
    assert await dismiss_dead(conn, response_ids=[dead], dismissed_by="Bob") == []

    after = await handoff(conn, dead)
    assert (after["state"], after["last_error"]) == ("dismissed", "refused (dismissed by Ada)")
    assert await list_dead(conn) == []
    assert await lease(conn, dead) == []


async def test_a_long_reason_keeps_its_size_when_dismissed(conn: AsyncConnection) -> None:
    """The note is part of the limited reason, and the part that stays: who decided is not cut off."""
    [dead] = await submitted(conn, 1)
    await bury(conn, dead, reason="x" * MAX_REASON_CHARS)

    assert await dismiss_dead(conn, response_ids=[dead], dismissed_by="Ada") == [dead]

    kept = (await handoff(conn, dead))["last_error"]
    assert len(kept) == MAX_REASON_CHARS
    assert kept.endswith("x (dismissed by Ada)")


@pytest.mark.parametrize("name", ["", " ", "a\x00", "x" * MAX_REASON_CHARS])
async def test_nobody_dismisses_anonymously(conn: AsyncConnection, name: str) -> None:
    """A dismissal needs a name that can be stored."""
    [dead] = await submitted(conn, 1)
    await bury(conn, dead)

    with pytest.raises(InvalidInputError) as refusal:
        await dismiss_dead(conn, response_ids=[dead], dismissed_by=name)

    assert refusal.value.field == "dismissed_by"


async def test_a_scored_answer_is_scored_again(conn: AsyncConnection) -> None:
    """A rescore is a new handoff in the bulk lane, against what is published now; the old score stays."""
    response_id = await scored(conn)
    [before] = await scores_of(conn, response_id)
    digest = await publish(conn, rubric="better")

    assert await rescore_responses(conn, response_ids=[response_id]) == [response_id]

    outstanding = await handoff(conn, response_id)
    assert (outstanding["lane"], outstanding["question_digest"]) == ("bulk", digest)
    assert outstanding["handoff_id"] != before["handoff_id"]
    [held] = await lease(conn, response_id)
    await settle_handoffs(conn, [settlement(held, model_id="new")])
    assert [score["model_id"] for score in await scores_of(conn, response_id)] == ["test-model", "new"]


async def test_a_rescore_may_go_first(conn: AsyncConnection) -> None:
    """In the live lane it is served as an answer that was just submitted."""
    response_id = await scored(conn)

    await rescore_responses(conn, response_ids=[response_id], lane="live")

    assert (await handoff(conn, response_id))["lane"] == "live"


async def test_no_such_lane(conn: AsyncConnection) -> None:
    """A lane that no worker serves is refused."""
    with pytest.raises(InvalidInputError, match="lane: expected live or bulk"):
        await rescore_responses(conn, response_ids=[1], lane="fast")


async def test_a_rescore_of_what_is_outstanding_changes_nothing(conn: AsyncConnection) -> None:
    """An answer that still waits for its score against the same question gets one score, not two."""
    waiting, leased = await submitted(conn, 2)
    await lease(conn, leased)
    before = [await handoff(conn, response_id) for response_id in (waiting, leased)]

    assert await rescore_responses(conn, response_ids=[waiting, leased]) == []

    assert [await handoff(conn, response_id) for response_id in (waiting, leased)] == before


async def test_a_rescore_against_another_question_replaces_the_handoff(conn: AsyncConnection) -> None:
    """A new identity and nothing held against it; whoever waits live is not sent to the back of the bulk."""
    [response_id] = await submitted(conn, 1)
    [held] = await lease(conn, response_id)
    await postpone_handoffs(conn, [release(held, reason="503", suspicious=True)])
    await change_handoff(conn, response_id, attempts=2, lease_losses=3)
    digest = await publish(conn, rubric="better")

    assert await rescore_responses(conn, response_ids=[response_id]) == [response_id]

    after = await handoff(conn, response_id)
    assert after["handoff_id"] != held["handoff_id"]
    assert (after["question_digest"], after["lane"], after["lease_token"]) == (digest, "live", None)
    assert [after[name] for name in ("attempts", "postponements", "suspicions", "lease_losses")] == [0] * 4
    assert len(await lease(conn, response_id)) == 1
    assert await count(conn, "scoring_handoffs") == 1


@pytest.mark.parametrize("dismissed", [False, True], ids=["dead", "dismissed"])
async def test_a_rescore_revives_the_dead(conn: AsyncConnection, dismissed: bool) -> None:  # noqa: FBT001
    """Also against the same question: asking for a score is a reason to try again."""
    [response_id] = await submitted(conn, 1)
    await bury(conn, response_id)
    before = await handoff(conn, response_id)
    if dismissed:
        await dismiss_dead(conn, response_ids=[response_id], dismissed_by="ops")

    assert await rescore_responses(conn, response_ids=[response_id]) == [response_id]

    after = await handoff(conn, response_id)
    assert (after["state"], after["attempts"], after["lane"]) == ("open", 0, "bulk")
    assert after["handoff_id"] != before["handoff_id"]
    assert len(await lease(conn, response_id)) == 1


async def test_a_rescore_without_a_question(conn: AsyncConnection) -> None:
    """What was never published is left alone, and so is what does not exist."""
    response_id = (await submit(conn))["response_id"]
    before = await handoff(conn, response_id)

    assert await rescore_responses(conn, response_ids=[response_id, 10**9]) == []
    assert await rescore_responses(conn, response_ids=[]) == []

    assert await handoff(conn, response_id) == before


@pytest.mark.commits
async def test_a_rescore_waits_for_the_score_that_is_being_written(engine: AsyncEngine) -> None:
    """The answer gets the old score, and then a new handoff: neither is lost."""
    [response_id] = await committed(engine, partial(submitted, number=1))
    await committed(engine, partial(publish, rubric="better"))
    [held] = await committed(engine, lambda conn: lease(conn, response_id))
    async with engine.connect() as worker:
        assert await settle_handoffs(worker, [settlement(held)])
        async with blocked(engine, partial(rescore_responses, response_ids=[response_id])) as rescore:
            await worker.commit()
        assert await rescore == [response_id]

    async with engine.connect() as conn:
        assert len(await scores_of(conn, response_id)) == 1
        assert (await handoff(conn, response_id))["lane"] == "bulk"


@pytest.mark.commits
async def test_a_rescore_of_what_is_being_erased(engine: AsyncEngine) -> None:
    """It fails as a whole and may be tried again: then the erased one is left alone."""
    erased = await committed(engine, scored)
    kept = await committed(engine, scored)
    both = partial(rescore_responses, response_ids=[erased, kept])
    async with engine.connect() as ops:
        for table in ("assessment_scores", "assessment_responses"):
            await ops.execute(text(f"DELETE FROM {table} WHERE response_id = :id"), {"id": erased})
        async with blocked(engine, both) as rescore:
            await ops.commit()
        with pytest.raises(StorageUnavailableError):
            await rescore

    assert await committed(engine, both) == [kept]
