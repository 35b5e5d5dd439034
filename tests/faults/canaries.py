"""Canaries: words that stand for what must stay secret, and everywhere that one could sing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from redis.asyncio import Redis

from tests.databases import raw_connection
from tests.factories import submission
from tests.measuring import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

ANSWER = "wrens4answer"
METADATA = "finches4metadata"
TOKEN = "larks4token"
DATABASE_PASSWORD = "robins4database"
REDIS_PASSWORD = "swifts4redis"
API_KEY = "siskins4model"
FORGED = "cuckoos4message"
WRONG_PASSWORD = "magpies4password"
CANARIES = (ANSWER, METADATA, TOKEN, DATABASE_PASSWORD, REDIS_PASSWORD, API_KEY, FORGED, WRONG_PASSWORD)
# Long enough that a message cut off somewhere still shows the beginning of a canary.
TELLTALE_CHARS = 8

# All columns of what holds no answers and no tokens on purpose; of scores, all but what the model wrote.
_ROWS = """
    SELECT 'scoring_handoffs', to_jsonb(h)::text FROM scoring_handoffs AS h
    UNION ALL SELECT 'scoring_workers', to_jsonb(w)::text FROM scoring_workers AS w
    UNION ALL SELECT 'assessment_claims', (to_jsonb(c) - 'anonymous_token')::text FROM assessment_claims AS c
    UNION ALL SELECT 'assessment_scores', (to_jsonb(s) - 'score_data')::text FROM assessment_scores AS s
"""


def heard(text: str | bytes) -> set[str]:
    """The canaries that sing in a text, whole or cut off."""
    said = text.decode(errors="replace") if isinstance(text, bytes) else text
    return {canary for canary in CANARIES if canary[:TELLTALE_CHARS] in said}


class Listener(logging.Handler):
    """Listens at every place that a secret may come to.

    As a handler of logs it keeps all that a formatter could print of a record, tracebacks with their causes included.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.paths: list[str] = []
        self.singing: list[str] = []
        self.heard_chars = 0

    def drove(self, *paths: str) -> None:
        """Count paths that were driven."""
        self.paths += paths

    def listen(self, place: str, text: str | bytes, *, except_for: Iterable[str] = ()) -> None:
        """Look for canaries in what was found at a place."""
        self.heard_chars += len(text)
        for canary in heard(text) - set(except_for):
            said = text.decode(errors="replace") if isinstance(text, bytes) else text
            at = said.index(canary[:TELLTALE_CHARS])
            self.singing.append(f"{canary} in {place}: {said[max(0, at - 200) : at + 80]!a}")

    def caught(self, path: str, exc: BaseException) -> None:
        """Look at an error as a web app's logger would print it."""
        self.drove(path)
        self.listen(f"str of {path}", f"{exc} {exc!r} {exc.args!r}")
        self.listen(f"traceback of {path}", "".join(traceback.format_exception(exc)))

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record of this process."""
        extra = {
            name: value for name, value in record.__dict__.items() if name not in {"msg", "args", "exc_info"}
        }
        parts = [record.getMessage(), repr(record.msg), repr(record.args), repr(extra)]
        if record.exc_info:
            parts += traceback.format_exception(*record.exc_info)
        self.listen(f"log of {record.name}", "\n".join(parts))

    @contextlib.contextmanager
    def on_logs(self) -> Iterator[Self]:
        """Hear everything that this process logs, down to DEBUG."""
        root = logging.getLogger()
        before = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        try:
            yield self
        finally:
            root.removeHandler(self)
            root.setLevel(before)

    async def on_database(self, url: str) -> None:
        """Read what PostgreSQL keeps about answers."""
        async with raw_connection(url) as connection:
            for table, row in await connection.fetch(_ROWS):
                self.listen(table, row)

    async def on_redis(self, url: str) -> None:
        """Read every key and value, as the server dumps them; it must not compress."""
        async with Redis.from_url(url) as redis:
            async for key in redis.scan_iter("*"):
                self.listen("a key in Redis", key)
                self.listen(f"the value of {key!r}", await redis.dump(key) or b"")


@contextlib.contextmanager
def listening(request: pytest.FixtureRequest) -> Iterator[Listener]:
    """Listen while a test drives failures; at its end nothing may have sung, and it says how much was driven."""
    listener = Listener()
    with listener.on_logs():
        yield listener
    paths, chars = len(listener.paths), listener.heard_chars
    note(
        request.config, f"canaries: {request.node.name}: {paths} failure paths, {chars:,} characters searched"
    )
    assert listener.paths
    assert not listener.singing, "\n".join(listener.singing)


def canary(**changes: Any) -> dict[str, Any]:
    """A submission in which all that is secret is a canary."""
    owner = {} if changes.keys() & {"user_id", "anonymous_token"} else {"anonymous_token": TOKEN}
    texts = {"answer_text": f"My answer: {ANSWER}.", "answer_metadata": {METADATA: [METADATA]}}
    return submission(**owner | texts | changes)


class Monitor:
    """Everything that any client sends to Redis, while the block lasts."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.seen = bytearray()

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writer.write(f"AUTH {self._url.password}\r\nMONITOR\r\n".encode())
        for _ in range(2):
            assert await reader.readline() == b"+OK\r\n"
        self._reading = asyncio.create_task(self._read(reader))
        return self

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                self.seen += piece

    async def __aexit__(self, *exc: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._writer.close()
