"""Whether a worker traces, and where its spans go: as the standard variables of OpenTelemetry say.

Whatever waits for the collector waits in a thread of its own; no answer waits for it, and a stop only for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from opentelemetry.trace import TracerProvider

    from worker.telemetry.trace_ids import TraceIds
    from worker.telemetry.traces import Traces

logger = logging.getLogger(__name__)

SERVICE_NAME = "assessment-scoring"
# What a collector that hangs may take of a stop.
FLUSH_SECONDS = 1.5
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class Tracing:
    """The traces of one worker, from its start to its stop.

    Args:
        provider: Makes the tracer.
        shut_down: Whether the provider is ours to shut down.
    """

    def __init__(self, provider: TracerProvider, *, shut_down: bool) -> None:
        from worker.telemetry.trace_ids import TraceIds  # noqa: PLC0415 - a worker that does not trace loads neither
        from worker.telemetry.traces import Traces  # noqa: PLC0415

        self.traces: Traces = Traces(provider)
        self._provider = provider
        self._shut_down = shut_down
        self._ids: TraceIds = TraceIds(self.traces)
        self._handlers = list(logging.getLogger().handlers)
        for handler in self._handlers:
            handler.addFilter(self._ids)

    async def close(self) -> None:
        """End what is open and send what waits, for at most ``FLUSH_SECONDS``: what is not sent by then is lost."""
        for handler in self._handlers:
            handler.removeFilter(self._ids)
        self.traces.close()
        shut_down = getattr(self._provider, "shutdown", None)
        if not self._shut_down or shut_down is None:
            return
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            try:
                shut_down()
            finally:
                loop.call_soon_threadsafe(sent.set)

        # Not the event loop's own threads: the process would wait for those at its end, however long they hang.
        threading.Thread(target=send, name="scoring-traces-flush", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await sent.wait()
        except TimeoutError:
            logger.warning(  # the time-out itself tells nothing
                "The last traces could not be sent in time and are lost."
            )


def open_tracing(worker_id: UUID, environ: Mapping[str, str] | None = None) -> Tracing | None:
    """Begin to trace, if this process is set up for it.

    Either somebody has set a tracer provider (``opentelemetry-instrument``, a scorer of one's own): then that is used,
    and stays theirs. Or the variables ask for one: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_EXPORTER=otlp`` and
    so on. What is wrong with them is said once, and the worker works without.

    Args:
        worker_id: Tells this worker from the others, as ``service.instance.id``.
        environ: In place of the process's own.

    Returns:
        None where nobody wants traces.
    """
    environ = os.environ if environ is None else environ
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if (provider := _provider_of_others()) is not None:
        return Tracing(provider, shut_down=False)
    if not _asks_for_traces(environ):
        return None
    try:
        from worker.telemetry.collector import open_provider  # noqa: PLC0415 - it may not be installed

        provider = open_provider(
            {
                "service.name": SERVICE_NAME,
                "service.version": version("assessment-scoring"),
                "service.instance.id": str(worker_id),
            }
        )
    except ImportError:
        logger.warning(
            "The OTEL_ variables ask for traces, but what sends them is not installed; the worker works without: "
            "install assessment-scoring[telemetry]."
        )
        return None
    except Exception as exc:  # noqa: BLE001 - a wrong variable; its value may be a secret
        logger.warning(
            "The OTEL_ variables cannot be used; the worker works without traces.",
            extra={"error": type(exc).__name__},
        )
        return None
    return Tracing(provider, shut_down=True)


def _provider_of_others() -> TracerProvider | None:
    if (api := sys.modules.get("opentelemetry.trace")) is None:
        return None
    provider: TracerProvider = api.get_tracer_provider()
    return None if isinstance(provider, (api.ProxyTracerProvider, api.NoOpTracerProvider)) else provider


def _asks_for_traces(environ: Mapping[str, str]) -> bool:
    exporters = {name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",")} - {""}
    if exporters and "otlp" not in exporters:
        if exporters != {"none"}:
            logger.warning(
                "OTEL_TRACES_EXPORTER is wrong: expected otlp or none; the worker works without traces."
            )
        return False
    if not exporters and not any(environ.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((environ[name].strip().lower() for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        logger.warning(
            "OTEL_EXPORTER_OTLP_PROTOCOL is wrong: expected %s; the worker works without traces.", _PROTOCOL
        )
        return False
    return True
