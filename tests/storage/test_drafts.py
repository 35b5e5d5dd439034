from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import (
    InvalidInputError,
    UnknownUserError,
    claim_assessment_responses,
    discard_draft,
    get_draft,
    save_draft,
)
from storage.claims import apply_claim, request_claim
from storage.erasure import erase_responses
from storage.errors import AccessDeniedError, DraftChangedError, StorageBusyError, StorageUnavailableError
from storage.roles import grant_roles
from tests.factories import MODULE, QUESTION, count, submit, token
from tests.races import blocked, committed
from tests.storage.acting import ROLES, acting_as

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ROUNDS = 15
OWNERS = [
    pytest.param({"user_id": 5}, id="user"),
    pytest.param({"anonymous_token": "five"}, id="anonymous"),
]


async def save(conn: AsyncConnection, **changes: Any) -> dict[str, Any] | None:
    owner = {} if changes.keys() & {"user_id", "anonymous_token"} else {"user_id": 5}
    given: dict[str, Any] = {
        "module_slug": MODULE,
        "question_id": QUESTION,
        "answer_text": "It tur",
        "submission_key": uuid4(),
    }
    return await save_draft(conn, **(given | owner | changes))


async def read(conn: AsyncConnection, *, question_id: str = QUESTION, **owner: Any) -> str | None:
    """The text of a draft."""
    draft = await get_draft(conn, **(owner or {"user_id": 5}), module_slug=MODULE, question_id=question_id)
    return None if draft is None else str(draft["answer_text"])


@pytest.mark.parametrize("owner", OWNERS)
async def test_a_draft_is_kept_replaced_and_discarded(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """There is one for each question of a module and each student, and the last text counts."""
    key = uuid4()
    first = await save(conn, **owner, answer_text="It tur", submission_key=key)
    await save(conn, **owner, question_id="other", answer_text="other")
    await save(conn, **owner, module_slug="elsewhere", answer_text="elsewhere")
    await save(conn, user_id=6, answer_text="six")
    await save(conn, anonymous_token="six", answer_text="six, anonymous")
    second = await save(conn, **owner, answer_text="It turns", submission_key=key)

    assert first is not None
    assert second is not None
    assert second["draft_id"] == first["draft_id"]
    assert second["submission_key"] == key
    where: dict[str, Any] = {"module_slug": MODULE, "question_id": QUESTION}
    assert await get_draft(conn, **owner, **where) == second
    assert await discard_draft(conn, **owner, **where)
    assert await get_draft(conn, **owner, **where) is None
    assert not await discard_draft(conn, **owner, **where)
    assert await count(conn, "assessment_drafts") == 4


@pytest.mark.parametrize("owner", OWNERS)
async def test_a_submitted_draft_is_spent(conn: AsyncConnection, owner: dict[str, Any]) -> None:
    """It is not read any more, a late save of it stores nothing, and the next draft is not touched by it."""
    key = uuid4()
    await save(conn, **owner, submission_key=key)
    await submit(conn, **owner, submission_key=key)
    assert await read(conn, **owner) is None

    assert await save(conn, **owner, submission_key=key, answer_text="late") is None
    assert await read(conn, **owner) is None

    await save(conn, **owner, answer_text="another attempt")
    assert await save(conn, **owner, submission_key=key, answer_text="very late") is None
    assert await read(conn, **owner) == "another attempt"


async def test_a_draft_is_never_scored(conn: AsyncConnection) -> None:
    """It is no response and has no handoff."""
    await save(conn)

    assert await count(conn, "assessment_responses") == 0
    assert await count(conn, "scoring_handoffs") == 0


@pytest.mark.parametrize("blank", ["", " \n", "\u200b"])
async def test_a_draft_may_be_blank(conn: AsyncConnection, blank: str) -> None:
    """Who deletes everything that he wrote does not find it again."""
    await save(conn)

    await save(conn, answer_text=blank)

    assert await read(conn) == blank


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer_text": "a" * 11}, "answer_text"),
        ({"answer_text": "a\x00"}, "answer_text"),
        ({"answer_text": "\ud800"}, "answer_text"),
        ({"answer_text": None}, "answer_text"),
        ({"module_slug": " "}, "module_slug"),
        ({"question_id": "q" * 201}, "question_id"),
        ({"submission_key": "no uuid"}, "submission_key"),
        ({"submission_key": None}, "submission_key"),
        ({"user_id": 5, "anonymous_token": "five"}, "user_id"),
        ({"user_id": None}, "user_id"),
    ],
)
async def test_a_bad_draft_is_refused(conn: AsyncConnection, changes: dict[str, Any], field: str) -> None:
    """The rules of an answer hold, but for being blank; nothing is stored."""
    with pytest.raises(InvalidInputError) as refusal:
        await save(conn, max_chars=10, **changes)

    assert refusal.value.field == field
    assert await count(conn, "assessment_drafts") == 0


async def test_a_draft_of_an_unknown_user_is_refused(conn: AsyncConnection) -> None:
    """As an answer is."""
    with pytest.raises(UnknownUserError):
        await save(conn, user_id=999_999)


async def test_a_clock_that_was_ahead_does_not_stop_saving(conn: AsyncConnection) -> None:
    """Only a save that began later while this one waited is newer."""
    await save(conn)
    await conn.execute(text("UPDATE assessment_drafts SET saved_at = now() + interval '1 hour'"))

    await save(conn, answer_text="It turns")

    assert await read(conn) == "It turns"


async def test_web_keeps_drafts_and_worker_moves_them(conn: AsyncConnection) -> None:
    """Each by the privileges of its role alone, and no worker writes a draft."""
    await grant_roles(conn, ROLES)
    async with acting_as(conn, "web") as web:
        await save(web, anonymous_token="t", question_id="moved")
        await save(web, anonymous_token="t", question_id="moved", answer_text="again")
        assert await read(web, anonymous_token="t", question_id="moved") == "again"
        await save(web, anonymous_token="t", question_id="discarded")
        assert await discard_draft(web, anonymous_token="t", module_slug=MODULE, question_id="discarded")
        claim_id = await request_claim(web, anonymous_token="t", user_id=5)
    async with acting_as(conn, "worker") as worker:
        assert await apply_claim(worker, claim_id) is not None
    with pytest.raises(AccessDeniedError):
        async with acting_as(conn, "worker") as worker:
            await save(worker)

    assert await read(conn, question_id="moved") == "again"


async def test_a_claim_moves_drafts(conn: AsyncConnection) -> None:
    """Except where the user has a draft or an answer of his own; what was submitted is forgotten."""
    mine, spent = token(), uuid4()
    for question in ("new", "drafted", "answered", "attempted"):
        await save(conn, anonymous_token=mine, question_id=question, answer_text=f"anonymous {question}")
    await save(conn, anonymous_token=mine, question_id="spent", submission_key=spent)
    await submit(conn, anonymous_token=mine, question_id="spent", submission_key=spent)
    # Another attempt was begun after an anonymous answer: it goes with that one.
    await submit(conn, anonymous_token=mine, question_id="attempted")
    await save(conn, question_id="drafted", answer_text="own")
    await submit(conn, user_id=5, question_id="answered")
    await submit(conn, user_id=6, question_id="new")
    await save(conn, question_id="new", user_id=6)

    await claim_assessment_responses(conn, anonymous_token=mine, user_id=5)

    own = {name: await read(conn, question_id=name) for name in ("new", "drafted", "answered", "attempted")}
    assert own == {
        "new": "anonymous new",
        "drafted": "own",
        "answered": None,
        "attempted": "anonymous attempted",
    }
    left = await conn.execute(
        text("SELECT question_id FROM assessment_drafts WHERE anonymous_token = :mine ORDER BY 1"),
        {"mine": mine},
    )
    assert left.scalars().all() == ["answered", "drafted"]
    assert await claim_assessment_responses(conn, anonymous_token=mine, user_id=5) == 0


@pytest.mark.commits
async def test_two_tabs_save_at_once(engine: AsyncEngine) -> None:
    """One draft is there afterwards, whole: the text of one of them with its key."""
    for owner in ({"user_id": 5}, {"anonymous_token": "five"}):
        keys = {uuid4(): f"tab {number}" for number in range(8)}
        await asyncio.gather(
            *(
                committed(engine, partial(save, **owner, submission_key=key, answer_text=written))
                for key, written in keys.items()
                for _ in range(3)
            )
        )
        async with engine.connect() as conn:
            draft = await get_draft(conn, **owner, module_slug=MODULE, question_id=QUESTION)
        assert draft is not None
        assert keys[draft["submission_key"]] == draft["answer_text"]
    async with engine.connect() as conn:
        assert await count(conn, "assessment_drafts") == 2


@pytest.mark.commits
async def test_a_save_that_waited_for_a_later_one_changes_nothing(engine: AsyncEngine) -> None:
    """Its text is the older one. It may even have been submitted by now, and the later one be another attempt."""
    await committed(engine, partial(save, answer_text="first"))
    async with engine.connect() as holder:
        await holder.execute(text("SELECT 1 FROM assessment_drafts FOR UPDATE"))
        async with blocked(engine, partial(save, answer_text="older")) as late:
            # As if a later save had held the lock.
            await holder.execute(
                text("UPDATE assessment_drafts SET answer_text = 'newer', saved_at = clock_timestamp()")
            )
            await holder.commit()

    assert await late is None
    async with engine.connect() as conn:
        assert await read(conn) == "newer"


@pytest.mark.commits
@pytest.mark.parametrize("versions", [None, ["*"]], ids=["seen", "any"])
@pytest.mark.parametrize("meanwhile", ["discarded", "claimed", "saved"])
async def test_a_save_in_place_of_a_version_that_ends_while_it_waits(
    engine: AsyncEngine, meanwhile: str, versions: list[str] | None
) -> None:
    """It brings no draft back, and leaves no second one under the token that was claimed."""
    seen = await committed(engine, partial(save, anonymous_token="five", answer_text="seen"))
    assert seen is not None
    late_save = partial(
        save, anonymous_token="five", answer_text="late", versions=versions or [seen["version"]]
    )
    ends: dict[str, Callable[[AsyncConnection], Awaitable[Any]]] = {
        "discarded": partial(discard_draft, anonymous_token="five", module_slug=MODULE, question_id=QUESTION),
        "claimed": partial(claim_assessment_responses, anonymous_token="five", user_id=5),
        "saved": partial(save, anonymous_token="five", answer_text="another tab's"),
    }
    async with engine.connect() as other:
        await ends[meanwhile](other)
        async with blocked(engine, late_save) as late:
            await other.commit()

    any_is_there = versions is not None and meanwhile == "saved"
    if any_is_there:
        assert await late is not None
    else:
        with pytest.raises(DraftChangedError):
            await late
    left = {"discarded": None, "claimed": None, "saved": "late" if any_is_there else "another tab's"}
    async with engine.connect() as conn:
        assert await read(conn, anonymous_token="five") == left[meanwhile]
        assert await count(conn, "assessment_drafts") == (meanwhile != "discarded")


@pytest.mark.commits
async def test_a_save_races_with_the_submit_of_its_key(engine: AsyncEngine) -> None:
    """However they meet, the draft is spent, and the answer is there once."""
    for number in range(ROUNDS):
        question, key = f"q{number}", uuid4()
        await asyncio.gather(
            committed(engine, partial(save, question_id=question, submission_key=key)),
            committed(engine, partial(submit, user_id=5, question_id=question, submission_key=key)),
            committed(engine, partial(save, question_id=question, submission_key=key)),
        )
        async with engine.connect() as conn:
            assert await read(conn, question_id=question) is None
            assert await count(conn, "assessment_responses") == number + 1


@pytest.mark.commits
async def test_a_save_that_began_before_the_submit_ended_is_spent_with_it(engine: AsyncEngine) -> None:
    """It did not see the answer, and stores a draft that nobody is shown."""
    key = uuid4()
    async with engine.connect() as submitter:
        await submit(submitter, user_id=5, submission_key=key)
        stored = await committed(engine, partial(save, submission_key=key))
        await submitter.commit()

    assert stored is not None
    async with engine.connect() as conn:
        assert await count(conn, "assessment_drafts") == 1
        assert await read(conn) is None


@pytest.mark.commits
async def test_a_claim_meets_a_draft_that_the_user_is_saving(engine: AsyncEngine) -> None:
    """The claim is tried again, and leaves the anonymous draft where it is."""
    await committed(engine, partial(save, anonymous_token="five", answer_text="anonymous"))
    claim_id = await committed(engine, partial(request_claim, anonymous_token="five", user_id=5))
    async with engine.connect() as saver:
        await save(saver, answer_text="own")
        async with blocked(engine, partial(apply_claim, claim_id=claim_id)) as claiming:
            await saver.commit()

    with pytest.raises(StorageBusyError):
        await claiming
    assert await committed(engine, partial(apply_claim, claim_id=claim_id)) is not None
    async with engine.connect() as conn:
        assert await read(conn) == "own"
        assert await read(conn, anonymous_token="five") == "anonymous"


@pytest.mark.commits
async def test_a_save_under_the_token_meets_its_claim(engine: AsyncEngine) -> None:
    """It stays under the token as a new draft; what was claimed is the user's."""
    await committed(engine, partial(save, anonymous_token="five", answer_text="claimed"))
    async with engine.connect() as claimer:
        await claim_assessment_responses(claimer, anonymous_token="five", user_id=5)
        async with blocked(engine, partial(save, anonymous_token="five", answer_text="late")) as late:
            await claimer.commit()

    assert await late is not None
    async with engine.connect() as conn:
        assert await read(conn) == "claimed"
        assert await read(conn, anonymous_token="five") == "late"


@pytest.mark.commits
async def test_two_tokens_of_one_user_with_drafts_at_once(engine: AsyncEngine) -> None:
    """He gets one of two drafts of one question, and both claims are applied."""
    for number in range(ROUNDS):
        user_id, mine = number + 1, (token(), token())
        for one in mine:
            await committed(engine, partial(save, anonymous_token=one, answer_text=one))

        await asyncio.gather(
            *(
                committed(engine, partial(claim_assessment_responses, anonymous_token=one, user_id=user_id))
                for one in mine
            )
        )

        async with engine.connect() as conn:
            got = await read(conn, user_id=user_id)
            assert got in mine
            left = [one for one in mine if await read(conn, anonymous_token=one) is not None]
            assert left == [one for one in mine if one != got], f"round {number}"


@pytest.mark.commits
async def test_one_token_with_drafts_for_two_users_at_once(engine: AsyncEngine) -> None:
    """Each draft goes to one of them, and nobody waits for the other for ever."""
    for number in range(ROUNDS):
        mine, questions = token(), [f"{number} {name}" for name in "abc"]
        for question in questions:
            await committed(engine, partial(save, anonymous_token=mine, question_id=question))

        await asyncio.gather(
            *(
                committed(engine, partial(claim_assessment_responses, anonymous_token=mine, user_id=user_id))
                for user_id in (1, 2)
            )
        )

        async with engine.connect() as conn:
            for question in questions:
                owners = [
                    user_id
                    for user_id in (1, 2)
                    if await read(conn, user_id=user_id, question_id=question) is not None
                ]
                assert len(owners) == 1


@pytest.mark.commits
async def test_a_claim_that_waits_for_the_first_draft_holds_no_other(engine: AsyncEngine) -> None:
    """The lowest id is locked first, wherever on disk it is, so that no two claims wait for each other."""
    for question in ("a", "b", "c"):
        await committed(engine, partial(save, anonymous_token="five", question_id=question))
    await committed(engine, partial(save, anonymous_token="five", question_id="a", answer_text="at the end"))
    async with engine.connect() as holder:
        await holder.execute(text("SELECT 1 FROM assessment_drafts WHERE question_id = 'a' FOR UPDATE"))
        claim = partial(claim_assessment_responses, anonymous_token="five", user_id=5)
        async with blocked(engine, claim) as claiming:
            async with engine.connect() as other:
                free = await other.execute(text("SELECT 1 FROM assessment_drafts FOR UPDATE SKIP LOCKED"))
                assert len(free.all()) == 2
            await holder.rollback()

    await claiming
    async with engine.connect() as conn:
        assert await read(conn, question_id="a") == "at the end"


async def repeated(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[Any]]) -> None:
    """Do it until it is done, as workers and operators do."""
    while True:
        try:
            await committed(engine, work)
        except StorageUnavailableError:
            continue
        return


@pytest.mark.commits
async def test_saves_submits_claims_and_erasures_at_once(engine: AsyncEngine) -> None:
    """No student hears of it, claims and erasures at most that they be tried again; at the end nothing is left."""
    mine = [token() for _ in range(2)]

    async def saves(owner: dict[str, Any]) -> None:
        for number in range(20):
            given = {**owner, "question_id": f"q{number % 3}", "submission_key": uuid4()}
            await committed(engine, partial(save, **given))
            if number % 4 == 0:
                await committed(engine, partial(submit, **given))

    async def claims() -> None:
        for number in range(20):
            claim = partial(claim_assessment_responses, anonymous_token=mine[number % 2], user_id=5)
            await repeated(engine, claim)

    async def erases() -> None:
        for one in mine * 3:
            await repeated(engine, partial(erase_responses, anonymous_token=one))

    async with asyncio.timeout(60):
        await asyncio.gather(
            saves({"user_id": 5}),
            *(saves({"anonymous_token": one}) for one in mine),
            claims(),
            claims(),
            erases(),
        )
        await repeated(engine, partial(erase_responses, user_id=5))
        await erases()

    async with engine.connect() as conn:
        assert await count(conn, "assessment_drafts") == 0
        assert await count(conn, "assessment_responses") == 0
