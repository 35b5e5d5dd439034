"""What a handoff carries of a trace, as web apps store it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from storage import InvalidInputError, submit_responses
from storage.roles import grant_roles
from tests.factories import handoff_of, lease, publish, submission, submit
from tests.storage.acting import ROLES, acting_as

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def trace(number: int = 0) -> dict[str, str]:
    return {"traceparent": f"00-{number:032x}-00f067aa0ba902b7-01"}


async def carried(conn: AsyncConnection, *rows: dict[str, Any]) -> list[Any]:
    """What the handoffs of these responses carry."""
    handoffs = [await handoff_of(conn, row["response_id"]) for row in rows]
    return [handoff and handoff["trace_context"] for handoff in handoffs]


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, None),
        ({}, None),
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "a=1"}, {"traceparent": PARENT, "tracestate": "a=1"}),
        ({"traceparent": PARENT, "tracestate": None}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "baggage": "student=7" * 1_000}, {"traceparent": PARENT}),
        ({"tracestate": "a=1"}, None),
    ],
)
async def test_only_the_trace_s_place_is_stored(conn: AsyncConnection, given: Any, stored: Any) -> None:
    """Whatever else a propagator has written, baggage above all, is left out; a lease returns what was stored."""
    await publish(conn)

    row = await submit(conn, trace_context=given)

    assert await carried(conn, row) == [stored]
    assert [held["trace_context"] for held in await lease(conn, row["response_id"])] == [stored]


@pytest.mark.parametrize(
    "given",
    [
        PARENT,
        [("traceparent", PARENT)],
        {"traceparent": PARENT.encode()},
        {"traceparent": ""},
        {"traceparent": "x" * 129},
        {"traceparent": PARENT, "tracestate": "x" * 513},
        {"traceparent": PARENT + "\x00"},
        {"traceparent": "\ud83d"},
    ],
)
async def test_what_cannot_be_a_trace_is_refused(conn: AsyncConnection, given: Any) -> None:
    """Before a statement is sent, by the argument's name and without the value."""
    with pytest.raises(InvalidInputError) as refused:
        await submit(conn, trace_context=given)

    assert refused.value.field == "trace_context"
    assert "4bf92f35" not in str(refused.value)


async def test_each_of_a_batch_has_its_own(conn: AsyncConnection) -> None:
    """With and without, in any order: each handoff carries what was given with its answer."""
    contexts = [None if number % 3 == 0 else trace(number) for number in range(1, 20)]

    rows = await submit_responses(conn, [submission(trace_context=context) for context in contexts])

    assert await carried(conn, *rows) == contexts


async def test_a_key_given_twice_in_a_batch_carries_the_first(conn: AsyncConnection) -> None:
    """One response, one handoff, and the trace of the submission that was stored; later ones change nothing."""
    key, other = uuid4(), uuid4()
    given = [
        submission(submission_key=key, trace_context=trace(1)),
        submission(submission_key=key, trace_context=trace(2)),
        submission(submission_key=other),
        submission(submission_key=other, trace_context=trace(3)),
    ]

    rows = await submit_responses(conn, given)
    await submit(conn, submission_key=key, trace_context=trace(4))

    assert rows[0] == rows[1]
    assert rows[2] == rows[3]
    assert await carried(conn, rows[0], rows[2]) == [trace(1), None]


async def test_a_web_login_stores_traces(conn: AsyncConnection) -> None:
    """The role of web apps may, alone and in a batch, published or not."""
    await grant_roles(conn, ROLES)
    await publish(conn)
    async with acting_as(conn, "web") as web:
        one = await submit(web, trace_context=trace(1))
        two = await submit_responses(
            web, [submission(trace_context=trace(2)), submission(question_id="other", trace_context=trace(3))]
        )

    assert await carried(conn, one, *two) == [trace(1), trace(2), trace(3)]
