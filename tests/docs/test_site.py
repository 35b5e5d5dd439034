"""The documentation: it can be built, it is current, and reading it asks no other host for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.databases import ROOT
from tests.docs.pages import COMMANDS, OPERATIONS, written
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from pathlib import Path

BUILD_SECONDS = 240
# Whatever a browser fetches by itself when it shows a page.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"),
            *("--builder", "html", "--doctree-dir", str(folder / "doctrees"), "docs", str(folder / "html")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_page_is_built_and_its_links_lead_somewhere(site: Path) -> None:
    """Sphinx took every warning for an error; beside that, every local link and anchor in the HTML exists."""
    anchors: dict[Path, set[str]] = {}
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    for page, html in pages.items():
        anchors[page.resolve()] = set(re.findall(r'\bid="([^"]+)"', html))
    broken = []
    for page, html in pages.items():
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', html):
            path, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            other = (page.parent / path).resolve() if path else page.resolve()
            found = other.exists() and (not anchor or other not in anchors or anchor in anchors[other])
            if not found:
                broken.append(f"{page.relative_to(site)}: {target}")

    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))), (
        "one for each page, and an index and a search"
    )
    assert not broken


def test_reading_the_site_asks_no_other_host(site: Path) -> None:
    """No font, script, picture or style comes from elsewhere: it can be read where there is no network."""
    asked = [
        f"{file.relative_to(site)}: {found[0][:120]}"
        for file in (*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg"))
        for found in _FETCHED.finditer(file.read_text())
    ]

    assert not asked


def test_every_table_is_shown_as_one(site: Path) -> None:
    """A table whose lines were joined is an ordinary paragraph to Sphinx, and no warning tells."""
    joined = [
        str(page.relative_to(site))
        for page in site.rglob("*.html")
        if re.search(r"\| ---+ \|", page.read_text())
    ]

    assert not joined


def test_settings_and_commands_are_current() -> None:
    """``python -m tests.docs.pages`` writes both pages anew; nothing in them is kept by hand."""
    assert OPERATIONS.read_text() == written(OPERATIONS)
    assert COMMANDS.read_text() == written(COMMANDS)


def test_every_setting_is_listed_once() -> None:
    """Whatever an operator can set stands in the table, with its default."""
    listed = re.findall(r"^\| `(SCORING_\w+)` \|", OPERATIONS.read_text(), re.MULTILINE)

    assert sorted(listed) == sorted(f"SCORING_{name.upper()}" for name in ScoringSettings.model_fields)


def test_links_of_a_git_host_lead_somewhere() -> None:
    """In the plain files too: every relative link in a page, in the README and beside the manifests exists."""
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        if "_build" not in page.parts
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert len(pages) > 10
    assert not broken


def test_prose_fits_a_screen() -> None:
    """Lines of prose have at most 120 characters; tables, links and what is generated may be longer."""
    long = []
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name in {"performance.md", "scaling.md", "commands.md"} or "_build" in page.parts:
            continue  # tables of figures, and what a generator writes
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if len(line) > 120 and not fenced and not line.lstrip().startswith(("|", "<")):
                long.append(f"{page.name}:{number}")

    assert not long
