"""Whoever is woken by an alert finds what to do: each leads to a place on docs/operations.md."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.databases import ROOT
from tests.docs.pages import OPERATIONS

METRICS: Final = ROOT / "worker" / "telemetry"
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
PARTS: Final = ("Means:", "tudents", "Look:", "Do:", "Over:")


def runbooks() -> dict[str, str]:
    """What is written for each alert, by its anchor."""
    sections = re.split(r"^##+ ", OPERATIONS.read_text(), flags=re.MULTILINE)
    return {
        title.strip().lower().replace(" ", "-"): text
        for title, _, text in (section.partition("\n") for section in sections)
        if title.startswith("Alert ")
    }


def test_each_says_what_to_do_and_when_it_is_over() -> None:
    """Meaning, what students notice, first look, remedy, and how one knows that it is over."""
    found = runbooks()

    assert len(found) >= 9
    for anchor, text in found.items():
        assert all(part in text for part in PARTS), anchor


@pytest.mark.skipif(not ALERTS.exists(), reason="no alert rules are shipped")
def test_every_alert_leads_to_its_place() -> None:
    """The anchors in the rules are those of the page."""
    linked = set(re.findall(r"operations\.(?:md|html)#([\w-]+)", ALERTS.read_text()))

    assert linked
    assert linked == runbooks().keys(), "each alert has its place, and each place an alert"


@pytest.mark.skipif(not METRICS.exists(), reason="no metrics are shipped")
def test_every_metric_is_described() -> None:
    """What the worker exposes, what the page describes and what the rules ask for are the same."""
    code = "".join(file.read_text() for file in METRICS.rglob("*.py"))
    families = re.findall(r"(Info|Gauge|Counter)MetricFamily\(\s*\"(scoring_\w+)\"", code)
    suffixes = {"Info": "_info", "Gauge": "", "Counter": "_total"}
    made = {name + suffixes[kind] for kind, name in families}
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()

    assert made
    assert made == set(re.findall(r"^\| `(scoring_\w+)` \|", page, re.MULTILINE))
    assert set(re.findall(r"\bscoring_\w+", "".join(re.findall(r"expr: (.*)", ALERTS.read_text())))) <= made
