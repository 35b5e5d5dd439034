"""What clients of the router send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.factories import submission

if TYPE_CHECKING:
    import httpx

KEY = "Idempotency-Key"
PROBLEM = "application/problem+json"


def answer(**changes: Any) -> dict[str, Any]:
    """The body of a submit."""
    return {name: value for name, value in submission().items() if name != "user_id"} | changes


def keyed(key: object = None) -> dict[str, str]:
    """Headers with a key; a new one unless it is given."""
    return {KEY: str(key or uuid4())}


def as_token(token: str) -> dict[str, str]:
    """Headers of somebody who is not signed in."""
    return {"x-user": "", "x-token": token}


def as_user(user_id: int) -> dict[str, str]:
    """Headers of a signed-in student."""
    return {"x-user": str(user_id)}


async def submitted(
    client: httpx.AsyncClient, *, headers: dict[str, str] | None = None, **changes: Any
) -> int:
    """Submit one answer and return its id."""
    reply = await client.post("/responses", json=answer(**changes), headers=headers)
    assert reply.status_code == 201, reply.text
    return int(reply.json()["id"])


def refusal(reply: httpx.Response) -> tuple[int, list[tuple[str, str]]]:
    """Status, and field and rule of each error, of a well-formed problem."""
    assert reply.headers["content-type"] == PROBLEM, reply.text
    assert reply.headers["cache-control"] == "no-store"
    problem = reply.json()
    assert set(problem) == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == reply.status_code
    return reply.status_code, [(error["field"], error["rule"]) for error in problem["errors"]]


def fields(reply: httpx.Response) -> tuple[int, list[str]]:
    """Status and fields of a problem."""
    status, errors = refusal(reply)
    return status, [field for field, _ in errors]
