"""Traces through real processes, a real collector, and where nothing of OpenTelemetry is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from demo.worker_process import READY, worker_process
from tests.factories import publish, submission
from tests.faults.processes import start_process
from tests.producers.waiting import eventually
from tests.telemetry.collector import collecting
from tests.worker.scripted import read_handoffs, scored_once
from worker.telemetry.tracing import open_tracing

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.telemetry.collector import Collector

pytestmark = [pytest.mark.commits, pytest.mark.processes]

CANARY = "canary answer"
TOKEN = "canary token, which is long enough"
PATIENCE_SECONDS = 60

# A web process with a tracer provider of its own: a host's span, and a submit below it.
HOST = """
import asyncio, os, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from producers import open_producer

provider = TracerProvider(resource=Resource({"service.name": "host"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

async def main():
    async with open_producer() as producer:
        with provider.get_tracer("host").start_as_current_span("POST /answers"):
            row = await producer.submit(
                anonymous_token=sys.argv[2], module_slug=sys.argv[3], question_id=sys.argv[4], answer_text=sys.argv[1]
            )
    print(row["response_id"])

asyncio.run(main())
"""
# The same without OpenTelemetry, which cannot be imported at all.
BARE = """
import asyncio, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from producers import open_producer
from producers.tracing import current_trace_context

async def main():
    assert current_trace_context() is None
    async with open_producer() as producer:
        row = await producer.submit(
            anonymous_token=sys.argv[2], module_slug=sys.argv[3], question_id=sys.argv[4], answer_text=sys.argv[1]
        )
    print(row["response_id"])

asyncio.run(main())
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """Of web process and worker."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "SCORING_DATABASE_URL": database_url,
        "SCORING_REDIS_URL": redis_url,
        "SCORING_SCORER": "lexical",
        "SCORING_SWEEP_SECONDS": "0.2",
        "SCORING_LOG_FORMAT": "json",
    }


async def handed_in(program: str, environment: dict[str, str]) -> int:
    """Run a web process that hands in one answer."""
    asked = submission()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, CANARY, TOKEN, asked["module_slug"], asked["question_id"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def tracing_to(collector: Collector) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


async def test_a_lost_message_does_not_break_its_trace(
    environment: dict[str, str], engine: AsyncEngine, redis: Redis, tmp_path: Path
) -> None:
    """Web process, no message, sweep, worker: the collector has one trace, and nothing of the answer or its owner."""
    async with engine.begin() as conn:
        await publish(conn)
    log = tmp_path / "worker.log"
    with collecting() as collector:
        environment |= tracing_to(collector)
        response_id = await handed_in(HOST, environment)
        await redis.flushdb()

        with worker_process(environment, log):
            await eventually(lambda: scored_once(engine, [response_id]))

        spans = {span.name: span for span in collector.spans()}
        assert len(collector.spans()) == len(spans) == 5
        host, submit = spans["POST /answers"], spans["submit scoring_handoffs"]
        score, scorer, settle = (
            spans[name] for name in ("score scoring_handoffs", "scorer", "settle scoring_handoffs")
        )
        assert [host.parent_id, submit.parent_id, score.parent_id] == ["", host.span_id, submit.span_id]
        assert scorer.parent_id == settle.parent_id == score.span_id
        assert {span.trace_id for span in spans.values()} == {host.trace_id}
        assert [span.service for span in (host, submit, score)] == ["host", "host", "assessment-scoring"]
        assert score.worker
        assert score.attributes["scoring.source"] == "pull"
        assert (score.attributes["scoring.outcome"], score.attributes["scoring.result"]) == (
            "scored",
            "committed",
        )
        sent = b"".join(collector.bodies)
        assert CANARY.encode() not in sent
        assert TOKEN.encode() not in sent


async def test_a_killed_worker_does_not_break_the_trace(
    environment: dict[str, str], engine: AsyncEngine, tmp_path: Path
) -> None:
    """Its own span is never sent; the one that takes over goes on below the same submit, and says that a lease was lost."""
    async with engine.begin() as conn:
        await publish(conn)

    async def leased() -> bool:
        return all(row["lease_token"] is not None for row in (await read_handoffs(engine)).values())

    with collecting() as collector:
        environment |= tracing_to(collector) | {"SCORING_LEASE_SECONDS": "1"}
        response_id = await handed_in(HOST, environment)
        first = await start_process(
            environment | {"SCORING_SCORER": "tests.worker.foreign:hanging"}, tmp_path / "first.log"
        )
        try:
            await eventually(leased, patience_seconds=PATIENCE_SECONDS)
        finally:
            await first.killed()

        with worker_process(environment, tmp_path / "second.log"):
            await eventually(lambda: scored_once(engine, [response_id]), patience_seconds=PATIENCE_SECONDS)

        *_, score = [span for span in collector.spans() if span.name == "score scoring_handoffs"]
        [submit] = [span for span in collector.spans() if span.name == "submit scoring_handoffs"]
    assert (score.trace_id, score.parent_id) == (submit.trace_id, submit.span_id)
    assert score.attributes["scoring.lease_losses"] >= 1


async def test_a_collector_that_hangs_costs_nothing_but_its_spans(
    environment: dict[str, str], engine: AsyncEngine, tmp_path: Path
) -> None:
    """Answers are scored meanwhile; the worker stops in peace, says once what is lost, and quotes no address."""
    async with engine.begin() as conn:
        await publish(conn)
    log = tmp_path / "worker.log"
    with collecting(hangs=True) as collector:
        plain = dict(environment)
        with worker_process(environment | tracing_to(collector), log):
            first = await handed_in(BARE, plain)
            await eventually(lambda: scored_once(engine, [first]))
            await eventually(lambda: collector.bodies)
            second = await handed_in(BARE, plain)
            await eventually(lambda: scored_once(engine, [first, second]))

    said = log.read_text()
    assert said.count("The last traces could not be sent in time and are lost.") == 1
    assert collector.url not in said
    assert "Traceback" not in said


async def test_a_web_app_without_opentelemetry_hands_in_as_before(
    environment: dict[str, str], engine: AsyncEngine
) -> None:
    """Nothing of it is needed or imported; the row carries no trace."""
    async with engine.begin() as conn:
        await publish(conn)
    assert await handed_in(BARE, environment) > 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is wrong"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is wrong",
        ),
    ],
)
def test_a_worker_traces_only_where_it_is_asked_to(
    variables: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And says what is wrong with the variables, once."""
    assert open_tracing(uuid4(), variables) is None
    assert [record.getMessage().startswith(said) for record in caplog.records] == ([True] if said else [])


async def test_a_worker_without_the_extra_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    """It is asked for traces and cannot send them: one line, and it works."""
    log = tmp_path / "worker.log"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    asked = {"PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with worker_process(environment | asked, log):
        await eventually(lambda: READY in log.read_text())

    assert log.read_text().count("install assessment-scoring[telemetry]") == 1
