"""Which answers a rescore chooses, what it tells of their costs, and what its steps do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import rescoring
from storage.dead import rescore_responses
from storage.errors import InvalidInputError
from storage.rescoring import Choice, checked_choice, rescore_step, survey_rescore
from storage.runs import horizon
from storage.settlements import Settlement, settle_handoffs
from tests.factories import handoff_of, lease, publish, submit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


async def scored(
    conn: AsyncConnection,
    score: Any = 4.0,
    *,
    model: str = "m",
    prompt: str = "1",
    usage: Any = None,
    response_id: int | None = None,
    **changes: Any,
) -> int:
    """An answer with a (further) score."""
    if response_id is None:
        response_id = int((await submit(conn, **changes))["response_id"])
    else:
        await rescore_responses(conn, response_ids=[response_id])
    [held] = await lease(conn, response_id)
    data = {"overall_score": score, "reasoning": "r"} | ({} if usage is None else {"usage": usage})
    assert await settle_handoffs(
        conn, [Settlement(held["handoff_id"], held["created_at"], model, prompt, data)]
    )
    return response_id


async def run_of(conn: AsyncConnection, choice: Choice) -> dict[str, Any]:
    end = await horizon(conn)
    filters = choice.as_json() | {"until_score_id": end["until_score_id"]}
    return {"last_response_id": 0, "until_response_id": end["until_response_id"], "filters": filters}


async def rescored(conn: AsyncConnection, choice: Choice) -> list[int]:
    """The responses that one step asks for anew."""
    step = await rescore_step(conn, await run_of(conn, choice))
    found = await conn.execute(
        text("SELECT response_id FROM scoring_handoffs WHERE lane = 'bulk' ORDER BY response_id")
    )
    ids = list(found.scalars())
    assert step.changed == len(ids)
    return ids


async def surveyed(conn: AsyncConnection, choice: Choice) -> list[dict[str, Any]]:
    end = await horizon(conn)
    last, rows = await survey_rescore(
        conn, choice, after=0, until=end["until_response_id"], until_score_id=end["until_score_id"]
    )
    assert last == end["until_response_id"]
    return rows


async def test_each_bound_chooses_by_the_current_score(conn: AsyncConnection) -> None:
    """The score that counts is the newest; those before it say nothing."""
    await publish(conn)
    await publish(conn, question_id="other", module_slug="chemistry")
    low = await scored(conn, 1, model="a", prompt="1")
    high = await scored(conn, 5, model="a", prompt="1")
    await scored(conn, 3, model="b", prompt="2", response_id=high)
    odd = await scored(conn, "5", question_id="other", module_slug="chemistry", model="c", prompt="1")
    await submit(conn)  # without a score
    await conn.execute(
        text("UPDATE assessment_scores SET created_at = :then WHERE response_id = :id"),
        {"then": NOW - 10 * DAY, "id": low},
    )
    await conn.execute(
        text("UPDATE assessment_responses SET created_at = :then WHERE response_id = :id"),
        {"then": NOW - 20 * DAY, "id": low},
    )
    await publish(conn, rubric="new")

    expectations: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [low, high, odd]),
        ({"module_slug": "chemistry"}, [odd]),
        ({"question_id": "other"}, [odd]),
        ({"min_score": 2}, [high]),
        ({"max_score": 3}, [low, high]),
        ({"max_score": 0}, []),
        ({"min_score": 0.0, "max_score": 1}, [low]),
        ({"model_id": "a"}, [low]),
        ({"not_model_id": "a"}, [high, odd]),
        ({"prompt_version": "1"}, [low, odd]),
        ({"not_prompt_version": "1"}, [high]),
        ({"scored_before": NOW - 5 * DAY}, [low]),
        ({"scored_from": NOW - 5 * DAY}, [high, odd]),
        ({"answered_before": NOW - 15 * DAY}, [low]),
        ({"answered_from": NOW - 15 * DAY}, [high, odd]),
        ({"outdated": True}, [low, high]),
        ({"outdated": True, "max_score": 2}, [low]),
    ]
    for given, expected in expectations:
        choice = Choice(**given)
        assert Choice.from_json(choice.as_json() | {"until_score_id": 1}) == choice
        counted = sum(row["answers"] for row in await surveyed(conn, choice))
        savepoint = await conn.begin_nested()
        assert (given, await rescored(conn, choice)) == (given, expected)
        await savepoint.rollback()
        assert counted == len(expected)


async def test_what_was_scored_since_the_start_is_passed_over(conn: AsyncConnection) -> None:
    """A run that goes on after its own answers were scored does not ask for them again."""
    await publish(conn)
    first, second = await scored(conn), await scored(conn)
    run = await run_of(conn, Choice())
    later = await scored(conn)

    assert (await rescore_step(conn, run)).changed == 2
    for response_id in (first, second):
        [held] = await lease(conn, response_id)
        await settle_handoffs(
            conn, [Settlement(held["handoff_id"], held["created_at"], "m", "2", {"overall_score": 1})]
        )

    assert (await rescore_step(conn, run)).changed == 0
    assert await handoff_of(conn, first) is await handoff_of(conn, later) is None


async def test_costs_are_those_of_the_scores_that_are_replaced(conn: AsyncConnection) -> None:
    """By model and prompt version; what no score tells is not counted as nothing."""
    await publish(conn)
    await scored(conn, usage={"cost_usd": 0.5, "input_tokens": 10, "output_tokens": 5})
    await scored(conn, usage={"cost_usd": None, "input_tokens": 20, "output_tokens": 5})
    waits = await scored(conn, usage="nonsense")
    await scored(conn, model="other")
    await rescore_responses(conn, response_ids=[waits])

    rows = {row["model_id"]: row for row in await surveyed(conn, Choice())}

    assert rows["m"] == {
        "model_id": "m",
        "prompt_version": "1",
        "answers": 3,
        "outstanding": 1,
        "with_tokens": 2,
        "tokens": 40,
        "with_cost": 1,
        "cost_usd": 0.5,
    }
    assert (rows["other"]["answers"], rows["other"]["with_cost"]) == (1, 0)


async def test_a_step_is_bounded(conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at the last one it changed where it may change no more, else at the end of what it looked at."""
    monkeypatch.setattr(rescoring, "BATCH", 2)
    await publish(conn)
    ids = [await scored(conn) for _ in range(3)]
    run = await run_of(conn, Choice())

    first = await rescore_step(conn, run)
    second = await rescore_step(conn, run | {"last_response_id": first.last_response_id})

    assert (first.last_response_id, first.changed) == (ids[1], 2)
    assert (second.last_response_id, second.changed) == (run["until_response_id"], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_score": 3, "max_score": 2},
        {"scored_from": NOW, "scored_before": NOW - DAY},
        {"answered_from": NOW.replace(tzinfo=None)},
        {"max_score": float("nan")},
        {"min_score": float("-inf")},
        {"scored_from": datetime.fromisoformat("0001-01-01T00:00+14:00")},
        {"answered_before": datetime.fromisoformat("9999-12-31T23:59-14:00")},
        {"not_model_id": ""},
        {"not_prompt_version": " "},
        {"model_id": "\u200b"},
        {"question_id": "a\x00"},
        {"module_slug": "\ud800"},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """Slips of the hand, and variables that are not set: "not this model" would choose every score."""
    with pytest.raises(InvalidInputError):
        checked_choice(Choice(**wrong))


@pytest.mark.parametrize("name", ["question_id", "not_model_id", "not_prompt_version"])
def test_an_empty_text_is_no_choice(name: str) -> None:
    """It comes from a variable that is not set: every score has another model than none, and all would be paid for."""
    with pytest.raises(InvalidInputError):
        checked_choice(Choice(**{name: ""}))  # type: ignore[arg-type]
