"""What lies in the queue is not what producers put there."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from sqlalchemy import text

from producers.contract import MESSAGE_SCORE, QUEUE_NAME, WAKE_CHANNEL, ScoreResponses, message, message_key
from storage.errors import StorageUnavailableError
from tests.chaos.faults.base import SLACK_SECONDS, Fault
from tests.chaos.terms import SWEEP_SECONDS

if TYPE_CHECKING:
    import random

    from tests.chaos.arena import Arena

FORGERIES = 100

_LAST = text("SELECT coalesce(max(response_id), 0) AS last FROM assessment_responses")


def _frame(**changes: Any) -> bytes:
    given: dict[str, Any] = {"t": None, "f": "drain", "a": [{"lane": "live"}], "k": {}, "et": 1}
    return json.dumps(given | changes).encode()


def forgeries(last_response_id: int) -> list[bytes]:
    """Messages that nobody of ours would send, besides some that anybody might have sent before."""
    known = tuple(range(max(1, last_response_id - 200), last_response_id + 1)) or (1,)
    return [
        b"",
        b"hello",
        b"[" * 500,
        pickle.dumps({"t": None, "f": "drain", "a": (), "k": {}, "et": 1}),
        _frame(f="os.system"),
        _frame(a=[]),
        _frame(a=[{"lane": "nowhere"}]),
        _frame(a=[{"lane": "suspect"}]),
        _frame(f="score_responses", a=[{"response_ids": ["1", -1]}]),
        _frame(f="score_responses", a=[{"response_ids": [2**62]}]),
        _frame(f="claim_responses", a=[{"claim_ids": [1, 2**62]}]),
        _frame(et="never"),
        _frame(t=1000),
        # Scored long ago, or with a worker at this moment.
        message(ScoreResponses(response_ids=known)),
    ]


class _MessageFault(Fault):
    victim = "Redis"
    recovery = "new answers are picked up by the bell"
    bound_seconds = SWEEP_SECONDS + SLACK_SECONDS

    async def recovered(self, arena: Arena, *, since: float) -> float:
        return await arena.observer.prompt(since=since)


class MessagesForged(_MessageFault):
    """Somebody who can write to Redis writes nonsense, pickles, and messages of yesterday."""

    name = "forged and foreign messages"
    usual_seconds = 2.0

    async def begin(self, arena: Arena) -> None:
        made = forgeries(0)
        with suppress(StorageUnavailableError):  # two faults at the same time: then without old messages
            made = forgeries((await arena.observer.rows(_LAST))[0]["last"])
        async with arena.redis.pipeline(transaction=False) as pipe:
            for number in range(FORGERIES):
                member = f"forged-{number}-{os.urandom(4).hex()}"
                pipe.set(message_key(member), made[number % len(made)])
                pipe.zadd(QUEUE_NAME, {member: MESSAGE_SCORE})
            oddities: dict[bytes, float] = {b"\xff\xfe": 1, b"without message": 1, b"zero": 0}
            pipe.zadd(QUEUE_NAME, oddities)
            pipe.publish(WAKE_CHANNEL, b"\x00")
            await pipe.execute()


class MessagesDoubled(_MessageFault):
    """Every message is delivered twice."""

    name = "every message doubled"
    hold_seconds = 2.0
    usual_seconds = 4.0

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self._doubling: asyncio.Task[None] | None = None
        self._doubled = 0

    async def begin(self, arena: Arena) -> None:
        self._doubling = asyncio.create_task(self._double(arena))

    async def end(self, arena: Arena) -> None:  # noqa: ARG002 - every fault's
        if self._doubling is not None:
            self._doubling.cancel()
            await asyncio.gather(self._doubling, return_exceptions=True)

    async def recovered(self, arena: Arena, *, since: float) -> float:
        if not self._doubled:
            arena.problems.append("no message was doubled: that fault did nothing")
        return await super().recovered(arena, since=since)

    async def _double(self, arena: Arena) -> None:
        """Watch what is put into the queue, and put it there once more, under a name of its own."""
        with suppress(RedisError, OSError):
            async with arena.redis.monitor() as monitor:
                async for seen in monitor.listen():
                    name, _, rest = seen["command"].partition(" ")
                    key, _, rest = rest.partition(" ")
                    if name == "SET" and key.startswith(message_key(QUEUE_NAME)):
                        member = f"doubled-{os.urandom(8).hex()}"
                        # JSON without a space in it; what follows are options of SET.
                        await arena.redis.set(message_key(member), rest.partition(" ")[0])
                        await arena.redis.zadd(QUEUE_NAME, {member: MESSAGE_SCORE})
                        await arena.redis.publish(WAKE_CHANNEL, b"")
                        self._doubled += 1
