"""A producer, as a process of its own: submits answers and claims, and writes down what was acknowledged.

It may be killed at any moment. Its successor reads the same journal and submits again, under the same keys, what
nobody acknowledged: as a browser would that lost its connection.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from producers import ProducerSettings, open_producer
from storage.errors import StorageError, StorageUnavailableError
from tests.chaos.ledger import Asked, Claimed, Journal, Refused, Stored, read_journal
from tests.chaos.terms import (
    CLAIMS_PER_SECOND,
    LATE_QUESTION,
    LATE_SHARE,
    MODULE,
    POISON,
    PRODUCERS,
    QUESTIONS,
    USERS,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from producers import Producer

ANONYMOUS_SHARE = 0.4
# So many anonymous students are at it at the same time; each signs in sooner or later.
TOKENS = 20
RETRY_PAUSE_SECONDS = 0.2


class Load:
    """Submits until told to stop.

    Args:
        producer: What submits.
        journal: Where it is written down, before and after.
        rate: Answers per second.
        seed: Of what is answered by whom.
    """

    def __init__(self, producer: Producer, journal: Journal, *, rate: float, seed: int) -> None:
        self._producer = producer
        self._journal = journal
        self._rate = rate
        self._random = random.Random(seed)
        self._tokens = [uuid4().hex for _ in range(TOKENS)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def run(self, unfinished: list[Asked], orders: asyncio.StreamReader) -> None:
        """Finish what a predecessor began, then submit and claim until told to stop; finish everything."""
        for asked in unfinished:
            self._spawn(self._submit(asked))
        answering = asyncio.create_task(self._answer())
        claiming = asyncio.create_task(self._claim())
        while (order := (await orders.readline()).decode().strip()) and order != "stop":
            match order.partition(" "):
                case ("burst", _, number):
                    for _ in range(int(number)):
                        self._spawn(self._submit(self._make()))
                case ("rate", _, rate):
                    self._rate = float(rate)
                case ("poison", _, kind):
                    self._spawn(self._submit(self._make(POISON + kind)))
        self._stopped.set()
        await asyncio.gather(answering, claiming)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _answer(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            due += self._random.expovariate(self._rate)
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            self._spawn(self._submit(self._make()))

    async def _claim(self) -> None:
        while not self._stopped.is_set():
            await asyncio.sleep(self._random.expovariate(CLAIMS_PER_SECOND / PRODUCERS))
            # The token is done with: whoever signs in gets another one.
            token = self._tokens.pop(self._random.randrange(TOKENS))
            self._tokens.append(uuid4().hex)
            self._spawn(self._store_claim(token, self._random.randint(1, USERS)))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make(self, text: str = "Because of the light.") -> Asked:
        draw = self._random
        late = not text.startswith(POISON) and draw.random() < LATE_SHARE
        anonymous = draw.random() < ANONYMOUS_SHARE
        asked = Asked(
            key=str(uuid4()),
            at=time.time(),
            question_id=LATE_QUESTION if late else draw.choice(QUESTIONS),
            text=text,
            user_id=None if anonymous else draw.randint(1, USERS),
            anonymous_token=draw.choice(self._tokens) if anonymous else None,
        )
        self._journal.write(asked)
        return asked

    async def _submit(self, asked: Asked) -> None:
        while True:
            try:
                row = await self._producer.submit(
                    module_slug=MODULE,
                    question_id=asked.question_id,
                    answer_text=asked.text,
                    user_id=asked.user_id,
                    anonymous_token=asked.anonymous_token,
                    submission_key=UUID(asked.key),
                )
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            except StorageError as exc:
                self._journal.write(Refused(asked.key, str(exc)))
                return
            else:
                self._journal.write(Stored(asked.key, row["response_id"], time.time()))
                return

    async def _store_claim(self, token: str, user_id: int) -> None:
        while True:
            try:
                claim_id = await self._producer.claim(anonymous_token=token, user_id=user_id)
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            else:
                self._journal.write(Claimed(claim_id, token, user_id, time.time()))
                return


def unfinished(path: Path) -> list[Asked]:
    """What was begun and never acknowledged, according to a journal."""
    begun: dict[str, Asked] = {}
    for line in read_journal(path):
        if isinstance(line, Asked):
            begun[line.key] = line
        elif isinstance(line, (Stored, Refused)):
            begun.pop(line.key, None)
    return list(begun.values())


async def main() -> None:
    """Produce until standard input says stop, or ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    left_over = unfinished(options.journal)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    journal = Journal(options.journal)
    async with open_producer(ProducerSettings.from_environment()) as producer:
        await Load(producer, journal, rate=options.rate, seed=options.seed).run(left_over, orders)
    journal.close()


if __name__ == "__main__":
    asyncio.run(main())
