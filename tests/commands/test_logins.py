"""Wrong passwords, on servers that ask for one."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from demo.servers import Servers, embedded_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.commands.conftest import Commands

pytestmark = pytest.mark.processes

# Its superuser is trusted, so that the test can set things up; everybody else needs a password.
ACCESS = """
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
CANARY = "wrong-password-canary"


@pytest.fixture(scope="module")
def locked_servers() -> Iterator[Servers]:
    """Servers that ask for passwords."""
    folder = Path(tempfile.mkdtemp(prefix="scoring-access-"))
    folder.chmod(0o755)  # the server may run under another account
    access = folder / "pg_hba.conf"
    access.write_text(ACCESS)
    try:
        with embedded_servers(
            postgres_options=[f"hba_file={access}"], redis_options=["--requirepass", "right"]
        ) as servers:
            yield servers
    finally:
        shutil.rmtree(folder)


@pytest.fixture
async def locked(commands: Commands, locked_servers: Servers) -> Commands:
    """Commands with the right passwords, on a migrated database."""
    connection = await asyncpg.connect(locked_servers.database_url)
    try:
        await connection.execute("DROP DATABASE IF EXISTS scoring")
        await connection.execute("DROP ROLE IF EXISTS scoring")
        await connection.execute("CREATE ROLE scoring LOGIN PASSWORD 'right'")
        await connection.execute("CREATE DATABASE scoring OWNER scoring")
    finally:
        await connection.close()
    port = locked_servers.postgres.port
    environment = {
        **commands.environment,
        "SCORING_DATABASE_URL": f"postgresql://scoring:right@127.0.0.1:{port}/scoring",
        "SCORING_REDIS_URL": f"redis://:right@127.0.0.1:{locked_servers.redis.port}/0",
        "SCORING_SCORER": "lexical",
    }
    return replace(commands, environment=environment)


async def test_a_wrong_database_password_is_said_and_not_shown(locked: Commands) -> None:
    """A refused login names the variable to check; neither password nor traceback is shown."""
    url = locked.environment["SCORING_DATABASE_URL"].replace(":right@", f":{CANARY}@")
    wrong = replace(locked, environment={**locked.environment, "SCORING_DATABASE_URL": url})

    for words in (["status"], ["worker"], ["migrate"], ["verify"]):
        finished = await wrong.process(*words)

        assert finished.returncode == 2, (words, finished.stderr)
        assert "SCORING_DATABASE_URL" in finished.stderr
        assert CANARY not in finished.stderr + finished.stdout
        assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("password", [f":{CANARY}@", ""])
async def test_a_wrong_redis_password_ends_the_worker(locked: Commands, password: str) -> None:
    """A worker whose Redis refuses the login does not start; a Redis that is merely away would not keep it."""
    assert (await locked.process("migrate")).returncode == 0
    url = locked.environment["SCORING_REDIS_URL"].replace(":right@", password)
    wrong = replace(locked, environment={**locked.environment, "SCORING_REDIS_URL": url})

    finished = await wrong.process("worker")

    assert finished.returncode == 2, finished.stderr
    assert "SCORING_REDIS_URL" in finished.stderr
    assert CANARY not in finished.stderr + finished.stdout
    assert "Traceback" not in finished.stderr


async def test_an_owner_who_is_no_superuser_can_migrate(locked: Commands) -> None:
    """Migrating needs to own the database, not to be its superuser."""
    finished = await locked.process("migrate")

    assert finished.returncode == 0, finished.stderr
