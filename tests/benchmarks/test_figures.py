"""What the benchmarks compute from what they measured."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.contenders import BY_HAND, QUEUES, TITLES
from benchmarks.figures import Goal, quantile
from benchmarks.model_bound import ideal_share
from benchmarks.page import table, write
from benchmarks.peers import INTERPRETERS
from benchmarks.processor import ELSE, _shares, owner
from tests.databases import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 10**9


@pytest.mark.parametrize(("pause", "share"), [(0.0, 1.0), (0.5, 0.8), (2.0, 0.5)])
def test_a_slot_that_idles_between_answers_is_seen(pause: float, share: float) -> None:
    """Ten slots, each beginning an answer every ``2 + pause`` seconds, at moments of their own."""
    starts = [round((slot * 0.17 + turn * (2 + pause)) * SECOND) for slot in range(10) for turn in range(12)]
    random.Random(1).shuffle(starts)

    assert ideal_share(starts, slots=10, mean_seconds=2.0) == pytest.approx(share)


def test_slots_that_begin_together_are_measured_by_their_cycle() -> None:
    """Waves of all slots at once, as a fixed time makes them: what counts is the time from wave to wave."""
    starts = [round(turn * 2.1 * SECOND) for turn in range(10) for _ in range(50)]

    assert ideal_share(starts, slots=50, mean_seconds=2.0) == pytest.approx(2 / 2.1)


@pytest.mark.parametrize(
    ("measured", "at_least", "met"),
    [(8.0, True, True), (7.9, True, False), (8.1, False, False), (8.0, False, True)],
)
def test_a_goal_is_met_at_its_bound(measured: float, met: bool, at_least: bool) -> None:  # noqa: FBT001
    """Exactly the bound is enough, from either side."""
    assert Goal("", measured, 8, at_least=at_least).is_met is met


def test_quantiles_are_values_that_were_measured() -> None:
    """Of the numbers 1 to 101, half lie below 51, and 99 of a hundred below 100."""
    assert (quantile(range(1, 102), 0.5), quantile(range(1, 102), 0.99)) == (51, 100)


def test_a_table_is_markdown() -> None:
    """A line of dashes lies between the columns and the rows."""
    assert table(("", "a"), [("x", "1")]) == "|  | a |\n| --- | --- |\n| x | 1 |"


def part(title: str) -> dict[str, Any]:
    """A part, as ``results.json`` holds it."""
    shown = {"title": title, "columns": ["", "n"], "rows": [["x", "1"]], "notes": ["A note."]}
    return {"shown": shown, "goals": [["what", "1", "2", "yes"]], "machine": {"cores": 2}}


def test_the_page_takes_what_was_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    """Places without a result stay as they are; writing twice changes nothing."""
    page = tmp_path / "page.md"
    page.write_text("# P\n<!-- one -->\nold\n<!-- /one -->\nkept\n<!-- two -->\nstays\n<!-- /two -->\n")

    for _ in range(2):
        write({"one": part("T")}, page)

    expected = "<!-- one -->\nT:\n\n|  | n |\n| --- | --- |\n| x | 1 |\n\nA note.\n<!-- /one -->"
    assert page.read_text() == f"# P\n{expected}\nkept\n<!-- two -->\nstays\n<!-- /two -->\n"


def test_the_project_s_page_has_a_place_for_every_part() -> None:
    """What is measured is shown."""
    from benchmarks.__main__ import PAGE, PARTS  # noqa: PLC0415 - a program

    content = PAGE.read_text()
    assert [name for name in (*PARTS, "goals", "machine") if f"<!-- {name} -->" not in content] == []


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        ("/x/site-packages/sqlalchemy/engine/base.py", "SQLAlchemy"),
        ("/x/site-packages/asyncpg/connection.py", "asyncpg"),
        ("/x/site-packages/redis/asyncio/client.py", "redis-py, arq"),
        ("/x/project/storage/leases.py", "ours"),
        ("/x/lib/python3.11/asyncio/events.py", ELSE),
    ],
)
def test_whose_code_a_file_holds(file: str, whose: str) -> None:
    """By the path; what nobody is named for is asyncio and the rest."""
    assert owner(file) == whose


def test_samples_are_counted_for_the_innermost_frame(tmp_path: Path) -> None:
    """Waiting in the selector is no work; what is left adds up to one."""
    samples = tmp_path / "samples"
    samples.write_text(
        "run (/lib/asyncio/runners.py:1);lease (/p/storage/leases.py:9) 3\n"
        "run (/lib/asyncio/runners.py:1);select (/lib/python3.11/selectors.py:468) 50\n"
        "run (/lib/asyncio/runners.py:1) 1\n"
    )

    assert _shares(samples) == {"ours": 0.75, ELSE: 0.25}


def test_every_peer_has_a_title() -> None:
    """And is either a queue or done by hand."""
    assert TITLES.keys() == INTERPRETERS.keys() == {*QUEUES, *BY_HAND}


def test_no_page_has_a_place_that_was_forgotten() -> None:
    """Figures that are still to be filled in stand in double braces."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    assert len(pages) > 10
    assert [page.name for page in pages if "{{" in page.read_text()] == []
