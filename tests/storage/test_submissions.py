from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text

from storage import (
    InvalidInputError,
    SubmissionKeyConflictError,
    UnknownUserError,
    claim_assessment_responses,
    submit_response,
    submit_responses,
)
from storage.limits import DEFAULT_MAX_ANSWER_CHARS, MAX_KEY_CHARS, MAX_METADATA_BYTES
from tests.factories import count, handoff_of, publish, submission, submit, token
from tests.races import blocked, committed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

TOO_LONG_KEY = "x" * (MAX_KEY_CHARS + 1)
SURROGATE = "half a pair: \ud83d"


def circular() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    return circle


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"": inner}
    return inner


@pytest.fixture
def statements(conn: AsyncConnection) -> Iterator[list[str]]:
    """Every statement that was sent on the connection, in order."""
    sent: list[str] = []

    def remember(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(conn.sync_connection, "before_cursor_execute", remember)
    yield sent
    event.remove(conn.sync_connection, "before_cursor_execute", remember)


async def test_an_answer_is_stored_with_its_handoff(conn: AsyncConnection) -> None:
    """A submit returns the stored row, and leaves a handoff that is due at once."""
    digest = await publish(conn)
    key = uuid4()

    row = await submit(
        conn,
        user_id=7,
        learning_outcome_id="LO-1",
        content_id=UUID(int=5),
        answer_text="Sugar from light.",
        answer_metadata={"seconds": 31},
        submission_key=key,
    )

    assert isinstance(row.pop("response_id"), int)
    assert row.pop("created_at") <= datetime.now(UTC)
    assert row == {
        "user_id": 7,
        "anonymous_token": None,
        "module_slug": "biology",
        "question_id": "photosynthesis",
        "learning_outcome_id": "LO-1",
        "content_id": str(UUID(int=5)),
        "answer_text": "Sugar from light.",
        "answer_metadata": {"seconds": 31},
        "submission_key": key,
        "question_digest": digest,
    }
    due = (await conn.execute(text("SELECT due_at <= statement_timestamp() FROM scoring_handoffs"))).scalars()
    assert due.all() == [True]


async def test_the_plan_of_a_single_submit_is_kept(conn: AsyncConnection) -> None:
    """PostgreSQL plans the statement five times and then no more: that is a third of its time for the answer."""
    await publish(conn)
    for _ in range(8):
        await submit(conn)

    kept = await conn.execute(
        text("SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%handed_off%'")
    )
    assert max(kept.scalars()) >= 3


async def test_a_new_handoff_has_nothing_held_against_it(conn: AsyncConnection) -> None:
    """A handoff starts open, in the live lane, without a lease and with every counter at zero."""
    digest = await publish(conn)

    handoff = await handoff_of(conn, (await submit(conn))["response_id"])

    assert handoff is not None
    assert (handoff["state"], handoff["lane"], handoff["lease_token"]) == ("open", "live", None)
    assert handoff["question_digest"] == digest
    assert {handoff[name] for name in ("attempts", "postponements", "suspicions", "lease_losses")} == {0}


@pytest.mark.parametrize("given", [token(), uuid4(), "ключ", "🔑"], ids=["text", "uuid", "cyrillic", "emoji"])
async def test_an_anonymous_answer_lies_under_its_token(conn: AsyncConnection, given: str | UUID) -> None:
    """A token is text or a UUID, stored as text; the row has no user."""
    row = await submit(conn, anonymous_token=given)

    assert (row["user_id"], row["anonymous_token"]) == (None, str(given))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"user_id": 1, "anonymous_token": "t"}, "user_id", id="both-identities"),
        pytest.param({"user_id": None, "anonymous_token": None}, "user_id", id="neither-identity"),
        pytest.param({"user_id": 0}, "user_id", id="user-zero"),
        pytest.param({"user_id": -1}, "user_id", id="user-negative"),
        pytest.param({"user_id": 2**31}, "user_id", id="user-overflow"),
        pytest.param({"user_id": True}, "user_id", id="user-bool"),
        pytest.param({"user_id": "1"}, "user_id", id="user-text"),
        pytest.param({"user_id": 1.0}, "user_id", id="user-float"),
        pytest.param({"anonymous_token": ""}, "anonymous_token", id="token-empty"),
        pytest.param({"anonymous_token": " \t"}, "anonymous_token", id="token-blank"),
        pytest.param({"anonymous_token": TOO_LONG_KEY}, "anonymous_token", id="token-long"),
        pytest.param({"anonymous_token": "a\x00b"}, "anonymous_token", id="token-nul"),
        pytest.param({"anonymous_token": SURROGATE}, "anonymous_token", id="token-surrogate"),
        pytest.param({"anonymous_token": 5}, "anonymous_token", id="token-number"),
        pytest.param({"question_id": ""}, "question_id", id="question-empty"),
        pytest.param({"question_id": None}, "question_id", id="question-none"),
        pytest.param({"question_id": TOO_LONG_KEY}, "question_id", id="question-long"),
        pytest.param({"question_id": "\x00"}, "question_id", id="question-nul"),
        pytest.param({"module_slug": " "}, "module_slug", id="module-blank"),
        pytest.param({"module_slug": SURROGATE}, "module_slug", id="module-surrogate"),
        pytest.param({"learning_outcome_id": ""}, "learning_outcome_id", id="outcome-empty"),
        pytest.param({"learning_outcome_id": 7}, "learning_outcome_id", id="outcome-number"),
        pytest.param({"content_id": "a\x00"}, "content_id", id="content-nul"),
        pytest.param({"answer_text": ""}, "answer_text", id="answer-empty"),
        pytest.param({"answer_text": " \n\t\r"}, "answer_text", id="answer-blank"),
        pytest.param({"answer_text": "\u00a0\u2003\u3000"}, "answer_text", id="answer-blank-unicode"),
        pytest.param({"answer_text": "\x1c\x1f\x85"}, "answer_text", id="answer-blank-separators"),
        pytest.param({"answer_text": "\u200b\ufeff \u2800\u3164"}, "answer_text", id="answer-invisible"),
        pytest.param({"answer_text": None}, "answer_text", id="answer-none"),
        pytest.param({"answer_text": b"bytes"}, "answer_text", id="answer-bytes"),
        pytest.param({"answer_text": "x" * (DEFAULT_MAX_ANSWER_CHARS + 1)}, "answer_text", id="answer-long"),
        pytest.param({"answer_text": "a\x00b"}, "answer_text", id="answer-nul"),
        pytest.param({"answer_text": SURROGATE}, "answer_text", id="answer-surrogate"),
        pytest.param({"answer_metadata": []}, "answer_metadata", id="metadata-list"),
        pytest.param({"answer_metadata": "{}"}, "answer_metadata", id="metadata-text"),
        pytest.param({"answer_metadata": {"a": {1}}}, "answer_metadata", id="metadata-set"),
        pytest.param({"answer_metadata": {"a": datetime.now(UTC)}}, "answer_metadata", id="metadata-date"),
        pytest.param({"answer_metadata": {"a": float("nan")}}, "answer_metadata", id="metadata-nan"),
        pytest.param({"answer_metadata": {"a": [float("inf")]}}, "answer_metadata", id="metadata-infinity"),
        pytest.param({"answer_metadata": {("a",): 1}}, "answer_metadata", id="metadata-tuple-name"),
        pytest.param({"answer_metadata": {"a": [{"b": "\x00"}]}}, "answer_metadata", id="metadata-nul"),
        pytest.param({"answer_metadata": {"a\x00": 1}}, "answer_metadata", id="metadata-nul-name"),
        pytest.param({"answer_metadata": {"a": (SURROGATE,)}}, "answer_metadata", id="metadata-surrogate"),
        pytest.param({"answer_metadata": {SURROGATE: 1}}, "answer_metadata", id="metadata-surrogate-name"),
        pytest.param({"answer_metadata": circular()}, "answer_metadata", id="metadata-circular"),
        pytest.param({"answer_metadata": nested(33)}, "answer_metadata", id="metadata-too-deep"),
        pytest.param({"answer_metadata": nested(2_000)}, "answer_metadata", id="metadata-deep"),
        pytest.param({"answer_metadata": {"a": 10**5_000}}, "answer_metadata", id="metadata-endless-number"),
        pytest.param(
            {"answer_metadata": {"a": "x" * MAX_METADATA_BYTES}}, "answer_metadata", id="metadata-large"
        ),
        pytest.param({"submission_key": "no-uuid"}, "submission_key", id="key-no-uuid"),
        pytest.param({"submission_key": 5}, "submission_key", id="key-number"),
        pytest.param({"score": 5}, "score", id="unknown-argument"),
    ],
)
async def test_bad_input_is_refused_before_a_statement_is_sent(
    conn: AsyncConnection, statements: list[str], changes: dict[str, Any], field: str
) -> None:
    """A refusal names the field, says that nothing was stored, and leaves the caller's transaction intact."""
    with pytest.raises(InvalidInputError) as refusal:
        await submit_responses(conn, [submission(), submission(**changes)])

    assert refusal.value.field == field
    assert str(refusal.value) == f"{field}: {refusal.value.rule}; nothing was stored."
    assert statements == []
    assert await count(conn, "assessment_responses") == 0
    assert await count(conn, "scoring_handoffs") == 0
    assert await submit(conn)


@pytest.mark.parametrize("name", ["question_id", "module_slug", "answer_text"])
async def test_what_every_submission_needs(conn: AsyncConnection, name: str) -> None:
    """A batch's mapping that lacks a needed argument is refused like a wrong one."""
    given = submission()
    del given[name]

    with pytest.raises(InvalidInputError, match=f"{name}: is needed; nothing was stored"):
        await submit_responses(conn, [given])


async def test_a_refusal_never_repeats_the_answer(conn: AsyncConnection) -> None:
    """The error may be logged: it carries no answer text."""
    with pytest.raises(InvalidInputError) as refusal:
        await submit(conn, answer_text="my secret\x00")

    assert "secret" not in str(refusal.value)


async def test_the_longest_accepted_input_is_stored_whole(conn: AsyncConnection) -> None:
    """Limits count characters, not bytes, and what is exactly as long as a limit is accepted."""
    answer = "🌱" * DEFAULT_MAX_ANSWER_CHARS
    key = "🌱" * MAX_KEY_CHARS

    row = await submit(conn, anonymous_token=key, question_id=key, module_slug=key, answer_text=answer)

    assert (row["answer_text"], row["anonymous_token"], row["question_id"]) == (answer, key, key)


async def test_the_limit_of_answers_can_be_set(
    conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCORING_MAX_ANSWER_CHARS holds for a web app that calls storage directly, too."""
    monkeypatch.setenv("SCORING_MAX_ANSWER_CHARS", "5")

    await submit(conn, answer_text="12345")
    with pytest.raises(InvalidInputError, match="at most 5 characters are accepted, got 6"):
        await submit(conn, answer_text="123456")


@pytest.mark.parametrize("value", ["0", "-3", "many", "", "1e3"])
async def test_a_senseless_limit_names_its_variable(
    conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A wrong SCORING_MAX_ANSWER_CHARS is an error that names it, never a silent default."""
    monkeypatch.setenv("SCORING_MAX_ANSWER_CHARS", value)

    with pytest.raises(ValueError, match="SCORING_MAX_ANSWER_CHARS"):
        await submit(conn)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"a": None, "b": [1, 2.5, -1.5e-7, True], "c": {"d": {"e": []}}},
        {"größe": "naïve café", "日本語": "🌱\n\t\"\\'", "": "\u2028\ufeff"},
        {"big": 2**80, "exact": 0.1},
        {"escaped": "\\u0000 is not NUL"},
    ],
    ids=["empty", "nested", "unicode", "numbers", "escape"],
)
async def test_metadata_comes_back_as_it_was_given(conn: AsyncConnection, given: dict[str, Any]) -> None:
    """What goes into answer_metadata comes out equal, whatever characters it holds."""
    assert (await submit(conn, answer_metadata=given))["answer_metadata"] == given


async def test_metadata_of_exactly_the_limit_is_stored(conn: AsyncConnection) -> None:
    """The limit counts the bytes of the JSON in UTF-8, so no script pays for its escapes."""
    given = {"a": "я" * ((MAX_METADATA_BYTES - len('{"a":""}')) // 2)}

    assert (await submit(conn, answer_metadata=given))["answer_metadata"] == given
    with pytest.raises(InvalidInputError, match="at most 16 KiB"):
        await submit(conn, answer_metadata={"a": given["a"] + "я"})


async def test_no_metadata_is_null_and_not_json_null(conn: AsyncConnection) -> None:
    """A missing mapping is SQL's NULL, so that IS NULL finds it."""
    await submit(conn)

    rows = (await conn.execute(text("SELECT answer_metadata IS NULL FROM assessment_responses"))).scalars()
    assert rows.all() == [True]


async def test_an_unknown_user_is_refused(conn: AsyncConnection) -> None:
    """The foreign key refuses a user who does not exist; neither answer nor handoff is stored."""
    with pytest.raises(UnknownUserError, match="user_id: there is no such user; nothing was stored"):
        async with conn.begin_nested():
            await submit_responses(conn, [submission(), submission(user_id=2**31 - 1)])

    assert await count(conn, "assessment_responses") == 0
    assert await count(conn, "scoring_handoffs") == 0


async def test_an_answer_to_an_unpublished_question_is_stored(conn: AsyncConnection) -> None:
    """It is never refused: its handoff waits as unpublished, due never."""
    await publish(conn, question_id="another")

    row = await submit(conn)

    assert row["question_digest"] is None
    waiting = await conn.execute(
        text("SELECT question_digest, due_at = 'infinity', state FROM scoring_handoffs")
    )
    assert waiting.all() == [(None, True, "open")]


async def test_an_answer_is_pinned_to_what_is_published_now(conn: AsyncConnection) -> None:
    """Answer and handoff keep the question of the moment of the submit, whatever is published later."""
    first = await publish(conn, rubric="first")
    before = await submit(conn)
    second = await publish(conn, rubric="second")
    after = await submit(conn)

    assert (before["question_digest"], after["question_digest"]) == (first, second)
    for row in (before, after):
        handoff = await handoff_of(conn, row["response_id"])
        assert handoff is not None
        assert handoff["question_digest"] == row["question_digest"]


async def test_a_question_belongs_to_its_module(conn: AsyncConnection) -> None:
    """The same question id in another module is another question."""
    await publish(conn, module_slug="chemistry")

    assert (await submit(conn, module_slug="biology"))["question_digest"] is None


async def test_every_submit_is_a_new_attempt(conn: AsyncConnection) -> None:
    """Equal answers of one student are as many responses and handoffs."""
    rows = [await submit(conn) for _ in range(3)]

    assert len({row["response_id"] for row in rows}) == 3
    assert await count(conn, "scoring_handoffs") == 3


@pytest.mark.parametrize("owner", [{"user_id": 3}, {"anonymous_token": "me"}], ids=["user", "anonymous"])
async def test_a_repeated_key_gives_the_same_row(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """A retry of a submit stores nothing, whatever else it brings, and returns what was stored first."""
    key = uuid4()
    first = await submit(conn, **owner, submission_key=key, answer_metadata={"try": 1})

    again = await submit(conn, **owner, submission_key=str(key), answer_text="something else")

    assert again == first
    assert await count(conn, "assessment_responses") == 1
    assert await count(conn, "scoring_handoffs") == 1


@pytest.mark.parametrize(
    ("owner", "other"),
    [
        ({"user_id": 1}, {"user_id": 2}),
        ({"user_id": 1}, {"anonymous_token": "1"}),
        ({"anonymous_token": "1"}, {"user_id": 1}),
        ({"anonymous_token": "a"}, {"anonymous_token": "b"}),
    ],
)
async def test_a_key_of_another_owner_is_refused(
    conn: AsyncConnection, owner: dict[str, Any], other: dict[str, Any]
) -> None:
    """A key that belongs to another owner's response shows nothing of it."""
    key = uuid4()
    await submit(conn, **owner, submission_key=key)

    with pytest.raises(SubmissionKeyConflictError, match="nothing was stored"):
        async with conn.begin_nested():
            await submit_responses(conn, [submission(**other, submission_key=key), submission()])

    assert await count(conn, "assessment_responses") == 1


async def test_a_retry_after_the_claim_gets_the_row(conn: AsyncConnection) -> None:
    """The anonymous student signs in between a submit and its retry: the retry still finds its answer."""
    mine, key = token(), uuid4()
    first = await submit(conn, anonymous_token=mine, submission_key=key)
    await claim_assessment_responses(conn, anonymous_token=mine, user_id=4)

    anonymous = await submit(conn, anonymous_token=mine, submission_key=key)
    signed_in = await submit(conn, user_id=4, submission_key=key)

    assert anonymous == signed_in == first | {"user_id": 4, "anonymous_token": None}
    for stranger in ({"anonymous_token": token()}, {"user_id": 5}):
        with pytest.raises(SubmissionKeyConflictError):
            async with conn.begin_nested():
                await submit(conn, **stranger, submission_key=key)


async def test_a_requested_claim_alone_opens_nothing(conn: AsyncConnection) -> None:
    """Only an applied claim makes a token its user: a request for somebody else's user id is worth nothing."""
    key = uuid4()
    await submit(conn, user_id=4, submission_key=key)
    await conn.execute(text("INSERT INTO assessment_claims (anonymous_token, user_id) VALUES ('thief', 4)"))

    with pytest.raises(SubmissionKeyConflictError):
        async with conn.begin_nested():
            await submit(conn, anonymous_token="thief", submission_key=key)


async def test_one_key_twice_in_a_batch_is_one_row(conn: AsyncConnection) -> None:
    """Both places of the result hold the same row."""
    key = uuid4()

    rows = await submit_responses(
        conn, [submission(submission_key=key), submission(), submission(submission_key=key)]
    )

    assert rows[0] == rows[2]
    assert rows[0]["response_id"] != rows[1]["response_id"]
    assert await count(conn, "assessment_responses") == 2


async def test_one_key_of_two_owners_in_a_batch_is_refused(conn: AsyncConnection) -> None:
    """Within one batch, too, a key belongs to one owner."""
    key = uuid4()

    with pytest.raises(SubmissionKeyConflictError):
        async with conn.begin_nested():
            await submit_responses(
                conn, [submission(submission_key=key), submission(user_id=2, submission_key=key)]
            )

    assert await count(conn, "assessment_responses") == 0


async def test_rows_come_back_in_the_order_given(conn: AsyncConnection) -> None:
    """Also where some of a batch were stored before, by keys that lie anywhere in it."""
    early = [submission(answer_text=f"early {number}", submission_key=uuid4()) for number in range(5)]
    late = [submission(answer_text=f"late {number}", user_id=number + 1) for number in range(15)]
    await submit_responses(conn, early)
    mixed = [early.pop() if number % 4 == 3 else late.pop() for number in range(20)]

    rows = await submit_responses(conn, mixed)

    assert [row["answer_text"] for row in rows] == [given["answer_text"] for given in mixed]
    assert await count(conn, "assessment_responses") == 20


async def test_ids_grow_in_the_order_given(conn: AsyncConnection) -> None:
    """A batch is stored as if its answers had come one after the other."""
    rows = await submit_responses(conn, [submission() for _ in range(30)])

    ids = [row["response_id"] for row in rows]
    assert ids == sorted(ids)


async def test_an_empty_batch_is_nothing(conn: AsyncConnection, statements: list[str]) -> None:
    """No submissions, no statement."""
    assert await submit_responses(conn, []) == []
    assert statements == []


async def test_a_fresh_submit_is_one_statement(conn: AsyncConnection, statements: list[str]) -> None:
    """Response and handoff cost one round trip, a batch as well; only a repeated key costs a second one."""
    key = uuid4()

    await submit(conn, submission_key=key)
    assert len(statements) == 1
    await submit_responses(conn, [submission() for _ in range(50)])
    assert len(statements) == 2
    await submit(conn, submission_key=key)
    assert len(statements) == 4


@pytest.mark.commits
async def test_answer_and_handoff_share_a_fate(engine: AsyncEngine) -> None:
    """What the caller rolls back has neither, what he commits has both; storage itself commits nothing."""
    with suppress(RuntimeError):
        async with engine.begin() as conn:
            await submit(conn, answer_text="rolled back")
            raise RuntimeError
    async with engine.begin() as conn:
        assert await count(conn, "assessment_responses") == 0
        assert await count(conn, "scoring_handoffs") == 0
        await submit(conn, answer_text="committed")

    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 1
        assert await count(conn, "scoring_handoffs") == 1


@pytest.mark.commits
async def test_the_same_key_at_the_same_moment_is_one_row(engine: AsyncEngine) -> None:
    """The second of two equal submits waits for the first, and gets its row."""
    given = submission(submission_key=uuid4())
    async with engine.connect() as first:
        stored = await submit_response(first, **given)
        async with blocked(engine, lambda conn: submit_response(conn, **given)) as second:
            await first.commit()
        assert await second == stored

    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 1
        assert await count(conn, "scoring_handoffs") == 1


@pytest.mark.commits
async def test_the_same_key_while_the_first_is_rolled_back(engine: AsyncEngine) -> None:
    """Where the first of two equal submits is undone, the second one stores the answer."""
    given = submission(submission_key=uuid4())
    async with engine.connect() as first:
        undone = await submit_response(first, **given)
        async with blocked(engine, lambda conn: submit_response(conn, **given)) as second:
            await first.rollback()
        assert (await second)["response_id"] != undone["response_id"]

    stored = await committed(engine, partial(count, table="assessment_responses"))
    assert stored == 1
