"""One breaker for the whole fleet, through Redis: opened together, probed by one at a time, closed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from worker.breaker import LONGEST_PAUSE_SECONDS, PROBE_PATIENCE_SECONDS, RETRY_AFTER_CAP_SECONDS
from worker.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from worker.breaker import Breaker

logger = logging.getLogger(__name__)

# How often news is exchanged while the breaker is closed, and while it is open.
CLOSED_PERIOD_SECONDS, OPEN_PERIOD_SECONDS = 1.0, 0.25
# A worker that was served so lately shows that the provider works for others.
SERVED_MS = 3_000
# Longer than any pause between two probes: what is older than this has been forgotten by everybody.
STATE_MS = int(2 * RETRY_AFTER_CAP_SECONDS * 1000)
MAX_REASON_CHARS = 300


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


class _State(BaseModel):
    """What the fleet knows. Read from Redis, where anybody may have written it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    open: bool
    news: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS), AfterValidator(_printable)] = ""
    pause_seconds: Annotated[float, Field(ge=0, le=LONGEST_PAUSE_SECONDS, allow_inf_nan=False)] = 0.0
    asked_to_wait: bool = False


class SharedBreaker:
    """Tells the others what this process's breaker found, and tells it what they found.

    Trouble that only one worker has stays its own: while another one is served, the fleet goes on. A provider that asks
    for a pause asks all of them. While Redis is away every process is on its own.

    Nothing here is needed for correctness: whoever writes nonsense into Redis can slow the fleet down, no more.

    Args:
        redis: A client with short time-outs; stays the caller's.
        breaker: This process's own.
        provider: Whose breaker; all workers that share it say the same.
        has_room: Whether a probe could be taken now.
        on_change: Called when what the others know changes what this worker may take.
    """

    def __init__(
        self,
        redis: Redis,
        breaker: Breaker,
        *,
        provider: str,
        has_room: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._breaker = breaker
        self._has_room = has_room
        self._on_change = on_change
        self._state_key = f"scoring:breaker:{provider}"
        self._probe_key = f"{self._state_key}:probe"
        self._served_key = f"{self._state_key}:served"
        self._me = uuid4().hex
        self._successes = 0
        self._setbacks = 0
        self._heard: str | None = None  # the news that was acted upon
        self._joined = False
        self._wanted = asyncio.Event()
        self._outage = Outage("Redis", "Each worker judges the provider by itself.")

    def changed(self) -> None:
        """Something may have happened to this process's breaker: if so, tell it now and not a period later.

        While Redis is away the period must do: every answer that ends comes here.
        """
        if self._outage.ongoing:
            return
        if self._breaker.setbacks > self._setbacks or (self._joined and not self._breaker.is_open):
            self._wanted.set()

    async def run(self) -> None:
        """Exchange news for ever."""
        while True:
            self._wanted.clear()
            try:
                await self.exchange()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next exchange must come
                self._outage.met(exc)
                self._breaker.go_alone()
                self._joined = False
                self._on_change()
                # What could not be told is told a period later, and not again and again meanwhile.
                self._wanted.clear()
            else:
                self._outage.over()
            period = OPEN_PERIOD_SECONDS if self._breaker.is_open else CLOSED_PERIOD_SECONDS
            # Not wait_for: Python 3.11's swallows a cancellation that meets the end of its wait.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._wanted.wait()

    async def exchange(self) -> None:
        """Exchange news once.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        raw_state, last_served = await self._redis.mget(self._state_key, self._served_key)
        state = self._read(raw_state)
        # Read after the await, and acted upon before the next one: what happens meanwhile is told the next time.
        served = self._breaker.successes > self._successes
        troubled = self._breaker.setbacks > self._setbacks
        self._successes, self._setbacks = self._breaker.successes, self._breaker.setbacks
        if self._breaker.is_open:
            others_served = last_served not in {None, self._me.encode()}
            await self._while_open(state, troubled=troubled, others_served=others_served)
        else:
            await self._while_closed(state, served=served)
        if self._breaker.awaits_leave and self._has_room():
            await self._ask_for_leave()

    async def _while_open(self, state: _State | None, *, troubled: bool, others_served: bool) -> None:
        breaker = self._breaker
        if self._joined and state is not None and not state.open and state.news != self._heard:
            self._heard = state.news
            self._joined = False
            breaker.close_with_others()
            self._on_change()
        elif self._joined and (troubled or state is None):
            # The probe failed; or Redis has forgotten what we all know.
            await self._tell_open()
        elif state is not None and state.open and state.news != self._heard:
            self._join(state)
        elif not self._joined and (breaker.asked_to_wait or not others_served):
            await self._tell_open()

    async def _while_closed(self, state: _State | None, *, served: bool) -> None:
        closed_it = self._joined and served
        self._joined = False
        if served:
            await self._redis.set(self._served_key, self._me, px=SERVED_MS)
        if state is None or not state.open:
            self._heard = state.news if state else self._heard
        elif closed_it or (served and not state.asked_to_wait):
            await self._tell_closed()
        elif state.news != self._heard:
            self._join(state)

    def _join(self, state: _State) -> None:
        self._heard = state.news
        self._joined = True
        self._breaker.share(state.reason, state.pause_seconds, asked_to_wait=state.asked_to_wait)
        self._on_change()

    async def _tell_open(self) -> None:
        breaker = self._breaker
        reason = _printable(breaker.reason or "")[:MAX_REASON_CHARS]
        state = _State(
            open=True,
            news=uuid4().hex,
            reason=reason,
            pause_seconds=breaker.pause_seconds,
            asked_to_wait=breaker.asked_to_wait,
        )
        pause_ms = max(1, int((breaker.seconds_until_probe() or 0.0) * 1000))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._state_key, state.model_dump_json(), px=STATE_MS)
            pipe.set(self._probe_key, self._me, px=pause_ms)
            await pipe.execute()
        self._heard = state.news
        if breaker.is_open:  # and was not closed while Redis listened
            self._joined = True
            breaker.share(reason, breaker.pause_seconds, asked_to_wait=breaker.asked_to_wait)

    async def _tell_closed(self) -> None:
        state = _State(open=False, news=uuid4().hex)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._state_key, state.model_dump_json(), px=STATE_MS)
            pipe.delete(self._probe_key)
            await pipe.execute()
        self._heard = state.news

    async def _ask_for_leave(self) -> None:
        px = int(PROBE_PATIENCE_SECONDS * 1000)
        if await self._redis.set(self._probe_key, self._me, px=px, nx=True):
            self._breaker.give_leave()
            self._on_change()

    @staticmethod
    def _read(raw: bytes | None) -> _State | None:
        try:
            return None if raw is None else _State.model_validate_json(raw)
        except (ValidationError, ValueError):
            return None
