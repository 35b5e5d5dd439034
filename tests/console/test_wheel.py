from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from zipfile import ZipFile

from tests.databases import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_wheel_carries_the_pages(tmp_path: Path) -> None:
    """Templates, styles and the script are no Python; an installed worker needs them all the same."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = set(archive.namelist())

    folder = ROOT / "worker" / "http"
    needed = {
        str(path.relative_to(ROOT)) for part in ("templates", "static") for path in (folder / part).iterdir()
    }
    assert len(needed) >= 10
    assert needed <= packed
