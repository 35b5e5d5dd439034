from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage import InvalidInputError, submit_responses
from storage.actions import record_action
from storage.dead import list_dead
from storage.dead_kinds import dead_kinds, dismiss_kind, list_dead_of_kind, may_act, retry_kind
from storage.errors import AccessDeniedError
from storage.roles import grant_roles
from storage.settlements import MAX_REASON_CHARS
from tests.factories import bury, handoff_of, publish, submission
from tests.storage.acting import ROLES, logged_in_as

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


async def bury_answers(conn: AsyncConnection, *reasons: str) -> list[int]:
    """Answers that died for these reasons."""
    await publish(conn)
    rows = await submit_responses(conn, [submission() for _ in reasons])
    ids = [int(row["response_id"]) for row in rows]
    for response_id, reason in zip(ids, reasons, strict=True):
        await bury(conn, response_id, reason=reason)
    return ids


async def test_who_dismissed_a_kind_is_kept_however_long_its_reason(conn: AsyncConnection) -> None:
    """What is cut off to stay within the limit is the reason."""
    [response_id] = await bury_answers(conn, "x" * MAX_REASON_CHARS)
    [kind] = await dead_kinds(conn)
    until = kind["until_handoff_id"]

    await dismiss_kind(conn, kind=kind["kind"], until_handoff_id=until, dismissed_by="Ada")

    kept = ((await handoff_of(conn, response_id)) or {})["last_error"]
    assert len(kept) == MAX_REASON_CHARS
    assert kept.endswith("x (dismissed by Ada)")


async def test_the_dead_are_told_apart_by_their_reason(conn: AsyncConnection) -> None:
    """Most frequent first, with when and up to which; a kind's name is short and says nothing of the reason."""
    ids = await bury_answers(conn, "refused", "too long", "refused")

    many, one = await dead_kinds(conn)

    assert (many["reason"], many["answers"]) == ("refused", 2)
    assert (one["reason"], one["answers"]) == ("too long", 1)
    assert many["first_at"] <= many["last_at"]
    last = await handoff_of(conn, ids[2])
    assert last is not None
    assert many["until_handoff_id"] == last["handoff_id"]
    assert len(many["kind"]) == 16
    assert "refused" not in many["kind"]
    listed = await list_dead_of_kind(conn, kind=many["kind"])
    assert listed == [row for row in await list_dead(conn) if row["last_error"] == "refused"]
    assert await list_dead_of_kind(conn, kind=many["kind"], after_handoff_id=listed[0]["handoff_id"]) == [
        listed[1]
    ]


async def test_only_what_was_seen_of_a_kind_is_retried(conn: AsyncConnection) -> None:
    """What died after the look is left alone, and so are other kinds; a second time nothing is left to do."""
    ids = await bury_answers(conn, "refused", "too long")
    kind = next(kind for kind in await dead_kinds(conn) if kind["reason"] == "refused")
    ids += await bury_answers(conn, "refused")
    given = {"kind": kind["kind"], "until_handoff_id": kind["until_handoff_id"]}

    assert await retry_kind(conn, **given) == [ids[0]]
    assert await retry_kind(conn, **given) == []

    revived = await handoff_of(conn, ids[0])
    assert revived is not None
    assert (revived["state"], revived["attempts"], revived["lease_token"]) == ("open", 0, None)
    assert [row["response_id"] for row in await list_dead(conn)] == [ids[1], ids[2]]


async def test_a_kind_is_dismissed_with_a_name(conn: AsyncConnection) -> None:
    """Who decided is kept with the reason; nameless nothing is done."""
    ids = await bury_answers(conn, "refused", "refused")
    [kind] = await dead_kinds(conn)
    given = {"kind": kind["kind"], "until_handoff_id": kind["until_handoff_id"]}

    with pytest.raises(InvalidInputError):
        await dismiss_kind(conn, **given, dismissed_by="  ")
    assert await dismiss_kind(conn, **given, dismissed_by="ops@night") == ids

    assert await list_dead(conn) == []
    dismissed = await list_dead(conn, include_dismissed=True)
    assert {row["last_error"] for row in dismissed} == {"refused (dismissed by ops@night)"}


async def test_who_may_act(conn: AsyncConnection) -> None:
    """Ops may act and write down who did. A worker's login may not write that down, so it must not act."""
    await grant_roles(conn, ROLES)
    [response_id] = await bury_answers(conn, "refused")
    [kind] = await dead_kinds(conn)

    async with logged_in_as(conn, "ops") as ops:
        assert await may_act(ops)
        assert await retry_kind(ops, kind=kind["kind"], until_handoff_id=kind["until_handoff_id"]) == [
            response_id
        ]
        await record_action(ops, actor="a", action="retry", affected=1)
    for part in ("worker", "web"):
        async with logged_in_as(conn, part) as other:
            assert not await may_act(other)
            with pytest.raises(AccessDeniedError):
                await record_action(other, actor="a", action="retry", affected=1)
