"""The pool: whatever a scorer does, its slot comes back and its answer gets a verdict."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.producers.waiting import eventually, settled
from tests.worker.scripted import QUESTION, ScriptedScorer, a_lease, good_score
from worker.breaker import Breaker
from worker.decisions import Bury, Fail, HandBack, Postpone, Settle
from worker.pool import ScoringPool
from worker.scorers.outcomes import AttemptFailed, Hopeless, Misconfigured, ProviderTrouble, ScoringError
from worker.scorers.protocol import Answer, DimensionScore, Score, Usage
from worker.settler import Settler

if TYPE_CHECKING:
    from worker.decisions import Transition
    from worker.leased import Lease

CANARY = "canary-answer-f00d"


class Verdicts(Settler):
    """Keeps what it is given instead of performing it."""

    def __init__(self) -> None:
        self.given: list[tuple[Lease, Transition]] = []

    def put(self, lease: Lease, transition: Transition) -> None:
        self.given.append((lease, transition))

    @property
    def only(self) -> Transition:
        """The one transition that was put."""
        [(_, transition)] = self.given
        return transition


class Bench:
    """A pool on a scripted scorer."""

    def __init__(self, scorer: ScriptedScorer, **changes: Any) -> None:
        self.verdicts = Verdicts()
        self.breaker = Breaker()
        self.changes = 0
        given: dict[str, Any] = {"slots": 10, "answer_seconds": 60, "max_attempts": 5}
        self.costs: list[tuple[int, Usage | None]] = []
        self.pool = ScoringPool(
            scorer=scorer,
            settler=self.verdicts,
            breaker=self.breaker,
            on_cost=lambda *cost: self.costs.append(cost),
            on_change=self._changed,
            **given | changes,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def verdict(self, lease: Lease) -> Transition:
        """Score one answer and return what becomes of it."""
        self.pool.start(lease, QUESTION)
        await eventually(lambda: self.verdicts.given)
        return self.verdicts.only


@pytest.fixture
def bench(scorer: ScriptedScorer) -> Bench:
    return Bench(scorer)


def raising(error: BaseException) -> ScriptedScorer:
    """A scorer that raises this."""

    async def behave(_: Answer) -> Score:
        raise error

    return ScriptedScorer(behave)


def returning(value: Any) -> ScriptedScorer:
    """A scorer that returns this."""

    async def behave(_: Answer) -> Score:
        score: Score = value  # whatever foreign code does
        return score

    return ScriptedScorer(behave)


async def test_a_slot_is_free_when_the_scorer_returns(bench: Bench, scorer: ScriptedScorer) -> None:
    """Committing takes time that the next answer need not wait for; the handoff is held until then."""
    scorer.hold()
    bench.pool.start(a_lease(1), QUESTION)
    bench.pool.start(a_lease(2, lane="bulk"), QUESTION)
    assert (bench.pool.free_slots, bench.pool.in_lane("live"), bench.pool.in_lane("bulk")) == (8, 1, 1)

    scorer.let_go()
    await eventually(lambda: len(bench.verdicts.given) == 2)

    assert bench.costs == [(1, Usage()), (2, Usage())], "the rate limits are told"
    assert bench.pool.free_slots == 10
    assert bench.changes == 2
    assert not bench.pool.holds_nothing
    bench.pool.done(1)
    bench.pool.done(2)
    assert bench.pool.holds_nothing


async def test_a_score_is_settled(bench: Bench) -> None:
    """The ordinary case."""
    assert isinstance(await bench.verdict(a_lease()), Settle)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        RuntimeError(CANARY),
        StopIteration(CANARY),
        StopAsyncIteration(CANARY),
        SystemExit(CANARY),
        MemoryError(CANARY),
        RecursionError(CANARY),
        GeneratorExit(CANARY),
        BaseExceptionGroup(CANARY, [SystemExit(CANARY)]),
        ExceptionGroup(CANARY, [ValueError(CANARY)]),
        asyncio.CancelledError(CANARY),
        asyncio.InvalidStateError(CANARY),
        AttemptFailed("Bad JSON."),
        ScoringError("Mine."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_scorer_raises_is_a_failed_attempt(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Foreign code may raise anything: one attempt is used up, the slot is free, and no text of it leaks."""
    caplog.set_level(logging.DEBUG)
    bench = Bench(raising(error))

    verdict = await bench.verdict(a_lease())

    assert isinstance(verdict, Fail)
    assert bench.pool.free_slots == 10
    assert CANARY not in (verdict.release.reason or "")
    assert CANARY not in caplog.text


async def test_a_scorer_s_own_time_out_is_trouble() -> None:
    """A scorer that lets a time-out through met trouble on the way; the answer is not to blame."""
    verdict = await Bench(raising(TimeoutError(CANARY))).verdict(a_lease())

    assert isinstance(verdict, Postpone)
    assert verdict.release.reason == "The scorer timed out."


async def test_an_answer_has_only_so_much_time(scorer: ScriptedScorer) -> None:
    """A scorer that hangs is ended after ``answer_seconds``, and the answer is postponed."""
    scorer.hold()
    bench = Bench(scorer, answer_seconds=0.05)

    verdict = await bench.verdict(a_lease())

    assert isinstance(verdict, Postpone)
    assert verdict.release.reason == "No score within 0.05 s."
    assert not scorer.running


@pytest.mark.parametrize(
    "value",
    [
        None,
        "4",
        {"overall_score": 4},
        SimpleNamespace(overall_score=4.0, dimensions=(), reasoning="", model_id="m", prompt_version="1"),
        good_score(overall_score=0.99),
        good_score(overall_score=5.01),
        good_score(dimensions=(DimensionScore(name="facts", score=6),)),
        Score.model_construct(
            overall_score=float("nan"), reasoning="", model_id="m", prompt_version="1", dimensions=()
        ),
        good_score().model_copy(update={"overall_score": "high"}),
    ],
    ids=["none", "text", "dict", "lookalike", "low", "high", "dimension", "nan", "unchecked"],
)
async def test_what_is_no_score_on_the_scale_is_a_failed_attempt(value: Any) -> None:
    """Only a ``Score`` within the question's scale is written; anything else uses up an attempt."""
    bench = Bench(returning(value))

    verdict = await bench.verdict(a_lease())

    assert isinstance(verdict, Fail)
    assert bench.pool.free_slots == 10


@pytest.mark.parametrize("overall", [1.0, 5.0])
async def test_the_ends_of_the_scale_belong_to_it(overall: float) -> None:
    """The lowest and the highest score are scores."""
    assert isinstance(await Bench(returning(good_score(overall_score=overall))).verdict(a_lease()), Settle)


async def test_the_scale_is_the_question_s(bench: Bench) -> None:
    """A score of 4 is off a scale that ends at 1."""
    bench.pool.start(a_lease(), replace(QUESTION, scale_min=0, scale_max=1))
    await eventually(lambda: bench.verdicts.given)

    assert isinstance(bench.verdicts.only, Fail)
    assert "0 to 1" in (bench.verdicts.only.release.reason or "")


@pytest.mark.parametrize("retry_after", ["30", object()])
async def test_an_outcome_that_makes_no_sense_is_a_failed_attempt(
    retry_after: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A ``Retry-After`` that is no number, say: the answer gets a verdict and is not held for ever."""
    bench = Bench(raising(ProviderTrouble("429", retry_after_seconds=retry_after)))

    verdict = await bench.verdict(a_lease())

    assert isinstance(verdict, Fail)
    assert bench.pool.free_slots == 10
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_cost_that_makes_no_sense_is_a_failed_attempt(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is told of the cost may fail on a foreign one: the answer is not held for ever."""

    def refuse(*_: object) -> None:
        raise TypeError

    bench.pool._on_cost = refuse

    verdict = await bench.verdict(a_lease())

    assert isinstance(verdict, Fail)
    assert bench.pool.free_slots == 10
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_an_unforeseen_error_is_logged_with_its_place_and_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Type and place are enough to find a bug; message and values may quote the answer."""
    bench = Bench(raising(ValueError(CANARY)))

    await bench.verdict(a_lease(answer=Answer(7, CANARY)))

    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert vars(record)["error"] == "ValueError"
    assert "scripted.py" in vars(record)["place"] or "test_pool.py" in vars(record)["place"]
    assert CANARY not in str(vars(record))


async def test_the_hopeless_is_buried() -> None:
    """The reason that the scorer gave is kept."""
    verdict = await Bench(raising(Hopeless("The model refuses."))).verdict(a_lease())

    assert isinstance(verdict, Bury)
    assert verdict.release.reason == "The model refuses."


async def test_one_answer_runs_once_under_its_newest_token(bench: Bench, scorer: ScriptedScorer) -> None:
    """A lease that ran out and came back to the same process goes on, and ends under the new token."""
    scorer.behaviour = raising(AttemptFailed()).behaviour
    scorer.hold()
    first = a_lease()
    again = replace(first, lease_token=uuid4())

    bench.pool.start(first, QUESTION)
    await eventually(lambda: scorer.running)
    bench.pool.start(again, QUESTION)
    assert bench.pool.renewable() == [(1, again.lease_token)]
    assert bench.pool.free_slots == 9
    scorer.let_go()
    await eventually(lambda: bench.verdicts.given)

    assert scorer.started.total() == 1
    assert isinstance(bench.verdicts.only, Fail)
    assert bench.verdicts.only.release.lease_token == again.lease_token


async def test_leases_are_renewed_only_for_their_time(scorer: ScriptedScorer) -> None:
    """Beyond ``answer_seconds`` nobody keeps a lease, even if its result cannot be written."""
    bench = Bench(scorer, answer_seconds=0.05)
    scorer.hold()
    lease = a_lease()
    bench.pool.start(lease, QUESTION)
    assert bench.pool.renewable() == [(1, lease.lease_token)]

    await eventually(lambda: not bench.pool.renewable())

    assert not bench.pool.holds_nothing


async def test_a_lease_that_cannot_be_started_is_handed_back(bench: Bench) -> None:
    """It is held until the hand-back is written, and takes no slot."""
    bench.pool.give_back(a_lease())
    bench.pool.give_back(a_lease())

    assert isinstance(bench.verdicts.only, HandBack)
    assert bench.pool.free_slots == 10


async def test_trouble_of_many_opens_the_breaker(bench: Bench, scorer: ScriptedScorer) -> None:
    """The pool tells the breaker; what fails while it opens is postponed without a pause of its own."""
    scorer.behaviour = raising(ProviderTrouble("503")).behaviour

    for number in range(1, 6):
        bench.pool.start(a_lease(number), QUESTION)
    await eventually(lambda: len(bench.verdicts.given) == 5)

    assert bench.breaker.is_open
    pauses = [what.release.delay_seconds for _, what in bench.verdicts.given if isinstance(what, Postpone)]
    assert all(pauses[:4])
    assert pauses[4] == 0


async def test_a_wrong_key_does_not_bury_a_backlog(bench: Bench, scorer: ScriptedScorer) -> None:
    """A rejected configuration buries the first few and opens the breaker for the rest."""
    scorer.behaviour = raising(Misconfigured("401")).behaviour

    for number in range(1, 6):
        bench.pool.start(a_lease(number), QUESTION)
    await eventually(lambda: len(bench.verdicts.given) == 5)

    assert bench.breaker.is_open
    assert bench.breaker.allowance(10) == 0


async def test_trouble_while_others_succeed_is_suspicious(bench: Bench, scorer: ScriptedScorer) -> None:
    """Only successes that came while this answer was with the scorer count against it."""
    scorer.hold()

    async def behave(answer: Answer) -> Score:
        if answer.response_id == 1001:
            raise ProviderTrouble("500")
        return good_score()

    scorer.behaviour = behave
    bench.pool.start(a_lease(2), QUESTION)
    bench.pool.start(a_lease(1), QUESTION)
    scorer.let_go()
    await eventually(lambda: len(bench.verdicts.given) == 2)
    bench.pool.done(1)
    bench.pool.start(a_lease(1), QUESTION)
    await eventually(lambda: len(bench.verdicts.given) == 3)

    postponed = [what.release.suspicious for _, what in bench.verdicts.given if isinstance(what, Postpone)]
    assert postponed == [True, False]


async def test_stopping_finishes_what_it_can(bench: Bench, scorer: ScriptedScorer) -> None:
    """Within the grace time answers are finished; a new lease is handed back at once."""
    scorer.hold()
    bench.pool.start(a_lease(1), QUESTION)
    await eventually(lambda: scorer.running)
    stopping = asyncio.create_task(bench.pool.stop(60, asyncio.Event()))
    await settled()
    bench.pool.start(a_lease(2), QUESTION)

    scorer.let_go()
    await stopping

    kinds = {lease.handoff_id: type(what) for lease, what in bench.verdicts.given}
    assert kinds == {1: Settle, 2: HandBack}


async def test_the_rest_is_handed_back(bench: Bench, scorer: ScriptedScorer) -> None:
    """Without grace time everything that is running is cancelled and handed back, counting nothing."""
    scorer.hold()
    for number in range(1, 5):
        bench.pool.start(a_lease(number), QUESTION)
    await eventually(lambda: len(scorer.running) == 4)

    await bench.pool.stop(0, asyncio.Event())

    assert [type(what) for _, what in bench.verdicts.given] == [HandBack] * 4
    assert not scorer.running


async def test_a_second_signal_ends_the_grace_time(bench: Bench, scorer: ScriptedScorer) -> None:
    """Whoever is in a hurry does not wait for the scorer."""
    scorer.hold()
    bench.pool.start(a_lease(), QUESTION)
    await eventually(lambda: scorer.running)
    hurry = asyncio.Event()
    stopping = asyncio.create_task(bench.pool.stop(3600, hurry))
    await settled()
    assert not stopping.done()

    hurry.set()
    await stopping

    assert isinstance(bench.verdicts.only, HandBack)


async def test_a_scorer_that_will_not_stop_loses_its_answer(bench: Bench, scorer: ScriptedScorer) -> None:
    """Its lease is handed back all the same, and what it returns later is not written by this process."""
    over = asyncio.Event()

    async def stubborn(_: Answer) -> Score:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return good_score()

    scorer.behaviour = stubborn
    bench.pool.start(a_lease(), QUESTION)
    await eventually(lambda: scorer.running)

    await bench.pool.stop(0, asyncio.Event())
    handed_back = list(bench.verdicts.given)
    over.set()
    await eventually(lambda: not scorer.running)
    await settled()

    assert [type(what) for _, what in handed_back] == [HandBack]
    assert bench.verdicts.given == handed_back
    assert bench.pool.free_slots == 10


async def test_a_cancelled_probe_makes_way(bench: Bench, scorer: ScriptedScorer) -> None:
    """A worker that stops tells the breaker that its probe was given up."""
    clock = [0.0]
    bench.breaker._clock = lambda: clock[0]
    for number in range(10, 15):
        bench.breaker.failed(number, "503")
    clock[0] = 100.0
    scorer.hold()
    bench.pool.start(a_lease(), QUESTION)
    await eventually(lambda: scorer.running)
    assert bench.breaker.allowance(10) == 0

    await bench.pool.stop(0, asyncio.Event())

    assert bench.breaker.allowance(10) == 1
