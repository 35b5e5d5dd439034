"""A model server on 127.0.0.1 that behaves as told: OpenAI chat completions and Anthropic messages, over real HTTP.

In a test::

    async with FakeModel() as fake:  # SCORING_LLM_BASE_URL is fake.openai_url
        fake.script("overloaded", "well")  # the first two requests; the rest get the default

By hand: ``python -m tests.fake_model --port 8009 --behaviour well``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

Protocol = Literal["openai", "anthropic"]

# (status, OpenAI's error code, Anthropic's error type, headers)
_ERRORS: Final[dict[str, tuple[int, str, str, dict[str, str]]]] = {
    "rate_limited": (429, "rate_limit_exceeded", "rate_limit_error", {"Retry-After": "7"}),
    "rate_limited_fraction": (429, "rate_limit_exceeded", "rate_limit_error", {"Retry-After": "1.5"}),
    "rate_limited_forever": (429, "rate_limit_exceeded", "rate_limit_error", {"Retry-After": "999999"}),
    "rate_limited_silently": (429, "rate_limit_exceeded", "rate_limit_error", {}),
    "quota": (429, "insufficient_quota", "billing_error", {}),
    "error_500": (500, "server_error", "api_error", {}),
    "error_503": (503, "service_unavailable", "api_error", {"Retry-After": "3"}),
    "overloaded": (529, "overloaded", "overloaded_error", {}),
    "unauthorized": (401, "invalid_api_key", "authentication_error", {}),
    "not_found": (404, "model_not_found", "not_found_error", {}),
    "rejected": (400, "invalid_request", "invalid_request_error", {}),
    "filtered_request": (400, "content_filter", "invalid_request_error", {}),
    "bad_parameter": (400, "unsupported_value", "invalid_request_error", {}),
    "context_window": (400, "context_length_exceeded", "invalid_request_error", {}),
    "too_large": (413, "too_large", "request_too_large", {}),
    "method_not_allowed": (405, "", "", {}),
    "redirect": (307, "", "", {"Location": "http://127.0.0.1:9/"}),
    "request_timeout": (408, "", "timeout_error", {}),
}
_REPLIES: Final = (
    "well",
    "off_scale",
    "dimension_off_scale",
    "missing_dimension",
    "empty_reasoning",
    "half_json",
    "text_only",
    "cut_off",
    "refusal",
    "content_filter",
)
_WIRE: Final = ("hold", "hang", "drip", "drop", "drop_midway", "html", "no_choices")
BEHAVIOURS: Final = (*_REPLIES, *_ERRORS, *_WIRE)

_DRIP_SECONDS: Final = 0.02
_GUARD_SECONDS: Final = 30.0  # longer than any sound test waits; a broken one fails instead of hanging
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What one client sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def protocol(self) -> Protocol:
        return "anthropic" if self.path.endswith("/messages") else "openai"

    @property
    def system(self) -> str:
        """The system text, whichever protocol carries it."""
        if self.protocol == "anthropic":
            return _text(self.body.get("system", ""))
        return "\n".join(_text(m["content"]) for m in self.body["messages"] if m["role"] == "system")

    @property
    def user(self) -> str:
        """The first user text: in our prompt, the one that holds the answer."""
        return next((_text(m["content"]) for m in self.body["messages"] if m["role"] == "user"), "")


@dataclass(slots=True)
class _Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class FakeModel:
    """Serves until it is left; records every request, in the order of arrival.

    Args:
        default: Behaviour of requests beyond the script.
        port: 0 takes a free one.
        delay_seconds: Pause before every reply, as a model would make one.
    """

    def __init__(self, default: str = "well", *, port: int = 0, delay_seconds: float = 0.0) -> None:
        self.default = _known(default)
        self.delay_seconds = delay_seconds
        self.requests: list[Request] = []
        self.released = asyncio.Event()
        """Until it is set, a request that behaves as ``hold`` waits; then it is answered well."""
        self._arrived = asyncio.Condition()
        self._script: deque[str] = deque()
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def script(self, *behaviours: str) -> None:
        """Let the next requests behave so, one after the other."""
        self._script.extend(_known(behaviour) for behaviour in behaviours)

    async def wait_for_requests(self, count: int) -> None:
        """Return when at least ``count`` requests have arrived; TimeoutError where they never do."""
        async with asyncio.timeout(_GUARD_SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and reply to it; False when the connection is over."""
        request = await _read(reader)
        behaviour = self._script.popleft() if self._script else self.default
        async with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        match behaviour:
            case "hang":
                await asyncio.Event().wait()
            case "drip":
                await _drip(writer)
                return False
            case "drop":
                writer.transport.abort()
                return False
            case "drop_midway":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
                )
                await writer.drain()
                writer.close()
                return False
            case "hold":
                await self.released.wait()
                behaviour = "well"
            case _:
                pass
        reply = reply_to(request, behaviour)
        head = [f"HTTP/1.1 {reply.status} Fake", f"Content-Length: {len(reply.body)}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*head, "", ""]).encode() + reply.body)
        await writer.drain()
        return True


async def _drip(writer: asyncio.StreamWriter) -> None:
    """Send a space now and then until the client goes away: alive, and never done."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(_DRIP_SECONDS)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    length = int(headers.get("content-length", "0"))
    assert length <= _MAX_BODY_BYTES
    body = await reader.readexactly(length)
    return Request(path=first.split()[1].partition("?")[0], headers=headers, body=json.loads(body or b"{}"))


def reply_to(request: Request, behaviour: str) -> _Reply:
    """The HTTP reply of a behaviour that does reply. Errors repeat what they were sent, as careless servers do."""
    if behaviour == "html":
        return _Reply(200, b"<html>down for maintenance</html>", {"Content-Type": "text/html"})
    if behaviour == "no_choices":
        return _json(200, {"choices": [], "object": "chat.completion"})
    if behaviour in _ERRORS:
        status, code, kind, headers = _ERRORS[behaviour]
        message = f"refused: {request.user} {request.headers.get('authorization', '')}"
        if behaviour == "context_window":  # Anthropic has no code for it, only these words
            message = f"prompt is too long: 210000 tokens > 200000 maximum; {message}"
        if request.protocol == "anthropic":
            return _json(status, {"type": "error", "error": {"type": kind, "message": message}}, headers)
        return _json(status, {"error": {"code": code, "type": code, "message": message}}, headers)
    if request.protocol == "anthropic":
        return _json(200, _anthropic_body(request, behaviour))
    return _json(200, _openai_body(request, behaviour))


def verdict_for(request: Request, behaviour: str = "well") -> dict[str, Any]:
    """A verdict that fits the scale and dimensions in the prompt; the same answer always gets the same one."""
    scale = re.search(r"^from (\S+) \(lowest\) to (\S+) \(highest\)$", request.system, re.MULTILINE)
    low, high = (float(scale[1]), float(scale[2])) if scale else (1.0, 5.0)
    answer = request.user.partition("ANSWER BEGINS =====")[2].rpartition("=====")[0].rpartition("=====")[0]
    steps = int((high - low) * 2) + 1
    score = min(low + (zlib.crc32(answer.encode()) % steps) / 2, high)
    section = request.system.rpartition("# Dimensions")[2]
    names = [json.loads(name) for name in re.findall(r'^- ("(?:[^"\\]|\\.)*")', section, re.MULTILINE)]
    dimensions = [{"name": name, "score": score, "note": "A note."} for name in names]
    if behaviour == "missing_dimension":
        dimensions = dimensions[1:]
    if behaviour == "dimension_off_scale":
        dimensions[0]["score"] = high + 1
    return {
        "key_observations": ["The answer names the main point."],
        "reasoning": " "
        if behaviour == "empty_reasoning"
        else "The answer says it. The rubric asks for no more.",
        "dimensions": dimensions,
        "overall_score": high + 1 if behaviour == "off_scale" else score,
    }


def _openai_body(request: Request, behaviour: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish = "tool_calls"
    arguments = json.dumps(verdict_for(request, behaviour))
    match behaviour:
        case "text_only":
            message["content"], finish = "I would give it four of five.", "stop"
        case "refusal":
            message["refusal"], finish = "I cannot help with that.", "stop"
        case "content_filter":
            finish = "content_filter"
        case _:
            if behaviour in {"half_json", "cut_off"}:
                arguments = arguments[: len(arguments) // 2]
            finish = "length" if behaviour == "cut_off" else finish
            name = request.body["tools"][0]["function"]["name"]
            message["tool_calls"] = [
                {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
            ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.body["model"],
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def _anthropic_body(request: Request, behaviour: str) -> dict[str, Any]:
    arguments: dict[str, Any] = verdict_for(request, behaviour)
    content: list[dict[str, Any]] = []
    stop = "tool_use"
    match behaviour:
        case "text_only":
            content, stop = [{"type": "text", "text": "I would give it four of five."}], "end_turn"
        case "refusal" | "content_filter":
            stop = "refusal"
        case _:
            if behaviour in {"half_json", "cut_off"}:
                arguments = {"key_observations": arguments["key_observations"]}
            stop = "max_tokens" if behaviour == "cut_off" else stop
            name = request.body["tools"][0]["name"]
            content = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": request.body["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 100},
    }


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> _Reply:
    return _Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])


def _known(behaviour: str) -> str:
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"Unknown behaviour {behaviour!r}; expected one of {', '.join(BEHAVIOURS)}.")
    return behaviour


async def _serve(port: int, behaviour: str, delay_seconds: float) -> None:
    async with FakeModel(behaviour, port=port, delay_seconds=delay_seconds) as fake:
        print(f"SCORING_LLM_BASE_URL={fake.openai_url}  (anthropic: {fake.anthropic_url})", flush=True)  # noqa: T201
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_model", description=main.__doc__)
    parser.add_argument("--port", type=int, default=8009)
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="well")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="pause before every reply")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.port, arguments.behaviour, arguments.delay_seconds))


if __name__ == "__main__":
    main()
