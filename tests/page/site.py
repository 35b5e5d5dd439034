"""The demo's site as a process of its own, as a person starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.servers import free_port
from tests.databases import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_SECONDS = 60


@dataclass
class Site:
    """Where it is, and what it runs on."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def pid_of(self, name: str) -> int:
        """The process of the worker or of Redis, as the page tells."""
        with urllib.request.urlopen(f"{self.url}/demo/processes") as reply:
            return next(int(each["pid"]) for each in json.load(reply) if each["name"] == name)

    def database_url(self) -> str:
        """Where the site's database is: what its worker was told."""
        environment = Path(f"/proc/{self.pid_of('worker')}/environ").read_bytes().split(b"\0")
        name = b"SCORING_DATABASE_URL="
        return next(line.removeprefix(name).decode() for line in environment if line.startswith(name))

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def start_site(log: Path, *, port: int | None = None, environment: Mapping[str, str] | None = None) -> Site:
    """Start ``python -m demo --serve`` and wait until it says where it is.

    Args:
        log: Where its output goes, after what is there.
        port: Where it listens; by default somewhere free.
        environment: Variables beside those of this process.
    """
    port = port or free_port()
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--serve", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "160", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while "Ctrl-C stops everything." not in log.read_text(errors="replace")[before:]:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"The site did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
    return Site(f"http://127.0.0.1:{port}", process, log)


def stop_site(site: Site, stop_signal: signal.Signals = signal.SIGINT) -> int:
    """Stop it as a person does, and return its exit status."""
    site.process.send_signal(stop_signal)
    return site.process.wait(START_SECONDS)


@contextmanager
def running_site(
    folder: Path, *, port: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Site]:
    """Run it until the block ends."""
    site = start_site(folder / "site.log", port=port, environment=environment)
    try:
        yield site
    finally:
        if site.process.poll() is None:
            stop_site(site)
