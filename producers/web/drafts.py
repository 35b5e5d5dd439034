"""Routes: keep what a student has written and not submitted.

Annotations are evaluated where they stand, because they name dependencies that are arguments of a function.
"""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Response
from pydantic.json_schema import SkipJsonSchema
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


# In a list of ETags. Weak ones (W/"…") never match.
_VERSION = re.compile(r'(?:^|[\s,])"([0-9]+-[0-9]+)"')
_ETAG: dict[str, Any] = {
    "ETag": {"description": "for If-Match", "schema": {"type": "string", "pattern": '^"[0-9]+-[0-9]+"$'}}
}
_WITH_ETAG: dict[int | str, dict[str, Any]] = {200: {"headers": _ETAG}}
IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(
        description="ETag of the draft that was read or saved last: without effect where there is another one by now, "
        "so that a request which is late spoils nothing"
    ),
]


def _versions(if_match: str | None) -> list[str] | None:
    """The versions that an ``If-Match`` names; None where no header is given."""
    if if_match is None:
        return None
    return ["*"] if if_match.strip() == "*" else _VERSION.findall(if_match)


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
        responses=_WITH_ETAG | _NOT_SAVED | problems("unknown_user", "draft_changed", body=True),
    )
    async def keep_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        given: DraftText,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
        response: Response,
        if_match: IfMatch = None,
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
                versions=_versions(if_match),
            )
        if row is None:
            nothing = Response(status_code=204)
            nothing.raw_headers.extend(response.headers.raw)  # of the host's dependencies
            return nothing
        response.headers["ETag"] = f'"{row["version"]}"'
        return Draft.of(row)

    @router.get(
        _PATH,
        operation_id="get_draft",
        summary="Read what was written and not submitted",
        response_description="The draft.",
        responses=_WITH_ETAG | problems("no_draft"),
    )
    async def read_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
        response: Response,
    ) -> Draft:
        """Read a draft of one's own, with the key under which to submit it."""
        async with connected(engine) as conn:
            row = await get_draft(conn, **caller.whose, module_slug=module_slug, question_id=question_id)
        if row is None:
            raise not_found("draft")
        response.headers["ETag"] = f'"{row["version"]}"'
        return Draft.of(row)

    @router.delete(
        _PATH,
        status_code=204,
        operation_id="discard_draft",
        summary="Forget what was written",
        response_description="There is no draft now.",
        responses=problems("draft_changed"),
    )
    async def forget_draft(
        module_slug: ModuleSlug,
        question_id: QuestionId,
        caller: Annotated[Identity, Depends(host.identity)],
        engine: Annotated[AsyncEngine, Depends(host.engine)],
        if_match: IfMatch = None,
    ) -> None:
        """Forget a draft of one's own. May be repeated."""
        async with connected(engine) as conn:
            await discard_draft(
                conn,
                **caller.whose,
                module_slug=module_slug,
                question_id=question_id,
                versions=_versions(if_match),
            )
