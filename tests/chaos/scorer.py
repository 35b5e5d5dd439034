"""The workers' scorer: a real HTTP call for every answer, and as little else as possible."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.chaos.terms import POISON
from worker.scorers.outcomes import AttemptFailed, ProviderTrouble
from worker.scorers.protocol import Score

if TYPE_CHECKING:
    from worker.scorers.protocol import Answer, Question
    from worker.settings import ScoringSettings

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ChaosScorer:
    """Asks the model server of the run; maps its failures as the scorer for language models does.

    Args:
        url: ``http://HOST:PORT`` of the model server.
        timeout_seconds: Longest wait for a reply.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._timeout_seconds = timeout_seconds
        self._idle: list[Connection] = []

    async def score(self, question: Question, answer: Answer) -> Score:
        poison = answer.text.removeprefix(POISON) if answer.text.startswith(POISON) else None
        asked = {
            "response_id": answer.response_id,
            "digest": question.digest,
            "pid": os.getpid(),
            "poison": poison,
        }
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, headers, reply = await self._post(json.dumps(asked).encode())
        except TimeoutError:
            raise ProviderTrouble("The provider did not reply in time.") from None
        except (OSError, EOFError, ValueError):
            raise ProviderTrouble("The connection to the provider failed.") from None
        if status != 200:
            retry_after = headers.get("retry-after")
            raise ProviderTrouble(
                f"The provider failed (HTTP {status}).",
                retry_after_seconds=None if retry_after is None else float(retry_after),
            )
        match reply.get("verdict"):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "none":
                raise AttemptFailed("The model finds no score for this answer.")
        return Score(
            overall_score=3.0,
            # The audit learns from it which call was the one that counted.
            reasoning=str(reply["call"]),
            model_id="chaos",
            prompt_version="1",
        )

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop()[1].transport.abort()

    async def _post(self, body: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
        reader, writer = await self._connection()
        try:
            head = f"POST /score HTTP/1.1\r\nHost: model\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            reply = json.loads(await reader.readexactly(int(headers["content-length"])))
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))
        return int(status_line.split()[1]), headers, reply

    async def _connection(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or reader.exception() or writer.transport.is_closing()):
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection(self._host, self._port)


def factory(settings: ScoringSettings) -> ChaosScorer:
    return ChaosScorer(settings.llm_base_url or "", settings.llm_timeout_seconds)
