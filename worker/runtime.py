"""One place composes the worker process: settings, connections, pool and the loops around it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from producers.bell import Bell, connect_redis
from producers.errors import InvalidSettingsError
from storage.errors import StorageError
from worker.breaker import Breaker
from worker.claiming import Claimer
from worker.ending import end
from worker.heartbeat import Heartbeat
from worker.intake import Intake
from worker.observer import Observers
from worker.outage import Outage
from worker.pool import ScoringPool
from worker.question_cache import QuestionCache
from worker.rate_limits import RateLimits
from worker.renewer import Renewer
from worker.scorers.factory import build_scorer
from worker.settler import Settler
from worker.shared_breaker import SharedBreaker
from worker.sweep import Sweep
from worker.telemetry.tracing import open_tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from producers.contract import Drain
    from worker.http.port import HttpPort
    from worker.observer import Observer
    from worker.scorers.protocol import Scorer
    from worker.settings import ScoringSettings
    from worker.telemetry.metrics import WorkerMetrics
    from worker.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

# After the grace time: so long for writing what is finished and handing back what is not.
LAST_WRITES_SECONDS = 10.0
WATCH_SECONDS = 5.0
# Closing a connection says good-bye to a server that may hang.
CLOSE_SECONDS = 2.0
# What a question, its rubric and an answer may have, until the first reply tells.
EXPECTED_INPUT_TOKENS = 1000
# What workers tell each other is worth little later: whoever leases waits for it.
NEWS_TIMEOUT_SECONDS = 0.25


class Runtime:
    """Everything that a worker process runs besides arq's own loop.

    Args:
        settings: What ops set.
        scorer: In place of the one that the settings name, for tests and benchmarks.
    """

    def __init__(self, settings: ScoringSettings, *, scorer: Scorer | None = None) -> None:
        self.settings = settings
        self._scorer = scorer or build_scorer(settings)
        self.engine = settings.engine()
        self._redis = settings.redis()
        self._news = connect_redis(
            settings.redis_url.get_secret_value(),
            timeout_seconds=min(NEWS_TIMEOUT_SECONDS, settings.redis_timeout_seconds),
        )
        # Who wants to watch is in here before the work starts.
        self.observers: list[Observer] = []
        observer = Observers(self.observers)
        self.bell = Bell(self._redis)
        self.breaker = Breaker()
        self.rate_limits = RateLimits(
            self._news,
            provider=settings.provider or "",
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            expected_tokens=EXPECTED_INPUT_TOKENS + settings.llm_max_output_tokens,
            fleet=lambda: self.heartbeat.fleet,
        )
        self.settler = Settler(
            self.engine, max_attempts=settings.max_attempts, on_done=self._done, observer=observer
        )
        self.pool = ScoringPool(
            scorer=self._scorer,
            settler=self.settler,
            breaker=self.breaker,
            on_cost=self.rate_limits.ended,
            slots=settings.slots,
            answer_seconds=settings.answer_seconds,
            max_attempts=settings.max_attempts,
            on_change=self._changed,
            observer=observer,
        )
        self.renewer = Renewer(
            self.engine,
            self.pool,
            self.settler,
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.renewal_seconds,
            observer=observer,
        )
        self.intake = Intake(
            self.engine,
            pool=self.pool,
            breaker=self.breaker,
            rate_limits=self.rate_limits,
            settler=self.settler,
            renewer=self.renewer,
            questions=QuestionCache(self.engine),
            ring=self._ring,
            on_room=self._room_back,
            lease_seconds=settings.lease_seconds,
        )
        self.claimer = Claimer(self.engine, observer=observer)
        self.sweep = Sweep(
            self.engine,
            bell=self.bell,
            intake=self.intake,
            claimer=self.claimer,
            lease_seconds=settings.lease_seconds,
            sweep_seconds=settings.sweep_seconds,
            observer=observer,
        )
        self.shared_breaker = SharedBreaker(
            self._news,
            self.breaker,
            provider=settings.provider or "",
            has_room=lambda: self.intake.has_room,
            on_change=self._changed,
        )
        self.heartbeat = Heartbeat(
            self.engine,
            pool=self.pool,
            intake=self.intake,
            breaker=self.breaker,
            rate_limits=self.rate_limits,
            provider=settings.provider,
            redis_is_away=lambda: self.redis_is_away(),  # noqa: PLW0108 - replaced later
        )
        self.hurry = asyncio.Event()
        # Replaced by whoever runs this: what to do when there is room again, and when a loop breaks.
        self.on_room: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = self.hurry.set
        # None: nobody has looked yet; under arq's own command nobody does.
        self.redis_is_away: Callable[[], bool | None] = lambda: None
        self._postgres = Outage("PostgreSQL", "What messages name is found by the sweep when it is back.")
        # Makes what /metrics answers, if that shall not be our own metrics; set before the start.
        self.exposition: Callable[[], Awaitable[bytes]] | None = None
        self.metrics: WorkerMetrics | None = None
        self.http: HttpPort | None = None
        self._tracing: Tracing | None = None
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        self._rings: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Check that the database is ours, and start the loops.

        Raises:
            InvalidSettingsError: Redis refuses the login, or the HTTP port is taken and SCORING_HTTP_REQUIRED is set.
            StorageError: PostgreSQL is away, refuses the login, or is not migrated; the message says what to do.
        """
        await self._check_redis_login()
        await self.heartbeat.run_once()
        if self.settings.provider:
            with suppress(RedisError, OSError, TimeoutError):
                await self.shared_breaker.exchange()  # before the first answer is taken
        await self._open_port()
        self._tracing = open_tracing(self.heartbeat.worker_id)
        if self._tracing is not None:
            self.observers.append(self._tracing.traces)
        loops: dict[str, Coroutine[Any, Any, None]] = {
            "settler": self.settler.run(),
            "renewer": self.renewer.run(),
            "intake": self.intake.run(),
            "sweep": self.sweep.run(),
            "heartbeat": self.heartbeat.run(),
            **({"shared breaker": self.shared_breaker.run()} if self.settings.provider else {}),
            **({"event loop's watch": self.metrics.measures.watch_loop()} if self.metrics else {}),
            "watch": self._watch_scorers(),
        }
        self._loops = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)

    async def _open_port(self) -> None:
        if not self.settings.http_port:
            return
        # Imported here: a worker without the port needs no server.
        from worker.http.port import HttpPort  # noqa: PLC0415
        from worker.telemetry.metrics import WorkerMetrics  # noqa: PLC0415

        if self.exposition is None:
            self.metrics = WorkerMetrics(self)
            self.exposition = self.metrics.exposition
        self.http = HttpPort(
            self.settings,
            self._redis,
            ended=lambda: [task.get_name() for task in self._loops if task.done()],
            stopping=lambda: self._stopping,
            metrics=self.exposition,
        )
        await self.http.start()

    async def _watch_scorers(self) -> None:
        """End the worker when a scorer cannot be stopped: its slot is lost, and whoever starts it anew has all of them."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if unstoppable := self.pool.unstoppable:
                logger.critical(
                    "Scorers ignore that their time is up; the worker stops.", extra={"scorers": unstoppable}
                )
                self.on_failure()

    async def _check_redis_login(self) -> None:
        """Refuse to start with a wrong password; a Redis that is merely away is no reason not to."""
        try:
            await self._redis.ping()
        except (AuthenticationError, NoPermissionError):
            raise InvalidSettingsError("SCORING_REDIS_URL is wrong: Redis refuses this login.") from None
        except (RedisError, OSError, TimeoutError) as exc:
            if "NOAUTH" in str(exc):
                raise InvalidSettingsError("SCORING_REDIS_URL is wrong: Redis asks for a password.") from None
            logger.debug("Redis is away; the arq loop says so too, and when it is back.")

    async def take(self, response_ids: Sequence[int]) -> None:
        """Take what a message names; with PostgreSQL away, leave it to the sweep."""
        try:
            taken = await self.intake.take(response_ids)
        except StorageError as exc:
            self._postgres.met(exc)
            self.intake.more("live")
        else:
            if taken:  # without room, PostgreSQL was not even asked
                self._postgres.over()

    async def stop(self) -> None:
        """Take nothing new, finish what can be finished, hand the rest back, close everything.

        Bounded by the grace time and some seconds; with PostgreSQL away, what could not be written is lost
        with this process, and its leases run out.
        """
        self._stopping = True
        await self.intake.stop()
        await self.pool.stop(self.settings.grace_seconds, self.hurry)
        try:
            await asyncio.wait_for(self.settler.wait_idle(), LAST_WRITES_SECONDS)
        except TimeoutError:
            logger.error(  # noqa: TRY400 - the time-out itself tells nothing
                "PostgreSQL is away; finished scores could not be written and will be scored again."
            )
        for task in self._loops:
            task.remove_done_callback(self._loop_ended)
        await end(self._loops)
        await self.heartbeat.leave()
        await self.close()
        logger.info("The worker has stopped.", extra=dict(self.settler.counts))

    async def close(self) -> None:
        """Close connections and the HTTP port; nothing else is stopped, but for bells that still ring."""
        # As late as this, so that whoever asks while answers are finished learns that the worker stops.
        if self.http is not None:
            await self.http.stop()
        await self._scorer.aclose()
        if self._rings:
            await asyncio.wait(set(self._rings), timeout=CLOSE_SECONDS)
        await end(self._rings)
        await self._redis.aclose()
        await self._news.aclose()
        try:
            await asyncio.wait_for(self.engine.dispose(), CLOSE_SECONDS)
        except TimeoutError:
            logger.debug("PostgreSQL does not answer; its connections end with this process.")
        if self._tracing is not None:
            await self._tracing.close()

    def _done(self, handoff_id: int) -> None:
        self.pool.done(handoff_id)

    def _changed(self) -> None:
        self.shared_breaker.changed()
        self.intake.changed()
        self._room_back()

    def _room_back(self) -> None:
        # Also when a pull came back short: a message that arrived meanwhile was left alone, for want of a free slot.
        if self.intake.wants_messages:
            self.on_room()

    def _ring(self, drain: Drain) -> None:
        """Ring for another worker, in the background; the sweep rings too, a little later."""
        task = asyncio.get_running_loop().create_task(self._ring_quietly(drain))
        self._rings.add(task)
        task.add_done_callback(self._rings.discard)

    async def _ring_quietly(self, drain: Drain) -> None:
        try:
            await self.bell.ring([drain])
        except (RedisError, OSError, TimeoutError):
            logger.debug("The bell could not be rung.")

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends is a bug; a worker without it would look alive and do nothing."""
        # Also where it was cancelled: not by us, we take this callback off before.
        exc = None if task.cancelled() else task.exception()
        logger.critical("The %s has ended; the worker stops.", task.get_name(), exc_info=exc)
        self.on_failure()
