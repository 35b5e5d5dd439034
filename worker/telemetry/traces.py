"""Traces: every lease is a span below the submit that its handoff row names, whichever worker holds it and why."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from producers.tracing import DESTINATION, SYSTEM
from storage.limits import MAX_TRACE_CONTEXT_CHARS
from worker.decisions import OUTCOMES, Bury, Fail, Postpone
from worker.observer import Observer
from worker.scorers.outcomes import ScoringError
from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from worker.decisions import Transition
    from worker.leased import Lease
    from worker.observer import Result

# Many more than any worker holds. Reached only where leases end in a way that nobody foresaw.
MAX_OPEN = 20_000
# A scorer of somebody's own may call its model anything.
MAX_MODEL_CHARS = 200
_PROVIDERS = frozenset({"openai", "anthropic"})

_MESSAGING: Mapping[str, AttributeValue] = {
    "messaging.system": SYSTEM,
    "messaging.destination.name": DESTINATION,
}
_SCORE = {**_MESSAGING, "messaging.operation.name": "score", "messaging.operation.type": "process"}
_SETTLE = {**_MESSAGING, "messaging.operation.name": "settle", "messaging.operation.type": "settle"}

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
# One member of a tracestate. Checked before OpenTelemetry reads it, which logs what it does not like.
_MEMBER = re.compile(
    r"([a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MAX_MEMBERS = 32


def parent_of(trace_context: object) -> Context:
    """Read what a handoff row carries. Whatever the web role wrote there: nothing is raised, and nothing is logged.

    Args:
        trace_context: What the row says.

    Returns:
        A context with the submit's span in it; an empty one, for a trace of its own, where the row names none.
    """
    if not isinstance(trace_context, Mapping):
        return Context()
    traceparent = trace_context.get("traceparent")
    if not isinstance(traceparent, str) or len(traceparent) > MAX_TRACE_CONTEXT_CHARS["traceparent"]:
        return Context()
    read = _TRACEPARENT.fullmatch(traceparent)
    # A later version may append to it, this one has nothing there; ff is forbidden.
    if read is None or read[1] == "ff" or (read[1] == "00" and read[5]):
        return Context()
    context = SpanContext(
        int(read[2], 16),
        int(read[3], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(read[4], 16)),
        trace_state=_state_of(trace_context.get("tracestate")),
    )
    return set_span_in_context(NonRecordingSpan(context), Context()) if context.is_valid else Context()


def _state_of(tracestate: object) -> TraceState:
    if not isinstance(tracestate, str) or len(tracestate) > MAX_TRACE_CONTEXT_CHARS["tracestate"]:
        return TraceState()
    members = [_MEMBER.fullmatch(member.strip(" \t")) for member in tracestate.split(",")]
    pairs = [(member[1], member[2]) for member in members if member]
    # One that is broken is dropped as a whole, as the W3C asks.
    if len(pairs) < len(members) or len(pairs) > _MAX_MEMBERS or len(dict(pairs)) < len(pairs):
        return TraceState()
    return TraceState(pairs)


@dataclass(slots=True)
class _Open:
    """The spans of a lease that has not ended."""

    response_id: int
    lease: Span
    scorer: Span | None = None
    error_type: str | None = None


class Traces(Observer):
    """Tells a tracer what a worker does with each lease.

    A span is open from the lease to the reply of PostgreSQL, with one for the scorer and one for the commit below it.
    None holds an answer's text, whose it is, or the reason of a failure: only the type of the error.

    Args:
        provider: Makes the tracer; stays the caller's.
        max_open: So many leases are followed at the same time; beyond it the oldest is given up.
    """

    def __init__(self, provider: TracerProvider, *, max_open: int = MAX_OPEN) -> None:
        self._tracer = provider.get_tracer(SYSTEM)
        self._max_open = max_open
        self._open: dict[int, _Open] = {}
        self._by_response: dict[int, int] = {}

    @property
    def open(self) -> int:
        """How many leases are being followed."""
        return len(self._open)

    def context_of(self, response_id: object) -> SpanContext | None:
        """Which span a response's lease has, if it is leased here."""
        if not isinstance(response_id, int) or (handoff_id := self._by_response.get(response_id)) is None:
            return None
        held = self._open.get(handoff_id)
        return None if held is None else held.lease.get_span_context()

    def leased(self, lease: Lease) -> None:
        """Begin the span of a lease, in the trace of its submit."""
        self._give_up(lease.handoff_id)
        if len(self._open) >= self._max_open:
            self._give_up(next(iter(self._open)))
        span = self._tracer.start_span(
            f"score {DESTINATION}",
            context=parent_of(lease.trace_context),
            kind=SpanKind.CONSUMER,
            attributes={
                **_SCORE,
                "messaging.message.id": str(lease.response_id),
                "scoring.handoff_id": lease.handoff_id,
                "scoring.lane": lease.lane,
                "scoring.source": lease.source,
                "scoring.attempt": lease.attempts + 1,
                "scoring.postponements": lease.postponements,
                "scoring.lease_losses": lease.lease_losses,
                "scoring.waited_seconds": lease.waited_seconds,
            },
        )
        self._open[lease.handoff_id] = _Open(lease.response_id, span)
        self._by_response[lease.response_id] = lease.handoff_id

    def scoring(self, lease: Lease) -> None:
        """Begin the scorer's span, and make it current: we are in the task in which the scorer runs."""
        if (held := self._open.get(lease.handoff_id)) is None:
            return
        held.scorer = self._tracer.start_span("scorer", context=set_span_in_context(held.lease, Context()))
        # Never detached: the context is the task's own and ends with it.
        attach(set_span_in_context(held.scorer))

    def scored(self, lease: Lease, outcome: Score | ScoringError | None, seconds: float) -> None:  # noqa: ARG002 - the span has its own clock
        """End the scorer's span, with what it cost or the type of its error."""
        if (held := self._open.get(lease.handoff_id)) is None:
            return
        if isinstance(outcome, ScoringError):
            held.error_type = type(outcome).__name__
        if held.scorer is None:
            return
        span, held.scorer = held.scorer, None
        try:
            if isinstance(outcome, Score):
                span.set_attributes(_cost(outcome))
            elif outcome is None:
                span.set_attribute("scoring.result", "cancelled")
            else:
                _mark_failed(span, held.error_type)
        finally:
            span.end()

    def ended(self, lease: Lease, transition: Transition, result: Result, seconds: float) -> None:
        """End the span of a lease, with what became of it, after one for the commit."""
        if (held := self._open.get(lease.handoff_id)) is None:
            return  # given back before it was begun
        outcome = {"scoring.outcome": OUTCOMES[type(transition)], "scoring.result": result}
        try:
            if held.lease.is_recording():
                settle = self._tracer.start_span(
                    f"settle {DESTINATION}",
                    context=set_span_in_context(held.lease, Context()),
                    kind=SpanKind.CLIENT,
                    attributes={**_SETTLE, "messaging.message.id": str(lease.response_id), **outcome},
                    start_time=time.time_ns() - int(seconds * 1e9),
                )
                settle.end()
                held.lease.set_attributes(outcome)
                if isinstance(transition, (Fail, Postpone, Bury)):
                    # Where the scorer had a score and PostgreSQL refused to store it, the scorer names no error.
                    _mark_failed(held.lease, held.error_type or "_OTHER")
        finally:
            self._forget(lease.handoff_id)

    def close(self) -> None:
        """End the spans of leases whose end nobody will hear of: what could not be written when the worker stopped."""
        for handoff_id in list(self._open):
            self._give_up(handoff_id)

    def _give_up(self, handoff_id: int) -> None:
        if held := self._open.get(handoff_id):
            held.lease.set_attribute("scoring.result", "unknown")
            self._forget(handoff_id)

    def _forget(self, handoff_id: int) -> None:
        held = self._open.pop(handoff_id)
        # A response that is scored again at the same time has a second handoff, and its lines are that one's by now.
        if self._by_response.get(held.response_id) == handoff_id:
            del self._by_response[held.response_id]
        if held.scorer is not None:
            # It was cancelled and does not listen, see ScoringPool.stop.
            held.scorer.set_attribute("scoring.result", "given_up")
            held.scorer.end()
        held.lease.end()


def _mark_failed(span: Span, error_type: str | None) -> None:
    if error_type is not None:
        span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)


def _cost(score: Score) -> dict[str, Any]:
    """What a score says of the model that gave it; in the words for generative models where one was asked."""
    model_id = score.model_id[:MAX_MODEL_CHARS]
    said: dict[str, Any] = {"scoring.model_id": model_id}
    if score.usage.requests:
        provider, _, model = model_id.partition(":")
        if provider in _PROVIDERS:  # our own scorer's way to write it, see worker.scorers.llm
            said["gen_ai.provider.name"] = provider
        said |= {
            "gen_ai.response.model": model if provider in _PROVIDERS else model_id,
            "gen_ai.usage.input_tokens": score.usage.input_tokens,
            "gen_ai.usage.output_tokens": score.usage.output_tokens,
            "scoring.requests": score.usage.requests,
        }
    return said
