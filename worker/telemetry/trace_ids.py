"""Which trace a line of the log belongs to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces


class TraceIds(logging.Filter):
    """Adds ``trace_id`` and ``span_id`` to lines about an answer; lets every line pass.

    Those that are logged while the scorer is at it have the current span, those that name a ``response_id`` the span of
    its lease. On handlers and not among structlog's processors, so that they stand in the lines of any logging, the
    one of arq's own command included.

    Args:
        traces: Knows the leases.
    """

    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self._traces = traces

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is known."""
        context = get_current_span().get_span_context()
        if not context.is_valid:
            found = self._traces.context_of(getattr(record, "response_id", None))
            if found is None:
                return True
            context = found
        record.trace_id = format_trace_id(context.trace_id)
        record.span_id = format_span_id(context.span_id)
        return True
