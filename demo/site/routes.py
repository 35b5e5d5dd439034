"""The host's own routes: its page, its questions, its pretend sign-in."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.ext.asyncio import AsyncEngine

from demo.site.host import KnownVisitor, get_engine, get_producer, get_settings, present_visitor, the_visitors
from demo.site.visitors import NAMES, Visitors
from producers import Producer, ProducerClosedError, ProducerSettings
from storage import StorageError
from storage.questions import list_asked_questions
from storage.translation import translated

STATIC = Path(__file__).parent / "static"

router = APIRouter()
TheVisitors = Annotated[Visitors, Depends(the_visitors)]


@router.get("/")
async def page(request: Request, visitors: TheVisitors) -> FileResponse:
    """Give the page, and to a new visitor a cookie with it."""
    response = FileResponse(STATIC / "index.html")
    if visitors.recognise(request) is None:
        visitors.welcome(request, response)
    return response


@router.get("/api/me")
async def me(
    visitor: KnownVisitor, visitors: TheVisitors, settings: Annotated[ProducerSettings, Depends(get_settings)]
) -> dict[str, Any]:
    """Say what the page must know of its visitor."""
    user = visitor.user_id
    return {
        "user": None if user is None else {"id": user, "name": NAMES.get(user, str(user))},
        "mark": visitors.mark(visitor),
        "max_answer_chars": settings.max_answer_chars,
        "students": [{"id": number, "name": name} for number, name in NAMES.items()],
    }


@router.get("/api/questions")
async def questions(engine: Annotated[AsyncEngine, Depends(get_engine)]) -> list[dict[str, Any]]:
    """List what is asked."""
    try:
        with translated():
            async with engine.connect() as conn:
                return await list_asked_questions(conn)
    except StorageError:
        raise HTTPException(503, "The questions can't be read now.") from None


@router.post("/demo/sign-in", status_code=204)
async def sign_in(
    request: Request,
    response: Response,
    visitor: KnownVisitor,
    visitors: TheVisitors,
    producer: Annotated[Producer, Depends(get_producer)],
    user_id: Annotated[int, Body(embed=True)],
) -> None:
    """Sign in as one of the class; what was answered as a guest becomes the user's."""
    if user_id not in NAMES:
        raise HTTPException(404, "There is no such student.")
    if visitor.user_id is None:
        try:
            # Durable before the token is forgotten: a crash between the two costs nothing.
            await producer.claim(anonymous_token=visitor.token, user_id=user_id)
        except (StorageError, ProducerClosedError):
            raise HTTPException(503, "You can't be signed in now.") from None
    visitors.welcome(request, response, user_id=user_id)


@router.post("/demo/sign-out", status_code=204, dependencies=[Depends(present_visitor)])
async def sign_out(request: Request, response: Response, visitors: TheVisitors) -> None:
    """Become a guest whom nobody knows yet."""
    visitors.welcome(request, response)
