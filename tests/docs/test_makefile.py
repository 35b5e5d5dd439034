"""The Makefile: every newcomer's first tool, so it may not begin with a warning or forget a target."""

from __future__ import annotations

import re
import subprocess

from tests.databases import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make says."""
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_make_finds_nothing_to_warn_of_and_every_target_has_one_recipe() -> None:
    """A second recipe would silently take the place of the first, with a warning before each command."""
    said = make("help")
    assert (said.returncode, said.stderr) == (0, "")
    assert sorted(TARGETS) == sorted(set(TARGETS))


def test_make_help_names_every_target_and_all_of_them_run_although_files_have_their_names() -> None:
    """``docs`` and ``demo`` are folders: a target that is not declared phony would be up to date for ever."""
    named = re.findall(r"^  make ([a-z]+)", make("help").stdout, re.MULTILINE)
    assert sorted(named) == sorted(TARGETS)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(phony.split()) == sorted(TARGETS)


def test_every_make_command_that_a_page_shows_exists() -> None:
    """A page that names a target which was renamed leads a reader into an error."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.name, target)
        for page in pages
        for target in re.findall(r"(?:^\$ |`)make ([a-z]+)\b", page.read_text(), re.MULTILINE)
    }
    assert {target for _, target in shown} >= {"demo", "test", "screenshots"}
    assert [(page, target) for page, target in sorted(shown) if target not in TARGETS] == []
