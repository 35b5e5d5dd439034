"""Routes: keep what a student has written and not submitted.

Annotations are evaluated where they stand, because they name dependencies that are arguments of a function.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from sqlalchemy.ext.asyncio import AsyncEngine

from producers.web.connections import connected
from producers.web.documentation import problems
from producers.web.host import Host
from producers.web.idempotency import is_submission_key
from producers.web.identity import Identity
from producers.web.paths import QUESTION_ID
from producers.web.problems import invalid, not_found
from producers.web.shapes import KEY_SCHEMA, Draft, DraftText
from storage.drafts import discard_draft, get_draft, save_draft

# The id of a question may contain slashes, the slug of a module may not.
_PATH = "/drafts/{module_slug}/" + QUESTION_ID
ModuleSlug = Annotated[str, Path(json_schema_extra=KEY_SCHEMA)]
QuestionId = Annotated[str, Path(json_schema_extra=KEY_SCHEMA)]
_NOT_SAVED: dict[int | str, dict[str, Any]] = {
    204: {
        "description": "Nothing was stored: the answer was submitted under this key, or a later text was saved."
    }
}


def add_drafts(router: APIRouter, host: Host) -> None:
    """Add the routes.

    Args:
        router: Where to.
        host: What the host app gives.
    """

    @router.put(
        _PATH,
        operation_id="save_draft",
        summary="Keep what was written so far",
        response_model=Draft,
        response_description="It is stored, in place of what was there before.",
        responses=_NOT_SAVED | problems("unknown_user", body=True),
    )
    async def keep_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        given: DraftText,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
    ) -> Any:
        """Store a draft. There is one for each question, and the text that was sent last counts."""
        if not is_submission_key(given.submission_key):
            raise invalid(("submission_key", "expected a UUID as crypto.randomUUID() makes it"))
        async with connected(engine) as conn:
            row = await save_draft(
                conn,
                **caller.whose,
                module_slug=module_slug,
                question_id=question_id,
                answer_text=given.answer_text,
                submission_key=given.submission_key,
                max_chars=host.max_answer_chars,
            )
        return Response(status_code=204) if row is None else Draft.of(row)

    @router.get(
        _PATH,
        operation_id="get_draft",
        summary="Read what was written and not submitted",
        response_description="The draft.",
        responses=problems("no_draft"),
    )
    async def read_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
    ) -> Draft:
        """Read a draft of one's own, with the key under which to submit it."""
        async with connected(engine) as conn:
            row = await get_draft(conn, **caller.whose, module_slug=module_slug, question_id=question_id)
        if row is None:
            raise not_found("draft")
        return Draft.of(row)

    @router.delete(
        _PATH,
        status_code=204,
        operation_id="discard_draft",
        summary="Forget what was written",
        response_description="There is no draft now.",
        responses=problems(),
    )
    async def forget_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
    ) -> None:
        """Forget a draft of one's own. May be repeated."""
        async with connected(engine) as conn:
            await discard_draft(conn, **caller.whose, module_slug=module_slug, question_id=question_id)
