"""Traces of submits: a span for each, and what the handoff row carries of it to whichever worker scores the answer.

Nothing here imports OpenTelemetry. A web app that traces has imported it and set up a tracer provider; in one that has
not, a submit looks into a dictionary and does nothing more.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from storage.limits import MAX_TRACE_CONTEXT_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType, TracebackType

    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

# In the words of OpenTelemetry's conventions for messaging: who handed in stands for the sender, the table of handoffs
# for the queue. Redis is not named: it only rings.
SYSTEM = "assessment-scoring"
DESTINATION = "scoring_handoffs"
_NAME = f"submit {DESTINATION}"
_ATTRIBUTES = {
    "messaging.system": SYSTEM,
    "messaging.destination.name": DESTINATION,
    "messaging.operation.name": "submit",
    "messaging.operation.type": "send",
}


def _api() -> ModuleType | None:
    """OpenTelemetry's, if somebody in this process uses it."""
    return sys.modules.get("opentelemetry.trace")


def _in_words(context: SpanContext) -> dict[str, str] | None:
    """A span's context as W3C's "Trace Context" writes it; None where there is none."""
    if not context.is_valid:
        return None
    words = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    # A longer one is left out, and the trace goes on without: a submit is not refused for it.
    if (state := context.trace_state.to_header()) and len(state) <= MAX_TRACE_CONTEXT_CHARS["tracestate"]:
        words["tracestate"] = state
    return words


def current_trace_context() -> dict[str, str] | None:
    """Return what ``storage.submit_response`` takes as ``trace_context``, for a transaction of the web app's own.

    The scoring then goes on with the trace of the current span, which stands for the submit.

    Returns:
        ``traceparent`` and perhaps ``tracestate``; None where nobody traces.
    """
    if (api := _api()) is None:
        return None
    with suppress(Exception):  # whatever a foreign tracer raises: no answer is lost for want of a trace
        return _in_words(api.get_current_span().get_span_context())
    return None


class _Tracers:
    """The tracer of the provider that is set now: a web app may set its own after our first submit."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def of(self, api: ModuleType) -> Tracer:
        provider: TracerProvider = api.get_tracer_provider()
        if self._tracer is None or provider is not self._provider:
            self._provider, self._tracer = provider, provider.get_tracer(SYSTEM)
        return self._tracer


_TRACERS = _Tracers()


class TracedSubmit:
    """A submit as a span below the caller's current one; ends with the block.

    It says which response was stored, or which type of error was raised: never an error's text, never anything of the
    answer or of whose it is. An unsampled trace is carried on as such, so that no worker records half of it. A tracer
    that fails costs the trace and not the answer.
    """

    __slots__ = ("_response_id", "_span", "trace_context")

    def __init__(self) -> None:
        self._span: Span | None = None
        self._response_id: int | None = None
        # What the handoff row shall carry; None where nobody traces.
        self.trace_context: Mapping[str, str] | None = None

    def __enter__(self) -> Self:
        if (api := _api()) is not None:
            with suppress(Exception):
                span = _TRACERS.of(api).start_span(_NAME, kind=api.SpanKind.PRODUCER, attributes=_ATTRIBUTES)
                if span.is_recording():
                    self._span = span
                self.trace_context = _in_words(span.get_span_context())
        return self

    def stored(self, row: dict[str, Any]) -> dict[str, Any]:
        """Note which response it became, and return it."""
        self._response_id = row["response_id"]
        return row

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._span is None or (api := _api()) is None:
            return
        with suppress(Exception):
            if self._response_id is not None:
                self._span.set_attribute("messaging.message.id", str(self._response_id))
            elif kind is not None and issubclass(kind, Exception):
                self._span.set_attribute("error.type", kind.__name__)
                self._span.set_status(api.StatusCode.ERROR)
            else:
                # No failure: whoever asked is gone. What was being committed is stored all the same.
                self._span.set_attribute("scoring.result", "cancelled")
            self._span.end()
