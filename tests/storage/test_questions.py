from __future__ import annotations

import asyncio
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import InvalidInputError, publish_questions
from storage.questions import get_questions, list_asked_questions
from storage.sweeps import revive_missed
from storage.verification import verify_timeliness
from tests.factories import LEASE_SECONDS, MODULE, count, handoff_of, lease, publish, question, submit
from tests.races import blocked, committed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


async def test_the_digest_is_the_hash_of_the_content(conn: AsyncConnection) -> None:
    """Anybody can compute a question's address: SHA-256 over its canonical JSON."""
    canonical: dict[str, Any] = {
        "dimensions": [],
        "learning_outcome_name": None,
        "module_slug": "m",
        "question_id": "q",
        "question_text": "Wie groß?",
        "reference_answer": None,
        "rubric": "r",
        "scale_max": 5.0,
        "scale_min": 1.0,
    }
    written = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    [published] = await publish_questions(
        conn, [{"module_slug": "m", "question_id": "q", "question_text": "Wie groß?", "rubric": "r"}]
    )

    assert published == {
        "module_slug": "m",
        "question_id": "q",
        "question_digest": hashlib.sha256(written.encode()).hexdigest(),
        "published": True,
    }
    [stored] = await get_questions(conn, [published["question_digest"]])
    assert {name: stored[name] for name in canonical} == canonical


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(question().items())),
        question(scale_min=1, scale_max=5.0),
        question(dimensions=None),
        question(dimensions=()),
        question(reference_answer=None, learning_outcome_name=None),
    ],
    ids=["order", "scale", "no-dimensions", "empty-dimensions", "nothing-optional"],
)
async def test_equal_content_has_one_digest(conn: AsyncConnection, same: dict[str, Any]) -> None:
    """However a question is written down, the same content is the same question."""
    digest = await publish(conn)

    [again] = await publish_questions(conn, [same])

    assert (again["question_digest"], again["published"]) == (digest, False)
    assert await count(conn, "assessment_questions") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"question_text": "Why?"},
        {"rubric": "Another."},
        {"scale_min": 0},
        {"scale_max": 10},
        {"dimensions": [{"name": "clarity"}]},
        {"reference_answer": "Sugar."},
        {"learning_outcome_name": "Energy"},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_every_field_is_part_of_the_content(conn: AsyncConnection, changes: dict[str, Any]) -> None:
    """Whatever a scorer is shown changes the digest, so a score can be traced to it."""
    assert await publish(conn) != await publish(conn, **changes)
    assert await count(conn, "assessment_questions") == 2


async def test_dimensions_keep_their_order_and_description(conn: AsyncConnection) -> None:
    """Dimensions are stored as given; an empty description is none."""
    digest = await publish(
        conn, dimensions=[{"name": "z", "description": "last"}, {"name": "a", "description": ""}]
    )

    [stored] = await get_questions(conn, [digest])
    assert stored["dimensions"] == [{"name": "z", "description": "last"}, {"name": "a"}]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"scale_min": 5, "scale_max": 1}, "scale_max", id="scale-upside-down"),
        pytest.param({"scale_min": 5, "scale_max": 5}, "scale_max", id="scale-of-one-point"),
        pytest.param({"scale_min": float("nan")}, "scale_min", id="scale-nan"),
        pytest.param({"scale_max": float("inf")}, "scale_max", id="scale-infinite"),
        pytest.param({"scale_max": 10**400}, "scale_max", id="scale-beyond-floats"),
        pytest.param({"scale_min": True}, "scale_min", id="scale-bool"),
        pytest.param({"scale_max": "5"}, "scale_max", id="scale-text"),
        pytest.param({"scale_max": None}, "scale_max", id="scale-none"),
        pytest.param({"module_slug": " "}, "module_slug", id="module-blank"),
        pytest.param({"question_id": "q" * 201}, "question_id", id="question-long"),
        pytest.param({"question_text": ""}, "question_text", id="text-empty"),
        pytest.param({"question_text": "a\x00"}, "question_text", id="text-nul"),
        pytest.param({"rubric": None}, "rubric", id="rubric-none"),
        pytest.param({"rubric": "\ud83d"}, "rubric", id="rubric-surrogate"),
        pytest.param({"rubric": "r" * 100_001}, "rubric", id="rubric-long"),
        pytest.param({"reference_answer": " "}, "reference_answer", id="reference-blank"),
        pytest.param({"learning_outcome_name": 5}, "learning_outcome_name", id="outcome-number"),
        pytest.param({"dimensions": "clarity"}, "dimensions", id="dimensions-text"),
        pytest.param({"dimensions": ["clarity"]}, "dimensions", id="dimension-text"),
        pytest.param({"dimensions": [{"description": "d"}]}, "dimensions", id="dimension-nameless"),
        pytest.param({"dimensions": [{"name": "a", "weight": 2}]}, "dimensions", id="dimension-unknown"),
        pytest.param({"dimensions": [{"name": "a"}] * 2}, "dimensions", id="dimension-twice"),
        pytest.param({"dimensions": [{"name": ""}]}, "dimensions.name", id="dimension-empty"),
        pytest.param(
            {"dimensions": [{"name": "a", "description": 5}]}, "dimensions.description", id="dimension-number"
        ),
        pytest.param({"publication": 1}, "publication", id="unknown-field"),
    ],
)
async def test_a_bad_question_refuses_them_all(
    conn: AsyncConnection, changes: dict[str, Any], field: str
) -> None:
    """A refusal names the field, and nothing of the batch is published."""
    with pytest.raises(InvalidInputError, match="nothing was stored") as refusal:
        await publish_questions(conn, [question(question_id="good"), question(**changes)])

    assert refusal.value.field == field
    assert await count(conn, "assessment_questions") == 0


@pytest.mark.parametrize("name", ["module_slug", "question_id", "question_text", "rubric"])
async def test_what_every_question_needs(conn: AsyncConnection, name: str) -> None:
    """A question that lacks a needed field is refused."""
    given = question()
    del given[name]

    with pytest.raises(InvalidInputError, match=f"{name}: is needed"):
        await publish_questions(conn, [given])


async def test_one_question_twice_in_a_batch_is_refused(conn: AsyncConnection) -> None:
    """Which of two contents would be current? Nobody knows, so neither is published."""
    with pytest.raises(InvalidInputError, match="the same question is given twice"):
        await publish_questions(conn, [question(rubric="a"), question(rubric="b")])

    assert await count(conn, "assessment_questions") == 0


async def test_no_questions_are_no_work(conn: AsyncConnection) -> None:
    """An empty batch publishes nothing and returns nothing."""
    assert await publish_questions(conn, []) == []


async def test_a_batch_comes_back_in_the_order_given(conn: AsyncConnection) -> None:
    """Each result stands where its question stood, and says whether it was news."""
    await publish(conn, question_id="b")

    published = await publish_questions(conn, [question(question_id=name) for name in "cba"])

    assert [(row["question_id"], row["published"]) for row in published] == [
        ("c", True),
        ("b", False),
        ("a", True),
    ]


async def test_publishing_the_old_content_again_makes_it_current(conn: AsyncConnection) -> None:
    """A, then B, then A again: A is current, under its old digest, and is stored once."""
    first = await publish(conn, rubric="A")
    await publish(conn, rubric="B")
    [again] = await publish_questions(conn, [question(rubric="A")])

    assert again == {
        "module_slug": "biology",
        "question_id": "photosynthesis",
        "question_digest": first,
        "published": True,
    }
    assert (await submit(conn))["question_digest"] == first
    assert await count(conn, "assessment_questions") == 2


async def test_publishing_makes_waiting_answers_due(conn: AsyncConnection) -> None:
    """Every answer that waits for the question is due at once, against it; others go on waiting."""
    waiting = [(await submit(conn))["response_id"] for _ in range(3)]
    other = (await submit(conn, question_id="other"))["response_id"]
    elsewhere = (await submit(conn, module_slug="elsewhere"))["response_id"]

    digest = await publish(conn)

    leases = await lease(conn, *waiting, other, elsewhere)
    assert sorted(held["response_id"] for held in leases) == waiting
    assert {held["question_digest"] for held in leases} == {digest}
    # The answer itself is not pinned afterwards: this is not what the student was asked.
    pinned = await conn.execute(text("SELECT count(question_digest) FROM assessment_responses"))
    assert pinned.scalar_one() == 0


async def test_publishing_does_not_touch_what_is_pinned(conn: AsyncConnection) -> None:
    """An answer that was pinned to older content is scored against that, and keeps its place."""
    first = await publish(conn, rubric="first")
    response_id = (await submit(conn))["response_id"]
    before = await handoff_of(conn, response_id)

    await publish(conn, rubric="second")

    after = await handoff_of(conn, response_id)
    assert after == before
    assert after is not None
    assert after["question_digest"] == first


async def test_publishing_what_is_current_still_revives(conn: AsyncConnection) -> None:
    """Publishing again is the way to mend what waits by mistake."""
    response_id = (await submit(conn))["response_id"]
    digest = await publish(conn)
    await conn.execute(
        text(
            "UPDATE scoring_handoffs SET question_digest = NULL, due_at = 'infinity' WHERE response_id = :id"
        ),
        {"id": response_id},
    )

    await publish(conn)

    handoff = await handoff_of(conn, response_id)
    assert handoff is not None
    assert handoff["question_digest"] == digest


@pytest.mark.commits
async def test_two_publications_of_one_content_at_once(engine: AsyncEngine) -> None:
    """The second waits for the first and finds nothing left to do."""
    async with engine.connect() as first:
        [news] = await publish_questions(first, [question()])
        async with blocked(engine, lambda conn: publish_questions(conn, [question()])) as second:
            await first.commit()
        [no_news] = await second

    assert (news["published"], no_news["published"]) == (True, False)


@pytest.mark.commits
async def test_publications_at_once_leave_one_current(engine: AsyncEngine) -> None:
    """Whatever many publishers do at once, no two of them break each other, and the last one is current."""
    rubrics = [f"rubric {number % 3}" for number in range(9)]

    digests = await asyncio.gather(
        *(committed(engine, partial(publish, rubric=rubric)) for rubric in rubrics)
    )

    current = await committed(engine, submit)
    async with engine.connect() as conn:
        last = (
            await conn.execute(
                text("SELECT question_digest FROM assessment_questions ORDER BY publication DESC LIMIT 1")
            )
        ).scalar_one()
        assert await count(conn, "assessment_questions") == 3
    assert current["question_digest"] == last
    assert len(set(digests)) == 3


@pytest.mark.commits
async def test_a_submit_that_missed_the_publication_is_revived(engine: AsyncEngine) -> None:
    """Neither statement sees the other's rows: the sweep finds the handoff, and verify shows it until then."""
    async with engine.connect() as student:
        row = await submit(student)
        digest = await committed(engine, publish)
        await student.commit()

    async with engine.connect() as conn:
        broken = await verify_timeliness(conn, lease_seconds=LEASE_SECONDS, sweep_seconds=0)
        assert broken["missed_publication"] == [row["response_id"]]
        assert await revive_missed(conn) == (1, 0)
        mended = await verify_timeliness(conn, lease_seconds=LEASE_SECONDS, sweep_seconds=0)
        assert mended["missed_publication"] == []
        [held] = await lease(conn, row["response_id"])
    assert held["question_digest"] == digest


async def test_students_are_shown_what_is_asked_now_and_nothing_that_helps_to_answer(
    conn: AsyncConnection,
) -> None:
    """Of each question its current content, in the order of publication, without rubric and reference answer."""
    await publish(conn, question_id="first", question_text="Old?", reference_answer="Because.")
    await publish(conn, question_id="second", question_text="Second?")
    await publish(
        conn, question_id="first", question_text="New?", scale_max=10, learning_outcome_name="Knows"
    )

    asked = await list_asked_questions(conn)

    assert [(row["question_id"], row["question_text"]) for row in asked] == [
        ("second", "Second?"),
        ("first", "New?"),
    ]
    assert asked[1] == {
        "module_slug": MODULE,
        "question_id": "first",
        "question_text": "New?",
        "scale_min": 1.0,
        "scale_max": 10.0,
        "learning_outcome_name": "Knows",
    }
