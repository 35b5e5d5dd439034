"""Composes what the HTTP port serves, and opens and closes it with the worker."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from producers.errors import InvalidSettingsError
from storage.engine import create_engine
from worker.ending import end
from worker.http.acting import Acting
from worker.http.app import create_app
from worker.http.console import Console
from worker.http.gate import Gate
from worker.http.looks import Looks
from worker.http.probes import Readiness, Watchdog
from worker.http.server import STOP_SECONDS, HttpServer, bind, is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from worker.settings import ScoringSettings

logger = logging.getLogger(__name__)

# Connections of its own, so that nobody who looks holds up who scores; opened when they are needed. Two, so that a
# probe does not wait behind the console.
CONNECTIONS = 2
# No look takes longer.
LOOK_SECONDS = 3.0
ACT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
# What the end of a worker takes longer for the port.
LONGEST_STOP_SECONDS = 2 * STOP_SECONDS + CLOSE_SECONDS


class HttpPort:
    """The port with everything behind it. It reads with the worker's own login, on connections of its own.

    Args:
        settings: What ops set.
        redis: The worker's client.
        ended: Names the worker's loops that have ended although they should not.
        stopping: Whether the worker takes nothing new any more.
        metrics: Makes what ``/metrics`` answers; None: there is no such page.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        redis: Redis,
        *,
        ended: Callable[[], list[str]],
        stopping: Callable[[], bool],
        metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._settings = settings
        self._engine = create_engine(
            settings.database_url.get_secret_value(),
            pool_size=CONNECTIONS,
            timeout_seconds=LOOK_SECONDS,
            pgbouncer=settings.pgbouncer,
        )
        acting_url = settings.console_database_url or settings.database_url
        self._acting_engine = create_engine(
            acting_url.get_secret_value(),
            pool_size=1,
            timeout_seconds=ACT_SECONDS,
            pgbouncer=settings.pgbouncer,
        )
        token = settings.console_token.get_secret_value() if settings.console_token else None
        self._gate = Gate(token, anybody_may_look=is_loopback(settings.http_host))
        self._looks = Looks(self._engine)
        self._acting = Acting(self._acting_engine, own_login=settings.console_database_url is None)
        self._console = Console(self._gate, self._looks, self._acting)
        self._watchdog = Watchdog(ended)
        self._readiness = Readiness(self._engine, redis, stopping=stopping)
        self._app = create_app(
            watchdog=self._watchdog,
            readiness=self._readiness,
            console=self._console.routes(),
            metrics=metrics,
            allowed_hosts=settings.allowed_hosts,
        )
        self._server: HttpServer | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether anybody is served."""
        return self._server is not None

    async def start(self) -> None:
        """Open the port. One that is taken is warned of: scoring matters more than looking.

        Raises:
            InvalidSettingsError: It is taken, and SCORING_HTTP_REQUIRED is set.
        """
        host, port = self._settings.http_host, self._settings.http_port
        try:
            listener = await bind(host, port)
        except OSError as exc:
            if self._settings.http_required:
                raise InvalidSettingsError(
                    f"SCORING_HTTP_PORT is wrong: {host} port {port} cannot be had ({exc.strerror}), "
                    "and SCORING_HTTP_REQUIRED is set."
                ) from None
            logger.warning(
                "The HTTP port cannot be had; the worker scores without probes, metrics and console.",
                extra={"host": host, "port": port, "error": exc.strerror},
            )
            return
        self._server = HttpServer(self._app, listener)
        self._server.start()
        self._watching = asyncio.get_running_loop().create_task(self._watchdog.run(), name="watchdog")
        logger.info("The HTTP port is open.", extra={"host": host, "port": port, "console": "/console"})

    async def stop(self) -> None:
        """Close the port and the connections behind it, within some seconds."""
        if self._server is not None:
            await self._server.stop()
        if self._watching is not None:
            await end([self._watching])
        await self._readiness.look.close()
        await self._acting.look.close()
        for look in self._looks.every():
            await look.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(self._engine.dispose(), self._acting_engine.dispose())
