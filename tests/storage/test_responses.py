from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from storage import (
    InvalidInputError,
    get_response,
    get_responses,
    get_responses_for_question,
    get_scores,
    submit_responses,
)
from storage.dead import dismiss_dead, rescore_responses
from storage.settlements import settle_handoffs
from tests.factories import bury, handoff_of, lease, make_overdue, publish, settlement, submission, submit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

OWNERS = [
    pytest.param({"user_id": 5}, id="user"),
    pytest.param({"anonymous_token": "five"}, id="anonymous"),
]
NOT_ONE_IDENTITY = [
    pytest.param({}, id="neither"),
    pytest.param({"user_id": 5, "anonymous_token": "five"}, id="both"),
]


async def score(conn: AsyncConnection, response_id: int, overall_score: float) -> int:
    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    [settled] = await settle_handoffs(conn, [settlement(handoff, overall_score=overall_score)])
    return int(settled["score_id"])


@pytest.mark.parametrize("owner", OWNERS)
async def test_an_owner_reads_his_own_answers_newest_first(
    conn: AsyncConnection, owner: dict[str, Any]
) -> None:
    """Nobody else's rows are among them, and each row is what the submit returned and its score."""
    mine = await submit_responses(conn, [submission(**owner) for _ in range(3)])
    await submit_responses(conn, [submission(user_id=6), submission(anonymous_token="six")])

    read = await get_responses(conn, **owner)

    added = {"scoring_state": "unpublished", "score": None}
    assert read == [row | added for row in reversed(mine)]


@pytest.mark.parametrize("owner", OWNERS)
async def test_pages_have_neither_gaps_nor_repeats(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """Answers that arrive between two pages do not shift what is still to be read."""
    expected = [row["response_id"] for row in await submit_responses(conn, [submission(**owner)] * 11)]
    seen: list[int] = []
    before: int | None = None

    for _ in range(5):
        page = await get_responses(conn, **owner, before_response_id=before, limit=3)
        seen += [row["response_id"] for row in page]
        before = seen[-1]
        await submit_responses(conn, [submission(**owner), submission(user_id=6)])

    assert seen == expected[::-1]


async def test_filters_apply_together_and_before_the_limit(conn: AsyncConnection) -> None:
    """A page of one module or question is full as long as there are such answers."""
    places = [("m1", "q1"), ("m1", "q2"), ("m2", "q1")] * 4
    rows = await submit_responses(
        conn, [submission(module_slug=module, question_id=question) for module, question in places]
    )

    def ids(module: str | None, question: str | None) -> list[int]:
        return [
            row["response_id"]
            for row in reversed(rows)
            if module in {None, row["module_slug"]} and question in {None, row["question_id"]}
        ]

    for module in (None, "m1", "m2", "m3"):
        for question in (None, "q1", "q2"):
            page = await get_responses(conn, user_id=1, module_slug=module, question_id=question, limit=3)
            assert [row["response_id"] for row in page] == ids(module, question)[:3]


@pytest.mark.parametrize("owner", OWNERS)
async def test_the_attempts_at_one_question(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """All attempts of one owner, newest first, in pages; the module may be left out."""
    attempts = await submit_responses(conn, [submission(**owner, question_id="q")] * 3)
    elsewhere = await submit(conn, **owner, question_id="q", module_slug="elsewhere")
    await submit(conn, **owner, question_id="other")
    await submit(conn, user_id=6, question_id="q")
    ids = [row["response_id"] for row in reversed(attempts)]

    everywhere = await get_responses_for_question(conn, **owner, question_id="q")
    here = await get_responses_for_question(conn, **owner, question_id="q", module_slug="biology")
    page = await get_responses_for_question(
        conn, **owner, question_id="q", module_slug="biology", before_response_id=ids[0], limit=1
    )

    assert [row["response_id"] for row in everywhere] == [elsewhere["response_id"], *ids]
    assert [row["response_id"] for row in here] == ids
    assert [row["response_id"] for row in page] == ids[1:2]


async def test_what_a_student_is_told_about_scoring(conn: AsyncConnection) -> None:
    """Each state of a handoff has one word, and a lease that ran out is waiting again."""
    await publish(conn)
    names = ("waiting", "scoring", "ran out", "dead", "dismissed", "scored", "unpublished")
    ids = {
        name: (await submit(conn, question_id="unheard-of") if name == "unpublished" else await submit(conn))[
            "response_id"
        ]
        for name in names
    }
    await lease(conn, ids["scoring"], ids["ran out"])
    await make_overdue(conn, ids["ran out"])
    await bury(conn, ids["dead"])
    await bury(conn, ids["dismissed"])
    await dismiss_dead(conn, response_ids=[ids["dismissed"]], dismissed_by="ops")
    await score(conn, ids["scored"], 4.0)

    states = {row["response_id"]: row["scoring_state"] for row in await get_responses(conn, user_id=1)}

    assert {name: states[response_id] for name, response_id in ids.items()} == {
        "waiting": "waiting",
        "scoring": "scoring",
        "ran out": "waiting",
        "dead": "failed",
        "dismissed": "failed",
        "scored": "scored",
        "unpublished": "unpublished",
    }


async def test_the_current_score_is_the_newest(conn: AsyncConnection) -> None:
    """After a rescore the new score is shown; while it is awaited, the old one stays."""
    first_digest = await publish(conn, rubric="first")
    response_id = (await submit(conn))["response_id"]
    first = await score(conn, response_id, 2.0)
    second_digest = await publish(conn, rubric="second")
    await rescore_responses(conn, response_ids=[response_id])

    [meanwhile] = await get_responses(conn, user_id=1)
    second = await score(conn, response_id, 3.0)
    [finally_] = await get_responses(conn, user_id=1)

    assert (meanwhile["scoring_state"], meanwhile["score"]["score_id"]) == ("waiting", first)
    assert meanwhile["score"]["question_digest"] == first_digest
    assert finally_["scoring_state"] == "scored"
    created = finally_["score"].pop("created_at")
    assert created is not None
    assert finally_["score"] == {
        "score_id": second,
        "score_data": {"overall_score": 3.0, "reasoning": "Names both."},
        "model_id": "test-model",
        "prompt_version": "test-1",
        "question_digest": second_digest,
        "picked_up_at": None,  # it was never leased
        "scale_min": 1.0,
        "scale_max": 5.0,
    }
    # What the student was asked does not change with the score.
    assert finally_["question_digest"] == first_digest


@pytest.mark.parametrize("owner", OWNERS)
async def test_all_scores_of_one_response(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """Newest first; nothing for anybody but the owner, and nothing for a response that does not exist."""
    await publish(conn)
    response_id = (await submit(conn, **owner))["response_id"]
    ids = [await score(conn, response_id, 1.0)]
    await rescore_responses(conn, response_ids=[response_id])
    ids.append(await score(conn, response_id, 2.0))

    read = await get_scores(conn, response_id=response_id, **owner)

    assert [row["score_id"] for row in read] == ids[::-1]
    assert [row["score_data"]["overall_score"] for row in read] == [2.0, 1.0]
    for stranger in ({"user_id": 6}, {"anonymous_token": "six"}, {"anonymous_token": "5"}):
        assert await get_scores(conn, response_id=response_id, **stranger) == []
    assert await get_scores(conn, response_id=response_id + 1, **owner) == []


@pytest.mark.parametrize("identity", NOT_ONE_IDENTITY)
async def test_reading_needs_exactly_one_identity(conn: AsyncConnection, identity: dict[str, Any]) -> None:
    """Whoever gives no identity, or two, gets an error and never everybody's rows."""
    with pytest.raises(InvalidInputError, match="exactly one of user_id and anonymous_token"):
        await get_responses(conn, **identity)
    with pytest.raises(InvalidInputError, match="exactly one of user_id and anonymous_token"):
        await get_responses_for_question(conn, **identity, question_id="q")
    with pytest.raises(InvalidInputError, match="exactly one of user_id and anonymous_token"):
        await get_scores(conn, **identity, response_id=1)


@pytest.mark.parametrize("limit", [-1, 0, 1001])
async def test_a_page_has_a_bounded_size(conn: AsyncConnection, limit: int) -> None:
    """A limit out of range is refused, so that no caller reads a whole table by accident."""
    with pytest.raises(InvalidInputError, match="limit: expected a number from 1 to 1000"):
        await get_responses(conn, user_id=1, limit=limit)


async def test_a_number_beyond_every_id_is_refused(conn: AsyncConnection) -> None:
    """A response id from a URL may be any number: one that PostgreSQL cannot hold is bad input, not a crash."""
    with pytest.raises(InvalidInputError):
        await get_scores(conn, response_id=2**64, user_id=1)
    with pytest.raises(InvalidInputError):
        await get_responses(conn, before_response_id=2**64, user_id=1)
    with pytest.raises(InvalidInputError):
        await get_responses(conn, module_slug="\ud83d", user_id=1)


@pytest.mark.parametrize("owner", OWNERS)
async def test_one_response_is_read_with_all_its_scores(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """It is the row of the list, and beside it every score, the current one first."""
    await publish(conn, scale_max=10.0)
    response_id = (await submit(conn, **owner))["response_id"]
    waiting = await get_response(conn, response_id=response_id, **owner)
    first = await score(conn, response_id, 2.0)
    await publish(conn, rubric="second")
    await rescore_responses(conn, response_ids=[response_id])
    again = await get_response(conn, response_id=response_id, **owner)
    second = await score(conn, response_id, 3.0)

    read = await get_response(conn, response_id=response_id, **owner)
    [listed] = await get_responses(conn, **owner)

    assert waiting is not None
    assert (waiting["scoring_state"], waiting["score"], waiting["scores"]) == ("waiting", None, [])
    assert again is not None
    assert (again["scoring_state"], [row["score_id"] for row in again["scores"]]) == ("waiting", [first])
    assert read is not None
    scores = read.pop("scores")
    assert read == listed
    assert [(row["score_id"], row["scale_max"]) for row in scores] == [(second, 5.0), (first, 10.0)]
    assert scores[0] == read["score"]


async def test_nobody_reads_the_response_of_somebody_else(conn: AsyncConnection) -> None:
    """It looks as if it did not exist."""
    users = (await submit(conn, user_id=6))["response_id"]
    anonymous = (await submit(conn, anonymous_token="six"))["response_id"]

    for owner in ({"user_id": 5}, {"anonymous_token": "five"}):
        for response_id in (users, anonymous, 2**62):
            assert await get_response(conn, response_id=response_id, **owner) is None
