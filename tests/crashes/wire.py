"""Say in words what a process asked a server, from the bytes that it sent."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHARS = 110
_UNNAMED = {80877103: "TLS?", 196608: "login", 80877102: "cancel"}


class Reader(Protocol):
    """Reads one connection."""

    def describe(self, request: bytes) -> str:
        """Say what a request asks for."""
        ...


# The ids of messages, which no two runs share.
_MESSAGE_ID = re.compile(r"(?<=scoring:v1:)[0-9a-f]{29}")


def _short(text: str) -> str:
    return _MESSAGE_ID.sub("…", " ".join(text.split()))[:MAX_CHARS]


class PostgresReader:
    """Reads PostgreSQL's frontend protocol, remembering which statement has which name."""

    def __init__(self) -> None:
        self._statements: dict[bytes, str] = {}

    def describe(self, request: bytes) -> str:
        """Say which statement is parsed or executed."""
        if request[:1] == b"\0":  # the messages before the login have a length and no kind
            (code,) = struct.unpack_from("!I", request, 4)
            return "PostgreSQL: " + _UNNAMED.get(code, "?")
        return "PostgreSQL: " + _short("; ".join(filter(None, map(self._word, *self._messages(request)))))

    @staticmethod
    def _messages(request: bytes) -> tuple[list[bytes], list[bytes]]:
        kinds, bodies, position = [], [], 0
        while position + 5 <= len(request):
            (length,) = struct.unpack_from("!I", request, position + 1)
            kinds.append(request[position : position + 1])
            bodies.append(request[position + 5 : position + 1 + length])
            position += 1 + length
        return kinds, bodies

    def _word(self, kind: bytes, body: bytes) -> str:
        match kind:
            case b"Q":
                return body.rstrip(b"\0").decode(errors="replace")
            case b"P":
                name, statement, *_ = body.split(b"\0")
                self._statements[name] = statement.decode(errors="replace")
                return f"prepare {self._statements[name]}"
            case b"B":
                _, name, *_ = body.split(b"\0")
                return f"execute {self._statements.get(name, '?')}"
            case b"X":
                return "goodbye"
            case b"p":
                return "password"
            case _:
                return ""


class RedisReader:
    """Reads Redis's protocol: each command is an array of byte strings."""

    def describe(self, request: bytes) -> str:
        """Say which commands are sent together."""
        return "Redis: " + _short("; ".join(self._commands(request)))

    @staticmethod
    def _commands(request: bytes) -> Iterator[str]:
        rest = request
        while rest.startswith(b"*"):
            count, _, rest = rest[1:].partition(b"\r\n")
            words = []
            for _ in range(int(count)):
                length, _, rest = rest[1:].partition(b"\r\n")
                words.append(rest[: int(length)].decode(errors="replace"))
                rest = rest[int(length) + 2 :]
            yield " ".join(words[:2])
