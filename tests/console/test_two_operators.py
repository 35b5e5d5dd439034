"""Two people act on the same dead answers: one of them does it and is written down, the other one is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from storage.actions import latest_actions
from storage.dead import dismiss_dead, retry_dead
from tests.commands.conftest import Commands
from tests.console.acting import REFUSED, agreed, asked_form, bury_answers, kind_of, states
from tests.console.conftest import sign_in
from tests.races import blocked

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.console.conftest import Opened

pytestmark = pytest.mark.commits

TOLD = "Nothing was changed: a person had acted on it already."


async def recorded(engine: AsyncEngine) -> list[tuple[str, str, int]]:
    """Who did what to how many, newest first."""
    async with engine.connect() as conn:
        return [(row["actor"], row["action"], row["affected"]) for row in await latest_actions(conn)]


@pytest.mark.parametrize("many", [False, True], ids=["one", "all of a kind"])
@pytest.mark.parametrize(
    ("mine", "yours"),
    [("retry", "dismiss"), ("dismiss", "retry"), ("retry", "retry"), ("dismiss", "dismiss")],
)
async def test_two_consoles(
    opened: Opened, engine: AsyncEngine, mine: str, yours: str, *, many: bool
) -> None:
    """Both were asked while it was dead; the second yes changes nothing, undoes nothing and is not recorded."""
    ids = await bury_answers(engine, REFUSED, REFUSED)
    kind = await kind_of(engine, REFUSED)
    target: dict[str, Any] = (
        {"kind": kind["kind"], "until": kind["until_handoff_id"]} if many else {"response_id": ids[0]}
    )
    async with opened.client() as ada, opened.client() as bob:
        await sign_in(ada, name="Ada")
        await sign_in(bob, name="Bob")
        first = await asked_form(ada, action=mine, **target)
        second = await asked_form(bob, action=yours, **target)

        await agreed(ada, first)
        lost = await agreed(bob, second)

        assert TOLD in (await bob.get(lost.headers["location"])).text
    changed = ids if many else ids[:1]
    expected = "open" if mine == "retry" else "dismissed"
    assert await states(engine) == dict.fromkeys(ids, "dead") | dict.fromkeys(changed, expected)
    assert await recorded(engine) == [("Ada", mine, len(changed))]


async def test_all_are_retried_and_dismissed_at_the_same_moment(opened: Opened, engine: AsyncEngine) -> None:
    """Each answer has what one of both did to it, and the record counts each once."""
    ids = await bury_answers(engine, *[REFUSED] * 40)
    kind = await kind_of(engine, REFUSED)
    target = {"kind": kind["kind"], "until": kind["until_handoff_id"]}
    async with opened.client() as ada, opened.client() as bob:
        await sign_in(ada, name="Ada")
        await sign_in(bob, name="Bob")
        forms = [
            (ada, await asked_form(ada, action="retry", **target)),
            (bob, await asked_form(bob, action="dismiss", **target)),
            (bob, await asked_form(bob, action="dismiss", **target)),
        ]
        answers = await asyncio.gather(*(agreed(client, form) for client, form in forms))

    counts = sorted(answer.headers["location"].rpartition("=")[2] for answer in answers)
    assert counts == ["0", "0", "40"]
    [(actor, action, affected)] = await recorded(engine)
    assert affected == len(ids)
    assert (actor, action) in {("Ada", "retry"), ("Bob", "dismiss")}
    assert set((await states(engine)).values()) == {"open" if action == "retry" else "dismissed"}


@pytest.mark.parametrize("action", ["retry", "dismiss"])
async def test_a_command_beside_a_console(
    opened: Opened, engine: AsyncEngine, database_url: str, action: str
) -> None:
    """The command waits for the console's transaction, then finds nothing left: it says so, and exits with 1."""
    [response_id] = await bury_answers(engine, REFUSED)
    commands = Commands({"SCORING_DATABASE_URL": database_url})
    async with opened.client() as ada:
        await sign_in(ada, name="Ada")
        await agreed(ada, await asked_form(ada, action="retry", response_id=response_id))

    result = await commands.run("dead", action, str(response_id), "--by", "Bob")

    assert result.exit_code == 1
    assert f"Not dead, and left alone: {response_id}" in result.output
    assert await recorded(engine) == [("Ada", "retry", 1)]


async def test_a_command_retries_all_while_a_console_dismisses_them(
    opened: Opened, engine: AsyncEngine, database_url: str
) -> None:
    """No answer is done twice, and record, command and console agree about who had how many."""
    ids = await bury_answers(engine, *[REFUSED] * 40)
    kind = await kind_of(engine, REFUSED)
    commands = Commands({"SCORING_DATABASE_URL": database_url})
    async with opened.client() as ada:
        await sign_in(ada, name="Ada")
        form = await asked_form(ada, action="dismiss", kind=kind["kind"], until=kind["until_handoff_id"])
        told, answer = await asyncio.gather(
            commands.json("dead", "retry", "--all", "--by", "Bob"), agreed(ada, form)
        )

    dismissed = int(answer.headers["location"].rpartition("=")[2])
    ended = list((await states(engine)).values())
    assert (ended.count("open"), ended.count("dismissed")) == (len(told["retried"]), dismissed)
    assert len(told["retried"]) + dismissed == len(ids)
    assert set(await recorded(engine)) == {
        each for each in (("Bob", "retry", len(told["retried"])), ("Ada", "dismiss", dismissed)) if each[2]
    }


@pytest.mark.parametrize("first", ["retry", "dismiss"])
async def test_who_waits_for_the_other_looks_again(engine: AsyncEngine, first: str) -> None:
    """Whoever comes to the row while the other holds it decides by what it is afterwards."""
    [response_id] = await bury_answers(engine, REFUSED)

    async def retry(conn: AsyncConnection) -> list[int]:
        return await retry_dead(conn, response_ids=[response_id], only_dead=True)

    async def dismiss(conn: AsyncConnection) -> list[int]:
        return await dismiss_dead(conn, response_ids=[response_id], dismissed_by="Ada")

    one, other = (retry, dismiss) if first == "retry" else (dismiss, retry)
    async with engine.connect() as conn:
        assert await one(conn) == [response_id]
        async with blocked(engine, other) as waiting:
            await conn.commit()

    assert await waiting == []
    assert await states(engine) == {response_id: "open" if first == "retry" else "dismissed"}
