"""What is shipped for monitoring asks for what a worker really exposes; and every metric is described."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from producers.metrics import ProducerMetrics
from tests.databases import ROOT
from tests.worker.scripted import a_lease, good_score
from worker.decisions import Surroundings, decide
from worker.scorers.protocol import Usage
from worker.telemetry.metrics import WorkerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from producers import Producer
    from worker.runtime import Runtime

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "assessment-scoring.json"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
# What Prometheus and Grafana add to a sample by themselves.
ADDED_LABELS = frozenset({"job", "instance", "le"})
PROMTOOL = "promtool"
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Exposition:
    """What a worker answers, as text; its samples, name and labels of each; and the values that each label has."""

    text: str
    samples: dict[str, set[str]]
    values: dict[str, set[str]]

    def has(self, name: str) -> bool:
        """Whether a metric of this name is there."""
        return name in self.samples


class WebProcess:
    """The state of a producer and of event streams, for their names' sake; tests/producers has real ones."""

    submits_waiting, redis_is_away, open_streams, are_blind = 0, False, 1, False


@pytest.fixture
async def exposition(make_runtime: Callable[..., Runtime]) -> Exposition:
    """Of a worker that has measured everything once, and of a web process."""
    runtime = make_runtime(requests_per_minute=600, tokens_per_minute=60_000)
    runtime.redis_is_away = lambda: False
    await runtime.rate_limits.acquire(1, lane="live", certain=True)
    metrics = WorkerMetrics(runtime)
    lease = a_lease()
    score = good_score(usage=Usage(requests=1, input_tokens=1, output_tokens=1, cost_usd=0.1))
    for observer in runtime.observers:
        observer.leased(lease)
        observer.scored(lease, score, 1.0)
        observer.ended(lease, decide(lease, score, Surroundings(), max_attempts=5), "committed", 0.1)
        observer.swept(Counter(live=1))
        observer.lost(1)
        observer.claimed(1)
    web_process = CollectorRegistry()
    in_web = ProducerMetrics(web_process)
    in_web.submitted("stored", 0.01)
    in_web.watch(cast("Producer", WebProcess()), WebProcess())
    text = (await metrics.exposition() + generate_latest(web_process)).decode()
    samples: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    return Exposition(text, samples, values)


def asked_for(query: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of a query, each with the labels that it is chosen by."""
    for name, _, labels in re.findall(r"\b(scoring_\w+)(\{([^}]*)\})?", query):
        yield name, set(re.findall(r"(\w+)\s*[=!]", labels))


def chosen_values(query: str) -> set[tuple[str, str]]:
    """The labels of a query that must, or must not, have one value, and the value."""
    return set(re.findall(r'(\w+)!?="([^"]*)"', query))


def grouped_by(query: str) -> set[str]:
    """The labels by which a query groups."""
    return {label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", query) for label in group.split(",")}


def dashboard_queries() -> list[tuple[str, str]]:
    """Title of the panel and query."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def alert_queries() -> list[tuple[str, str]]:
    """Name of the alert and query."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("queries", [dashboard_queries, alert_queries])
async def test_what_is_asked_for_exists(exposition: Exposition, queries: Any) -> None:
    """Every metric, and every label that chooses or groups, is in a worker's exposition."""
    assert queries()
    for title, query in queries():
        found = list(asked_for(query))
        assert found, title
        known = set(ADDED_LABELS)
        for name, labels in found:
            assert exposition.has(name), (title, name)
            assert labels <= exposition.samples[name] | ADDED_LABELS, (title, name)
            known |= exposition.samples[name]
        assert grouped_by(query) <= known, title
        for label, value in chosen_values(query):
            assert value in exposition.values[label], (title, label, value)


async def test_every_metric_is_described(exposition: Exposition) -> None:
    """The page names what a worker exposes, with its labels, and nothing else."""
    described = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(scoring_\w+)` \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    }
    exposed: dict[str, set[str]] = {}
    for name, labels in exposition.samples.items():
        exposed.setdefault(re.sub(r"_(bucket|sum|count)$", "", name), set()).update(labels - ADDED_LABELS)

    assert exposed == described


async def test_the_dashboard_shows_every_metric(exposition: Exposition) -> None:
    """What is worth measuring is worth a look."""
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for _, query in dashboard_queries()
        for name, _ in asked_for(query)
    }
    assert shown == {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposition.samples}


def test_the_dashboard_can_be_imported() -> None:
    """Numbers of panels are unique, none covers another, and none names a data source of ours."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for asking in (panel, *panel.get("targets", ())) if panel["type"] != "row" else ():
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "job"}


@pytest.fixture
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which(PROMTOOL)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("promtool is missing", pytrace=False)
    if found is None:
        pytest.skip("promtool is missing: it is part of Prometheus")
    return found


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a program to its end, which must be a good one."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_alerts_fire_when_they_should(promtool: str) -> None:
    """Prometheus' own tests of the rules: each fires, and each is silent where all is well."""
    run(promtool, "check", "rules", PROMETHEUS / "alerts.yml")
    assert "SUCCESS" in run(promtool, "test", "rules", PROMETHEUS / "alerts.test.yml")


def test_each_alert_is_tested_both_ways() -> None:
    """None is without a test that it fires and one that it is silent."""
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    checked = {
        (rule["alertname"], bool(rule["exp_alerts"])) for test in tests for rule in test["alert_rule_test"]
    }
    assert checked == {(name, fires) for name, _ in alert_queries() for fires in (True, False)}


def test_the_scrape_configuration_is_one(promtool: str) -> None:
    """Prometheus understands it, and finds the rules that it names."""
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


async def test_the_exposition_keeps_to_the_rules(promtool: str, exposition: Exposition) -> None:
    """Names, units and help texts, as Prometheus' linter wants them."""
    run(promtool, "check", "metrics", given=exposition.text)


def test_the_dashboards_queries_can_be_read(promtool: str, tmp_path: Path) -> None:
    """By Prometheus itself, as rules, with Grafana's variables filled in."""
    rules = [
        {
            "record": f"panel:{number}",
            "expr": query.replace("$__rate_interval", "5m").replace("$job", ".+"),
        }
        for number, (_, query) in enumerate(dashboard_queries())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    run(promtool, "check", "rules", file)
