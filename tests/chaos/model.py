"""The model server, a process of its own: slow as a model, in trouble when told, and it keeps the ledger.

A call counts as paid when its full reply was sent, whether or not anybody was left to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.ledger import PAID, Call, Journal
from tests.chaos.terms import (
    CALL_LONGEST_SECONDS,
    CALL_MEDIAN_SECONDS,
    CALL_SHORTEST_SECONDS,
    CALL_SIGMA,
    DRAWS_500,
    FAILS,
    KILLS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

WELL, LIMITED, FAILING, HANGING = "well", "limited", "failing", "hanging"
MODES: Final = (WELL, LIMITED, FAILING, HANGING)
RETRY_AFTER_SECONDS: Final = 1
# A refusal costs the provider nothing, and comes at once.
REFUSAL_SECONDS: Final = 0.02
REMEMBERED: Final = 2000

BROKEN_OFF, HUNG = "broken off", "hung"


class ModelServer:
    """Serves calls and takes orders.

    Args:
        ledger: Where every call is written down when it is over.
        seed: Of the calls' durations.
    """

    def __init__(self, ledger: Journal, seed: int) -> None:
        self._ledger = ledger
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._mode = WELL
        self._mode_changed = asyncio.Event()
        self._healed: set[str] = set()
        self._open: dict[int, Call] = {}
        self._ended: deque[Call] = deque(maxlen=REMEMBERED)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until its client is gone."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, path, _ = head.split(" ", 2)
                length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
                body = json.loads(await reader.readexactly(int(length or 0)) or b"{}")
                if path == "/score":
                    await self._score(body, reader, writer)
                else:
                    writer.write(_response(200, self._obey(path, body)))
                    await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    def _obey(self, path: str, order: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/mode":
            self._mode = order["mode"]
            self._mode_changed.set()
            self._mode_changed = asyncio.Event()
        elif path == "/heal":
            self._healed.add(order["poison"])
        since = order.get("since", 0.0)
        mine = [call for call in self._ended if call.pid == order.get("pid")]
        return {
            # With the worker now, or so lately that the score may not be committed yet.
            "open": [call.response_id for call in self._open.values() if call.pid == order.get("pid")],
            "ended": [call.response_id for call in mine if call.ended >= since],
            "served": sum(call.begun >= since and call.outcome == PAID for call in mine),
        }

    async def _score(
        self, asked: Mapping[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number = next(self._numbers)
        call = Call(number, begun=time.time(), ended=0.0, outcome=BROKEN_OFF, **asked)
        self._open[number] = call
        try:
            response, outcome = await self._think(call)
            # Whoever is gone is not billed: the provider notices before it is done.
            if reader.at_eof() or writer.transport.is_closing():
                raise ConnectionResetError
            if response is None:
                call = replace(call, outcome=HUNG)
                raise ConnectionResetError
            writer.write(response)
            await writer.drain()
            call = replace(call, outcome=outcome)
        finally:
            del self._open[number]
            call = replace(call, ended=time.time())
            self._ended.append(call)
            self._ledger.write(call)

    async def _think(self, call: Call) -> tuple[bytes | None, str]:
        """Take the time of a call; return its reply, or None where it hangs, and what it counts as."""
        if self._mode == LIMITED:
            await asyncio.sleep(REFUSAL_SECONDS)
            return _response(429, {}, {"Retry-After": str(RETRY_AFTER_SECONDS)}), "429"
        if self._mode == FAILING:
            await asyncio.sleep(REFUSAL_SECONDS)
            return _response(500, {}), "500"
        seconds = CALL_MEDIAN_SECONDS * self._random.lognormvariate(0.0, CALL_SIGMA)
        await asyncio.sleep(min(CALL_LONGEST_SECONDS, max(CALL_SHORTEST_SECONDS, seconds)))
        if self._mode == HANGING:
            while self._mode == HANGING:
                await self._mode_changed.wait()
            return None, HUNG
        poison = None if call.poison in self._healed else call.poison
        if poison == DRAWS_500:
            return _response(500, {}), "500"
        verdict = {KILLS: "kill", FAILS: "none"}.get(poison or "", "score")
        return _response(200, {"call": call.number, "verdict": verdict}), PAID


def _response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"{name}: {value}" for name, value in {**(headers or {}), "Content-Length": len(content)}.items()
    ]
    return "\r\n".join([f"HTTP/1.1 {status} -", *lines, "", ""]).encode() + content


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    model = ModelServer(Journal(options.ledger), options.seed)
    server = await asyncio.start_server(model.serve, "127.0.0.1", options.port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
