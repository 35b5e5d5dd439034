"""One trace from the submit to the commit of its score, in one process, with a real SDK."""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, TraceFlags, get_current_span

from producers import open_producer
from producers.tracing import current_trace_context
from storage import InvalidInputError, submit_response, submit_responses
from tests.factories import handoff_of, publish, submission
from tests.producers.waiting import eventually
from tests.worker.scripted import a_lease, change, good_score, read_handoffs, scored_once
from worker.decisions import hand_back
from worker.scorers.outcomes import AttemptFailed, ProviderTrouble
from worker.scorers.protocol import Usage
from worker.telemetry.traces import Traces, parent_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.worker.scripted import ScriptedScorer
    from worker.runtime import Runtime
    from worker.scorers.protocol import Answer, Score

    Running = Callable[..., AbstractAsyncContextManager[Runtime]]

CANARY = "canary answer"
TOKEN = "canary token, which is long enough"
PARENT = {"traceparent": f"00-{7:032x}-{9:016x}-01"}


class Recorded:
    """A tracer provider, and the spans that have ended."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Those whose name begins so, in the order of their ends."""
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(name)]

    def one(self, name: str) -> ReadableSpan:
        """The only one of this name."""
        [span] = self.spans(name)
        return span


def provided(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Recorded:
    """Set up this process for traces, as a host does; until the end of the test."""
    recorded = Recorded(**options)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: recorded.provider)
    return recorded


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return provided(monkeypatch)


def traceparent(context: SpanContext | None) -> str:
    """As the W3C's "Trace Context" writes it."""
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return int(context.span_id)


def parent_id_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return int(context.trace_id)


@pytest.mark.commits
async def test_one_trace_from_the_submit_to_the_commit(
    running: Running,
    engine: AsyncEngine,
    redis: Redis,
    scorer: ScriptedScorer,
    recorded: Recorded,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Host, submit, lease, scorer and settle, each below the other; a failed attempt and its retry in the same trace.

    And nothing of the answer, of whose it is, or of what an error said.
    """
    caplog.set_level(logging.INFO)
    tries = 0
    current: list[int] = []

    async def behave(_: Answer) -> Score:
        nonlocal tries
        tries += 1
        current.append(get_current_span().get_span_context().span_id)
        logging.getLogger("a scorer").info("At it.")
        if tries == 1:
            raise AttemptFailed(f"Cannot read {CANARY}")
        return good_score(model_id="openai:gpt", usage=Usage(requests=1, input_tokens=7, output_tokens=2))

    scorer.behaviour = behave
    async with engine.begin() as conn:
        await publish(conn)
    async with running() as runtime:
        async with open_producer(engine=engine, redis=redis) as producer:
            with recorded.tracer.start_as_current_span("host"):
                given = submission(user_id=None, anonymous_token=TOKEN, answer_text=CANARY)
                row = await producer.submit(**given)
        await eventually(lambda: recorded.spans("settle"))
        await change(engine, row["response_id"], due_at="yesterday")
        await eventually(lambda: scored_once(engine, [row["response_id"]]))
        await eventually(lambda: runtime.pool.holds_nothing)

    host, submit = recorded.one("host"), recorded.one("submit")
    failed, scored = recorded.spans("score ")
    assert parent_id_of(submit) == id_of(host)
    assert [parent_id_of(span) for span in (failed, scored)] == [id_of(submit)] * 2
    assert [parent_id_of(span) for span in recorded.spans("scorer")] == [id_of(failed), id_of(scored)]
    assert [id_of(span) for span in recorded.spans("scorer")] == current
    assert [parent_id_of(span) for span in recorded.spans("settle")] == [id_of(failed), id_of(scored)]
    assert {trace_of(span) for span in recorded.spans()} == {trace_of(host)}
    assert [dict(span.attributes or {})["scoring.outcome"] for span in (failed, scored)] == [
        "failed",
        "scored",
    ]
    assert dict(failed.attributes or {})["error.type"] == "AttemptFailed"
    assert dict(scored.attributes or {})["scoring.attempt"] == 2
    assert dict(recorded.spans("scorer")[1].attributes or {})["gen_ai.usage.input_tokens"] == 7
    said = "".join(span.to_json() for span in recorded.spans())
    assert CANARY not in said
    assert TOKEN not in said


@pytest.mark.commits
async def test_each_of_a_batch_goes_on_with_its_own_trace(
    engine: AsyncEngine, redis: Redis, recorded: Recorded
) -> None:
    """Submits that share a statement do not share a trace; without a host's span each begins one."""
    async with engine.begin() as conn:
        await publish(conn)
    async with open_producer(engine=engine, redis=redis) as producer:

        async def one(name: str) -> int:
            with recorded.tracer.start_as_current_span(name):
                return int((await producer.submit(**submission()))["response_id"])

        ids = await asyncio.gather(*(one(f"host {number}") for number in range(20)))

    hosts = {id_of(span): trace_of(span) for span in recorded.spans("host")}
    submits = {dict(span.attributes or {})["messaging.message.id"]: span for span in recorded.spans("submit")}
    stored = await read_handoffs(engine)
    assert len(hosts) == len(ids) == 20
    for response_id in ids:
        span = submits[str(response_id)]
        assert hosts[parent_id_of(span) or 0] == trace_of(span)
        assert stored[response_id]["trace_context"] == {"traceparent": traceparent(span.get_span_context())}


@pytest.mark.commits
async def test_an_unsampled_trace_is_carried_on_as_such(
    running: Running, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker records half of it."""
    recorded = provided(monkeypatch, sampler=ALWAYS_OFF)
    async with engine.begin() as conn:
        await publish(conn)
    async with open_producer(engine=engine, redis=redis) as producer:
        row = await producer.submit(**submission())
    [handoff] = (await read_handoffs(engine)).values()
    assert not int(handoff["trace_context"]["traceparent"][-2:], 16) & TraceFlags.SAMPLED

    sampled = provided(monkeypatch)  # the worker's: it samples what its parent does
    async with running():
        await eventually(lambda: scored_once(engine, [row["response_id"]]))

    assert recorded.spans() == sampled.spans() == []


@pytest.mark.commits
async def test_a_refused_submit_is_a_span_with_the_type_of_its_error(
    engine: AsyncEngine, redis: Redis, recorded: Recorded
) -> None:
    """Not with its text."""
    async with open_producer(engine=engine, redis=redis) as producer:
        with pytest.raises(InvalidInputError):
            await producer.submit(**submission(answer_text=CANARY + "\x00"))

    assert dict(recorded.one("submit").attributes or {})["error.type"] == "InvalidInputError"
    assert CANARY not in recorded.one("submit").to_json()


async def test_a_transaction_of_ones_own_goes_on_with_the_current_span(
    conn: AsyncConnection, recorded: Recorded
) -> None:
    """What is stored is the current span; a batch of storage's own keeps each apart, and knows of those without."""
    await publish(conn)
    assert current_trace_context() is None
    with recorded.tracer.start_as_current_span("host") as span:
        row = await submit_response(conn, **submission(), trace_context=current_trace_context())
    rows = await submit_responses(
        conn, [submission() | {"trace_context": PARENT | {"baggage": "who=me"}}, submission()]
    )

    stored = [await handoff_of(conn, each["response_id"]) for each in (row, *rows)]
    assert [each and each["trace_context"] for each in stored] == [
        {"traceparent": traceparent(span.get_span_context())},
        PARENT,
        None,
    ]


async def test_a_repeated_key_keeps_the_first_trace(conn: AsyncConnection) -> None:
    """The answer was handed off once, and its trace began then."""
    await publish(conn)
    key = "0198c5f2-7d3e-7000-8000-000000000001"
    row = await submit_response(conn, **submission(submission_key=key), trace_context=PARENT)
    again = PARENT | {"traceparent": f"00-{8:032x}-{8:016x}-01"}
    assert (await submit_response(conn, **submission(submission_key=key), trace_context=again)) == row
    twice = "0198c5f2-7d3e-7000-8000-000000000002"
    pair = [submission(submission_key=twice) | {"trace_context": given} for given in (PARENT, again)]
    rows = await submit_responses(conn, pair)

    for stored in (row, rows[0]):
        handoff = await handoff_of(conn, stored["response_id"])
        assert handoff
        assert handoff["trace_context"] == PARENT


@pytest.mark.parametrize("given", ["text", ["traceparent"], {"traceparent": 5}, {"traceparent": "x" * 129}])
async def test_a_context_that_is_none_is_refused(conn: AsyncConnection, given: Any) -> None:
    """By field, like everything else."""
    with pytest.raises(InvalidInputError, match="trace_context"):
        await submit_response(conn, **submission(), trace_context=given)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "00-1-2-3",
        {},
        [1],
        {"traceparent": None},
        {"traceparent": "00-1"},
        {"traceparent": f"ff-{7:032x}-{9:016x}-01"},
        {"traceparent": f"00-{0:032x}-{9:016x}-01"},
        {"traceparent": f"00-{7:032x}-{0:016x}-01"},
        {"traceparent": f"00-{7:032x}-{9:016x}-01-more"},
        {"traceparent": f"00-{7:032X}-{9:016x}-0g"},
        {"traceparent": "٣" * 55},
        {"traceparent": {"a": 1}},
        {"traceparent": "0" * 10_000},
    ],
)
def test_whatever_a_row_says_begins_a_trace_of_its_own(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The web role may write anything there: nothing is raised or logged."""
    caplog.set_level(logging.DEBUG)
    assert parent_of(given) == Context()
    assert not caplog.records


@pytest.mark.parametrize("state", ["a=1,a=2", "=", "a", "a=\x00", "x" * 600, ",", 5, "A=1"])
def test_a_broken_state_is_dropped_and_the_trace_kept(state: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As the W3C asks."""
    caplog.set_level(logging.DEBUG)
    context = get_current_span(parent_of(PARENT | {"tracestate": state})).get_span_context()
    assert (context.trace_id, context.span_id, len(context.trace_state)) == (7, 9, 0)
    assert not caplog.records


def test_a_later_version_and_a_state_are_read() -> None:
    """A version to come may append to a traceparent."""
    given = {"traceparent": f"01-{7:032x}-{9:016x}-01-more", "tracestate": "a=1, b@c=2"}
    context = get_current_span(parent_of(given)).get_span_context()
    assert (context.trace_id, context.trace_flags.sampled) == (7, True)
    assert context.trace_state.to_header() == "a=1,b@c=2"


def alone(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a context of its own, as an answer's task has one: what is made current there stays there."""

    @wraps(test)
    def run() -> None:
        copy_context().run(test)

    return run


@alone
def test_no_lease_is_followed_for_ever() -> None:
    """However it ends: replaced, beyond the bound, handed back unscored, cancelled, given up at the stop."""
    recorded = Recorded()
    traces = Traces(recorded.provider, max_open=3)
    for number in range(1, 6):
        traces.leased(a_lease(number))
    assert traces.open == 3
    traces.leased(a_lease(5))
    assert traces.open == 3
    assert len(recorded.spans("score ")) == 3

    traces.scoring(a_lease(5))
    traces.scored(a_lease(5), None, 1.0)
    traces.ended(a_lease(5), hand_back(a_lease(5)), "committed", 0.1)
    traces.scoring(a_lease(4))  # its scorer does not listen
    traces.ended(a_lease(4), hand_back(a_lease(4)), "in_doubt", 0.1)
    traces.ended(a_lease(77), hand_back(a_lease(77)), "committed", 0.1)  # given back before it was begun
    traces.scored(a_lease(77), ProviderTrouble("x"), 0.1)
    assert traces.open == 1
    traces.close()

    assert traces.open == 0
    assert traces.context_of(1003) is None
    results = [dict(span.attributes or {}).get("scoring.result") for span in recorded.spans("score ")]
    assert results == ["unknown", "unknown", "unknown", "committed", "in_doubt", "unknown"]
    assert [dict(span.attributes or {})["scoring.result"] for span in recorded.spans("scorer")] == [
        "cancelled",
        "given_up",
    ]


@pytest.mark.commits
async def test_lines_about_an_answer_name_its_trace(
    running: Running, engine: AsyncEngine, scorer: ScriptedScorer, recorded: Recorded
) -> None:
    """Those of the scorer, and those that name a response; others name none."""
    lines: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)

    async def behave(_: Answer) -> Score:
        logging.getLogger("a scorer").warning("At it.")
        raise AttemptFailed("no")

    scorer.behaviour = behave
    async with engine.begin() as conn:
        await publish(conn)
        [row] = await submit_responses(conn, [submission() | {"trace_context": PARENT}])
    root = logging.getLogger()
    keeping, level = Keeping(), root.level
    root.addHandler(keeping)
    root.setLevel(logging.INFO)
    try:
        async with running():
            await eventually(lambda: any("tried again" in line.getMessage() for line in lines))
    finally:
        root.removeHandler(keeping)
        root.setLevel(level)

    named = {line.getMessage(): getattr(line, "trace_id", None) for line in lines}
    assert named["At it."] == named["An answer is tried again later."] == f"{7:032x}"
    assert named["The worker has stopped."] is None
    assert recorded.spans("score ")
    assert row["response_id"]
