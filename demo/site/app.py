"""The site: pages, a pretend sign-in, and in one line the router that a host mounts."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware.trustedhost import TrustedHostMiddleware

from demo.site.breaking import Breakable
from demo.site.guards import Guards
from demo.site.visitors import NAMES, Visitor, Visitors
from producers import Producer, ProducerSettings, open_producer
from producers.web import Identity, create_router
from storage import StorageError
from storage.questions import list_asked_questions

STATIC = Path(__file__).parent / "static"
# A page of another site whose name is made to point here must not reach it.
HOSTS = ["127.0.0.1", "localhost"]


def create_site(settings: ProducerSettings, breakables: Sequence[Breakable]) -> FastAPI:
    """Compose the site.

    Args:
        settings: How to reach PostgreSQL and Redis.
        breakables: What a visitor may kill and start again.
    """
    visitors = Visitors()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = settings.engine()
        async with open_producer(settings, engine=app.state.engine) as producer:
            app.state.producer = producer
            yield
        await app.state.engine.dispose()

    def known_visitor(request: Request) -> Visitor:
        visitor = visitors.recognise(request)
        if visitor is None:
            raise HTTPException(401, "Load the page first: it gives you a cookie.")
        return visitor

    Known = Annotated[Visitor, Depends(known_visitor)]  # noqa: N806 - a type

    def current_identity(visitor: Known) -> Identity:
        if visitor.user_id is not None:
            return Identity(user_id=visitor.user_id)
        return Identity(anonymous_token=visitor.token)

    def token_to_claim() -> None:
        """Nothing: the sign-in below claims by itself, before the cookie with the token is gone."""

    def get_producer(request: Request) -> Producer:
        producer: Producer = request.app.state.producer
        return producer

    def get_engine(request: Request) -> AsyncEngine:
        engine: AsyncEngine = request.app.state.engine
        return engine

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guards)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.include_router(
        create_router(
            identity=current_identity,
            may_claim=token_to_claim,
            producer=get_producer,
            engine=get_engine,
            max_answer_chars=settings.max_answer_chars,
        ),
        prefix="/assessment",
    )
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/")
    async def page(request: Request) -> FileResponse:
        response = FileResponse(STATIC / "index.html")
        if visitors.recognise(request) is None:
            visitors.welcome(request, response)
        return response

    @app.get("/api/me")
    async def me(visitor: Known) -> dict[str, Any]:
        user = visitor.user_id
        return {
            "user": None if user is None else {"id": user, "name": NAMES.get(user, str(user))},
            "mark": visitors.mark(visitor),
            "max_answer_chars": settings.max_answer_chars,
            "students": [{"id": number, "name": name} for number, name in NAMES.items()],
        }

    @app.get("/api/questions")
    async def questions(engine: Annotated[AsyncEngine, Depends(get_engine)]) -> list[dict[str, Any]]:
        try:
            async with engine.connect() as conn:
                return await list_asked_questions(conn)
        except StorageError:
            raise HTTPException(503, "The questions can't be read now.") from None

    @app.post("/demo/sign-in", status_code=204)
    async def sign_in(
        request: Request,
        response: Response,
        visitor: Known,
        producer: Annotated[Producer, Depends(get_producer)],
        user_id: Annotated[int, Body(embed=True)],
    ) -> None:
        if user_id not in NAMES:
            raise HTTPException(404, "There is no such student.")
        if visitor.user_id is None:
            try:
                # Durable before the token is forgotten: a crash between the two costs nothing.
                await producer.claim(anonymous_token=visitor.token, user_id=user_id)
            except StorageError:
                raise HTTPException(503, "You can't be signed in now.") from None
        visitors.welcome(request, response, user_id=user_id)

    @app.post("/demo/sign-out", status_code=204)
    async def sign_out(request: Request, response: Response) -> None:
        visitors.welcome(request, response)

    @app.get("/demo/processes")
    async def processes() -> list[dict[str, Any]]:
        return [{"name": breakable.name, "pid": breakable.pid} for breakable in breakables]

    @app.post("/demo/processes/{name}/{action}", status_code=204)
    async def act(name: str, action: Literal["kill", "start"]) -> None:
        breakable = next((each for each in breakables if each.name == name), None)
        if breakable is None:
            raise HTTPException(404, "There is no such process.")
        # In the event loop, on purpose: a process must be started by the main thread, whose end ends it.
        if action == "kill":
            breakable.kill()
        else:
            breakable.start()

    return app
