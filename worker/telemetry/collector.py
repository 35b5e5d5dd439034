"""The way to an OTLP collector. Needs the extra ``telemetry``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from worker.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

# They write lines for every batch that is not taken, for every span that finds the queue full, and quote addresses.
_CHATTY_LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "urllib3")


class _Reporting(SpanExporter):
    """Says once that the collector is away, and once that it is back."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._outage = Outage("The trace collector", "Scoring goes on; spans that it does not take are lost.")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._outage.over()
        else:
            self._outage.met(ConnectionError())
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def open_provider(defaults: Mapping[str, str]) -> TracerProvider:
    """Make the tracer provider of this process, with sampler, limits, queue and collector as the variables say.

    Args:
        defaults: What describes this process where ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` do not.

    Returns:
        The provider, which is the process's own from now on: instrumented clients find it.

    Raises:
        ValueError: A variable cannot be used.
    """
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    told = OTELResourceDetector().detect().attributes
    resource = Resource.create({name: value for name, value in defaults.items() if name not in told})
    # Not at exit: that would wait for half a minute, after everything else has ended.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Reporting(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)
    return provider
