"""The jobs: read a payload, pass it on, and never raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.scripted import read_handoffs, submit_answers
from worker.jobs import MAX_TRIES, claim_responses, drain, functions, score_responses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.runtime import Runtime

CANARY = "canary-answer-f00d"

BAD: list[tuple[Any, ...]] = [
    (),
    ({},),
    (None,),
    (CANARY,),
    ([1, 2],),
    ({"response_ids": [], "claim_ids": [], "lane": ""},),
    ({"response_ids": CANARY, "claim_ids": CANARY, "lane": CANARY},),
    ({"response_ids": [1], "claim_ids": [1], "lane": "live", "answer_text": CANARY},),
    ({"response_ids": [1]}, {"response_ids": [2]}),
    ({"response_ids": [0], "claim_ids": [-1]},),
]


class Untouchable:
    """A runtime that nobody may use."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize("job", [score_responses, drain, claim_responses])
@pytest.mark.parametrize("arguments", BAD, ids=repr)
async def test_a_payload_that_breaks_the_contract_is_dropped(
    job: Callable[..., Awaitable[None]], arguments: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log, without the payload; nothing is passed on and nothing is raised."""
    await job({"runtime": Untouchable()}, *arguments)

    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert CANARY not in str(vars(record))


@pytest.mark.commits
async def test_a_payload_is_passed_on(runtime: Runtime, engine: AsyncEngine) -> None:
    """Each job calls what its name says."""
    [response_id] = await submit_answers(engine, 1)

    await score_responses({"runtime": runtime}, {"response_ids": [response_id]})
    await drain({"runtime": runtime}, {"lane": "bulk"})
    await drain({"runtime": runtime}, {"lane": "suspect"})
    await claim_responses({"runtime": runtime}, {"claim_ids": [1]})
    await runtime.settler.wait_idle()

    assert runtime.intake._more == {"bulk"}
    assert runtime.intake._wanted_alone
    assert response_id not in await read_handoffs(engine) or runtime.pool.free_slots < runtime.pool.slots


def test_jobs_are_short_and_few() -> None:
    """The three names of the contract, each with a time-out, a bounded number of tries and no result."""
    found = {function.name: function for function in functions()}

    assert set(found) == {"score_responses", "drain", "claim_responses"}
    for function in found.values():
        assert function.timeout_s == 30
        assert function.max_tries == MAX_TRIES
        assert function.keep_result_s == 0
