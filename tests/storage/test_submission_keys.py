"""What a submission key promises while its first answer is being erased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from storage import StorageUnavailableError, submissions, submit_response
from storage.erasure import erase_responses
from tests.factories import submission

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits


async def test_an_answer_that_is_erased_meanwhile_may_be_submitted_again(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither stored anew nor found: the caller hears that repeating it is safe, and so it is."""
    given = submission(submission_key=uuid4())
    async with engine.begin() as conn:
        first = await submit_response(conn, **given)
    look = submissions._submitted_before

    async def look_too_late(conn: AsyncConnection, *arguments: Any) -> Any:
        async with engine.begin() as other:
            await erase_responses(other, user_id=given["user_id"])
        return await look(conn, *arguments)

    monkeypatch.setattr(submissions, "_submitted_before", look_too_late)
    with pytest.raises(StorageUnavailableError, match="repeat"):
        async with engine.begin() as conn:
            await submit_response(conn, **given)
    monkeypatch.undo()

    async with engine.begin() as conn:
        second = await submit_response(conn, **given)
    assert second["response_id"] != first["response_id"]
