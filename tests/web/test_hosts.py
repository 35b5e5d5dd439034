"""In a host app with an engine, a Redis pool, transactions and types of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import httpx
import pytest
from arq import create_pool
from arq.connections import RedisSettings
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from producers import open_producer
from storage import submit_response
from tests.databases import ROOT
from tests.factories import count
from tests.web.factories import answer, submitted
from tests.web.host import Host, host_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

HOST_FILE = """
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from producers import Producer, ProducerSettings, open_producer
from producers.web import Identity, create_router
from storage import get_responses, submit_response
from worker.scorers.protocol import Score


def identity() -> Identity:
    return Identity(user_id=1)


def nothing() -> None:
    return None


def producer(request: Request) -> Producer:
    made: Producer = request.app.state.producer
    return made


def engine(request: Request) -> AsyncEngine:
    made: AsyncEngine = request.app.state.engine
    return made


app = FastAPI()
app.include_router(create_router(identity=identity, may_claim=nothing, producer=producer, engine=engine))


async def own(request: Request, used: Annotated[Producer, Depends(producer)]) -> None:
    async with engine(request).begin() as conn:
        row = await submit_response(conn, user_id=1, module_slug="m", question_id="q", answer_text="a")
    used.announce([row["response_id"]])
    reveal_type(row)
    reveal_type(used.submit)
    Identity(user_id="one")
    create_router(identity=identity)
"""


@pytest.fixture
async def hosts_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine that a host made without us."""
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


@pytest.mark.commits
async def test_an_engine_and_a_redis_pool_of_the_hosts(hosts_engine: AsyncEngine, redis_url: str) -> None:
    """Both are used as they are, and are still open when the producer is closed."""
    pool = await create_pool(RedisSettings.from_dsn(redis_url))
    async with open_producer(engine=hosts_engine, redis=pool) as producer:
        app = host_app(Host(engine=hosts_engine, producer=producer))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://host/assessment", headers={"x-user": "1"}
        ) as client:
            response_id = await submitted(client)
            assert (await client.get(f"/responses/{response_id}")).status_code == 200

    assert await pool.dbsize() > 0
    async with hosts_engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 1
    await pool.aclose()


@pytest.mark.commits
async def test_inside_the_hosts_own_transaction(host: Host, client: httpx.AsyncClient) -> None:
    """What the host stores beside an answer is stored with it, or neither is; the bell rings after the commit."""
    async with host.engine.begin() as conn:
        await conn.execute(text("CREATE TABLE host_attempts (response_id bigint)"))

    async def attempt(conn: AsyncConnection) -> int:
        row = await submit_response(conn, user_id=1, **answer())
        response_id = int(row["response_id"])
        await conn.execute(text("INSERT INTO host_attempts VALUES (:id)"), {"id": response_id})
        return response_id

    try:
        async with host.engine.connect() as conn:
            await attempt(conn)
            await conn.rollback()
        async with host.engine.begin() as conn:
            stored = await attempt(conn)
        host.producer.announce([stored])
        async with host.engine.connect() as conn:
            kept = (await conn.execute(text("SELECT response_id FROM host_attempts"))).scalars().all()
    finally:
        async with host.engine.begin() as conn:
            await conn.execute(text("DROP TABLE host_attempts"))

    listed = (await client.get("/responses")).json()["items"]
    assert [item["id"] for item in listed] == kept == [stored]


def test_a_host_sees_types(tmp_path: Path) -> None:
    """The type checker reads them from the installed packages: it accepts right calls, and refuses wrong ones."""
    (tmp_path / "host.py").write_text(HOST_FILE)

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "host.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "dict[str, Any]" in done.stdout, done.stdout
    assert "def (*, user_id: int | None" in done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 4, done.stdout
    assert 'Argument "user_id" to "Identity" has incompatible type "str"' in errors[0]
    assert all("Missing named argument" in error for error in errors[1:])


def test_the_wheel_is_typed(tmp_path: Path) -> None:
    """It carries the marker of each package, the router, and the migrations."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("storage", "producers", "worker")} <= names
    assert {"producers/web/__init__.py", "storage/alembic/env.py"} <= names


def test_producers_do_not_need_fastapi() -> None:
    """Only who imports the router pays for it."""
    program = "import sys; sys.modules['fastapi'] = None; import producers; print('fine')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"
