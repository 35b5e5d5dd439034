"""The peers' own virtual environment: their Redis clients are newer than arq, and so the project, allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers import INTERPRETERS

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "peers.lock"
ENVIRONMENT = ROOT / ".venv-peers"


def peers_python() -> Path:
    """Create the environment, or create it anew where the lock is newer, with everything checked by hash.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: Something could not be installed; the output above says what.
    """
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < LOCK.stat().st_mtime:
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *install, "--require-hashes", "--no-deps", "-r", LOCK], check=True)
        stamp.touch()
    return python


def python_of(name: str) -> Path:
    """The interpreter that runs this peer, started in the project's root folder as ``-m benchmarks.peers``.

    Args:
        name: One of ``INTERPRETERS``.
    """
    return Path(sys.executable) if INTERPRETERS[name] == "project" else peers_python()
