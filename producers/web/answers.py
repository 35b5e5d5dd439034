"""Routes: submit an answer, read answers and their scores.

Annotations are evaluated where they stand, because they name dependencies that are arguments of a function.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy.ext.asyncio import AsyncEngine

from producers.producer import Producer
from producers.web.connections import connected
from producers.web.documentation import problems
from producers.web.host import Host
from producers.web.idempotency import idempotency_key, submission_key
from producers.web.identity import Identity
from producers.web.pages import DEFAULT_LIMIT, MAX_LIMIT, PATTERN, decode_cursor, encode_cursor
from producers.web.paths import QUESTION_ID
from producers.web.problems import key_used, not_found
from producers.web.shapes import KEY_SCHEMA, Page, ScoredResponse, StoredResponse, Submission
from storage.responses import get_response, get_responses
from storage.validation import checked_key

_MAX_ID = 2**63 - 1
# What a key stands for. Metadata is left out: a page that counts seconds counts on while it tries again.
_ANSWERED = ("module_slug", "question_id", "answer_text")

ModuleFilter = Annotated[
    str | None, Query(description="only those of this module", json_schema_extra=KEY_SCHEMA)
]
QuestionFilter = Annotated[
    str | None, Query(description="only those to this question", json_schema_extra=KEY_SCHEMA)
]
Cursor = Annotated[
    str | None,
    Query(description="next_cursor of the page before", json_schema_extra={"pattern": PATTERN}),
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="answers on a page")]


async def _page(
    engine: AsyncEngine,
    caller: Identity,
    *,
    module_slug: str | None,
    question_id: str | None,
    cursor: str | None,
    limit: int,
) -> Page:
    for field, value in (("module_slug", module_slug), ("question_id", question_id)):
        if value is not None:
            checked_key(field, value)
    before = decode_cursor(cursor)
    async with connected(engine) as conn:
        rows = await get_responses(
            conn,
            **caller.whose,
            module_slug=module_slug,
            question_id=question_id,
            before_response_id=before,
            limit=limit + 1,  # one more says whether there is another page
        )
    shown = rows[:limit]
    return Page(
        items=[StoredResponse.of(row) for row in shown],
        next_cursor=encode_cursor(shown[-1]["response_id"]) if len(rows) > limit else None,
    )


def add_answers(router: APIRouter, host: Host) -> None:
    """Add the routes.

    Args:
        router: Where to.
        host: What the host app gives.
    """

    @router.post(
        "/responses",
        status_code=201,
        operation_id="submit_response",
        summary="Submit an answer",
        response_description="The answer is stored and will be scored. A repetition with the same key gets the same reply.",
        responses=problems("unknown_user", "key_used", body=True),
    )
    async def submit_response(
        given: Submission,
        caller: Annotated[Identity, Depends(host.identity)],
        producer: Annotated[Producer, Depends(host.producer)],
        key: Annotated[str | None, Depends(idempotency_key)],
    ) -> StoredResponse:
        """Store an answer. The reply does not wait for its score."""
        row = await producer.submit(
            **caller.whose,
            **given.model_dump(),
            submission_key=None if key is None else submission_key(caller, key),
        )
        if any(row[name] != getattr(given, name) for name in _ANSWERED):
            raise key_used()
        return StoredResponse.as_submitted(row)

    @router.get(
        "/responses",
        operation_id="list_responses",
        summary="List one's own answers, newest first",
        response_description="A page of answers, each with its state and its current score.",
        responses=problems(),
    )
    async def list_responses(
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
        module_slug: ModuleFilter = None,
        question_id: QuestionFilter = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page:
        """Read one page. Answers that come meanwhile do not shift the pages that follow."""
        return await _page(
            engine, caller, module_slug=module_slug, question_id=question_id, cursor=cursor, limit=limit
        )

    @router.get(
        "/responses/{response_id}",
        operation_id="get_response",
        summary="Read one answer with all its scores",
        response_description="The answer.",
        responses=problems("no_response"),
    )
    async def read_response(
        response_id: Annotated[int, Path(ge=1, le=_MAX_ID)],
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
    ) -> ScoredResponse:
        """Read one answer of one's own."""
        async with connected(engine) as conn:
            row = await get_response(conn, response_id=response_id, **caller.whose)
        if row is None:
            raise not_found("response")
        return ScoredResponse.with_scores(row)

    @router.get(
        f"/questions/{QUESTION_ID}/responses",
        operation_id="list_question_responses",
        summary="List one's own attempts at one question, newest first",
        response_description="A page of answers, each with its state and its current score.",
        responses=problems(),
    )
    async def list_question_responses(
        question_id: Annotated[str, Path(json_schema_extra=KEY_SCHEMA)],
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
        module_slug: ModuleFilter = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page:
        """Read one page of attempts; give the module where several use the same id."""
        return await _page(
            engine, caller, module_slug=module_slug, question_id=question_id, cursor=cursor, limit=limit
        )
