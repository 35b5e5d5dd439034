"""Whoever is woken by an alert finds what to do: each leads to a place on docs/operations.md."""

from __future__ import annotations

import re
from typing import Final

from tests.databases import ROOT
from tests.docs.pages import OPERATIONS

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


def test_every_alert_leads_to_its_place() -> None:
    """The anchors in the rules are those of the page."""
    linked = set(re.findall(r"operations\.(?:md|html)#([\w-]+)", ALERTS.read_text()))

    assert linked
    assert linked == runbooks().keys(), "each alert has its place, and each place an alert"
