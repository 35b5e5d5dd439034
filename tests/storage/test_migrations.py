from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import alembic
from alembic import command
from storage import create_engine
from storage.schema import schema_revision
from storage.tables import OWN_TABLES, VERSION_TABLE, metadata
from tests.databases import ROOT, alembic_config, raw_connection, upgrade
from tests.races import committed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

# What a web app has in the same database: its users, its scheduler's jobs and its own migrations.
FOREIGN = """
    CREATE TABLE users (
        user_id integer PRIMARY KEY,
        email text NOT NULL,
        settings jsonb NOT NULL DEFAULT '{}',
        CONSTRAINT users_email_check CHECK (email LIKE '%@%')
    );
    CREATE UNIQUE INDEX users_email_key ON users (lower(email));
    COMMENT ON TABLE users IS 'belongs to the web app';
    INSERT INTO users VALUES (1, 'ada@example.org', '{"theme": "dark"}');
    CREATE TABLE apscheduler_jobs (
        id varchar(191) PRIMARY KEY, next_run_time double precision, job_state bytea NOT NULL
    );
    CREATE INDEX ix_apscheduler_jobs_next_run_time ON apscheduler_jobs (next_run_time);
    INSERT INTO apscheduler_jobs VALUES ('nightly', 1.5, '\\x00ff');
    CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('foreign_revision');
    CREATE TABLE logins (login_id bigserial PRIMARY KEY, user_id integer REFERENCES users ON DELETE CASCADE);
    INSERT INTO logins (user_id) VALUES (1);
    CREATE VIEW ada AS SELECT * FROM users WHERE email LIKE 'ada%';
    CREATE SCHEMA reporting;
    CREATE TABLE reporting.assessment_scores (week date PRIMARY KEY);
"""

# Everything there is but what belongs to the tables named: columns, constraints, indexes, triggers, owners.
CATALOGUE = {
    "relations": """
        SELECT c.oid::regclass::text AS name, c.relkind::text, c.reloptions::text, c.relowner, c.relacl::text,
            obj_description(c.oid) AS comment
        FROM pg_class AS c WHERE c.relkind IN ('r', 'v', 'S', 'm', 'p') AND {mine} ORDER BY 1
    """,
    "columns": """
        SELECT c.oid::regclass::text AS name, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            a.attidentity::text, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v', 'S') AND {mine} ORDER BY 1, 2
    """,
    "constraints": """
        SELECT c.oid::regclass::text AS name, k.conname, pg_get_constraintdef(k.oid)
        FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
        WHERE k.contype <> 'n' AND {mine} ORDER BY 1, 2
    """,
    "indexes": """
        SELECT c.oid::regclass::text AS name, pg_get_indexdef(i.indexrelid)
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid WHERE {mine} ORDER BY 1, 2
    """,
    "triggers": """
        SELECT c.oid::regclass::text AS name, t.tgname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE NOT t.tgisinternal AND {mine} ORDER BY 1, 2
    """,
}
_OURS = sorted(OWN_TABLES | {VERSION_TABLE})
_IN_USER_SCHEMAS = (
    "c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
)
# A table of ours, or a sequence of one.
_IS_OURS = (
    "c.relnamespace = 'public'::regnamespace AND EXISTS (SELECT 1 FROM unnest($1::text[]) AS ours (name)"
    " WHERE c.relname = ours.name OR c.relkind = 'S' AND c.relname LIKE ours.name || '%')"
)


async def catalogue(url: str, *, ours: bool) -> dict[str, list[tuple[Any, ...]]]:
    """The schema of our tables, or of everything else, in full."""
    mine = f"{_IN_USER_SCHEMAS} AND {'' if ours else 'NOT '}({_IS_OURS})"
    async with raw_connection(url) as connection:
        return {
            name: [tuple(row) for row in await connection.fetch(query.format(mine=mine), _OURS)]
            for name, query in CATALOGUE.items()
        }


async def foreign(url: str) -> dict[str, Any]:
    """All that is not ours: the schema and every row."""
    seen: dict[str, Any] = dict(await catalogue(url, ours=False))
    async with raw_connection(url) as connection:
        for name, kind, *_ in seen["relations"]:
            if kind == "r":
                rows = await connection.fetch(f"SELECT *, xmin::text, ctid::text FROM {name} ORDER BY ctid")
                seen[f"rows of {name}"] = [tuple(row) for row in rows]
    return seen


async def run(command_: Callable[..., Any], url: str, *args: Any, **options: Any) -> str:
    """Run an Alembic command as its command line does, and return what it prints."""
    output = StringIO()
    await asyncio.to_thread(command_, alembic_config(url, output=output), *args, **options)
    return output.getvalue()


async def proposed(url: str) -> list[Any]:
    """What ``alembic revision --autogenerate`` would write into a new migration; nothing is written."""
    operations: list[Any] = []

    def look(_context: Any, _revision: Any, directives: list[Any]) -> None:
        for script in directives:
            operations.extend(script.upgrade_ops.ops)
            operations.extend(script.downgrade_ops.ops)
        directives.clear()

    await run(command.revision, url, autogenerate=True, process_revision_directives=look)
    return operations


async def execute(url: str, statements: str) -> None:
    async with raw_connection(url) as connection:
        await connection.execute(statements)


async def value(url: str, query: str) -> Any:
    async with raw_connection(url) as connection:
        return await connection.fetchval(query)


@pytest.fixture
async def host_database(make_database: Callable[[], Awaitable[str]]) -> str:
    """A database in which a web app lives already."""
    url = await make_database()
    await execute(url, FOREIGN)
    return url


async def test_nothing_foreign_is_touched_or_proposed(host_database: str) -> None:
    """Up, check, autogenerate and down, in a web app's database: its schema and rows stay as they are."""
    before = await foreign(host_database)
    assert {"users", "apscheduler_jobs", "alembic_version", "reporting.assessment_scores"} <= {
        relation[0] for relation in before["relations"]
    }

    await upgrade(host_database)
    assert await foreign(host_database) == before

    assert "No new upgrade operations detected" in await run(command.check, host_database)
    assert await proposed(host_database) == []
    assert await foreign(host_database) == before

    await run(command.downgrade, host_database, "base")
    assert await foreign(host_database) == before
    ours = await catalogue(host_database, ours=True)
    assert [relation[0] for relation in ours["relations"]] == [VERSION_TABLE]
    assert await value(host_database, f"SELECT count(*) FROM {VERSION_TABLE}") == 0


async def test_the_version_is_kept_in_a_table_of_our_own(host_database: str) -> None:
    """The web app's alembic_version keeps its revision, and ours has ours."""
    await upgrade(host_database)

    assert await value(host_database, "SELECT version_num FROM alembic_version") == "foreign_revision"
    assert await value(host_database, f"SELECT version_num FROM {VERSION_TABLE}") == "0001"
    assert "0001 (head)" in await run(command.current, host_database)


async def test_our_rows_refer_to_the_users_that_are_there(host_database: str) -> None:
    """The web app's user has answers; deleting him is refused until somebody has decided about them."""
    await upgrade(host_database)
    await execute(
        host_database,
        "INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text) VALUES (1, 'm', 'q', 'a')",
    )

    with pytest.raises(Exception, match="fk_assessment_responses_user"):
        await execute(host_database, "DELETE FROM users WHERE user_id = 1")


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX ix_scoring_handoffs_due",
        "ALTER TABLE assessment_responses ADD COLUMN extra text",
        "ALTER TABLE scoring_handoffs ALTER COLUMN lane DROP DEFAULT",
        "ALTER TABLE assessment_scores ALTER COLUMN model_id TYPE varchar(10)",
        "ALTER TABLE assessment_claims DROP CONSTRAINT fk_assessment_claims_user",
        "DROP TABLE scoring_watermarks",
    ],
)
async def test_a_difference_in_our_tables_is_noticed(host_database: str, change: str) -> None:
    """The check is not blind: what concerns us is proposed, and still nothing else."""
    await upgrade(host_database)
    await execute(host_database, change)

    with pytest.raises(alembic.util.AutogenerateDiffsDetected):
        await run(command.check, host_database)


async def test_the_migration_makes_exactly_the_tables(make_database: Callable[[], Awaitable[str]]) -> None:
    """Columns, constraints, checks, indexes, comments and storage options equal those of storage.tables."""
    migrated, created = await make_database(), await make_database()
    await upgrade(migrated)
    engine = create_engine(created)
    try:
        async with engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
    finally:
        await engine.dispose()
    await execute(migrated, f"DROP TABLE {VERSION_TABLE}")

    assert await catalogue(migrated, ours=True) == await catalogue(created, ours=True)


async def test_users_are_made_where_there_are_none(make_database: Callable[[], Awaitable[str]]) -> None:
    """The smallest table that can be referred to; the downgrade leaves it, and the next upgrade takes it."""
    url = await make_database()
    await upgrade(url)
    await execute(url, "INSERT INTO users DEFAULT VALUES")
    standalone = await catalogue(url, ours=True)
    before = await foreign(url)

    await run(command.downgrade, url, "base")
    assert await foreign(url) == before
    assert await value(url, "SELECT user_id FROM users") == 1

    await upgrade(url)
    assert await catalogue(url, ours=True) == standalone
    assert await foreign(url) == before


async def test_a_downgrade_takes_rows_with_it(make_database: Callable[[], Awaitable[str]]) -> None:
    """Scores and handoffs go before the responses that they refer to."""
    url = await make_database()
    await upgrade(url)
    await execute(
        url,
        "INSERT INTO assessment_questions"
        " (question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max)"
        " VALUES ('d', 'm', 'q', 't', 'r', 1, 5);"
        "INSERT INTO assessment_responses (anonymous_token, module_slug, question_id, answer_text)"
        " VALUES ('t', 'm', 'q', 'a');"
        "INSERT INTO scoring_handoffs (response_id, question_digest) VALUES (1, 'd');"
        "INSERT INTO assessment_scores"
        " (response_id, handoff_id, question_digest, model_id, prompt_version, score_data)"
        " VALUES (1, 9, 'd', 'm', 'p', '{}')",
    )

    await run(command.downgrade, url, "base")

    assert (await catalogue(url, ours=True))["constraints"] == [
        (VERSION_TABLE, f"{VERSION_TABLE}_pkc", "PRIMARY KEY (version_num)")
    ]


async def test_an_upgrade_of_what_is_up_to_date_changes_nothing(host_database: str) -> None:
    """Deployments may run it every time."""
    await upgrade(host_database)
    before = await catalogue(host_database, ours=True)

    await upgrade(host_database)

    assert await catalogue(host_database, ours=True) == before


@pytest.mark.processes
async def test_two_upgrades_at_once(host_database: str) -> None:
    """Two instances of a deployment wait for each other; the second finds everything done."""
    before = await foreign(host_database)

    async with held_migration_lock(host_database) as waiting:
        upgrades = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "alembic", "upgrade", "head"),
                cwd=ROOT,
                env=os.environ | {"SCORING_DATABASE_URL": host_database},
                stderr=asyncio.subprocess.PIPE,
            )
            for _ in range(2)
        ]
        await waiting(2)
    ends = [await process.communicate() for process in upgrades]

    assert [process.returncode for process in upgrades] == [0, 0], ends
    assert await value(host_database, f"SELECT count(*) FROM {VERSION_TABLE}") == 1
    assert await foreign(host_database) == before


@asynccontextmanager
async def held_migration_lock(url: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Hold back every migration; what is yielded returns once so many wait."""
    async with raw_connection(url) as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", int.from_bytes(b"scoring", "big"))

        async def waiting(number: int) -> None:
            query = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            async with asyncio.timeout(30):
                while await connection.fetchval(query) < number:
                    pass

        yield waiting


async def test_an_upgrade_that_fails_leaves_nothing(host_database: str) -> None:
    """All or nothing: a table of that name in the way undoes what was made before it."""
    await execute(host_database, "CREATE TABLE scoring_watermarks (name text)")

    with pytest.raises(Exception, match="scoring_watermarks"):
        await upgrade(host_database)

    ours = await catalogue(host_database, ours=True)
    assert [relation[0] for relation in ours["relations"]] == ["scoring_watermarks"]


@pytest.mark.parametrize("with_users", [False, True], ids=["standalone", "host"])
async def test_the_migration_as_a_script(
    make_database: Callable[[], Awaitable[str]],
    with_users: bool,  # noqa: FBT001
) -> None:
    """Where only a DBA may change the schema, ``--sql`` prints a script that makes the same tables."""
    online, offline = await make_database(), await make_database()
    for url in (online, offline):
        if with_users:
            await execute(url, FOREIGN)
    await upgrade(online)
    before = await foreign(offline)

    script = await run(command.upgrade, offline, "head", sql=True)
    assert await foreign(offline) == before, "printing the script must not run it"
    await execute(offline, script)

    assert await catalogue(offline, ours=True) == await catalogue(online, ours=True)
    after = await catalogue(offline, ours=False)
    assert after == await catalogue(online, ours=False)
    if with_users:
        assert await foreign(offline) == before
    await execute(offline, await run(command.downgrade, offline, "head:base", sql=True))
    ours = await catalogue(offline, ours=True)
    assert {relation[0] for relation in ours["relations"]} <= {VERSION_TABLE}
    assert await catalogue(offline, ours=False) == after


async def test_a_process_can_tell_which_revision_it_has_met(
    make_database: Callable[[], Awaitable[str]],
) -> None:
    """None before the first migration, and after all were taken back; the revision in between."""
    url = await make_database()
    engine = create_engine(url)
    try:
        seen = [await committed(engine, schema_revision)]
        await upgrade(url)
        seen.append(await committed(engine, schema_revision))
        await run(command.downgrade, url, "base")
        seen.append(await committed(engine, schema_revision))
    finally:
        await engine.dispose()

    assert seen == [None, "0001", None]


async def test_a_missing_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody migrates a default database by accident."""
    monkeypatch.delenv("SCORING_DATABASE_URL", raising=False)

    with pytest.raises(SystemExit, match="SCORING_DATABASE_URL is not set"):
        await run(command.upgrade, "", "head")


async def test_the_url_may_come_from_the_environment(
    make_database: Callable[[], Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the plain ``alembic upgrade head``."""
    url = await make_database()
    monkeypatch.setenv("SCORING_DATABASE_URL", url)

    await run(command.upgrade, "", "head")

    assert await value(url, f"SELECT version_num FROM {VERSION_TABLE}") == "0001"


async def test_a_connection_may_be_handed_in(make_database: Callable[[], Awaitable[str]]) -> None:
    """Whoever has a transaction of his own decides whether the migration stays."""
    url = await make_database()
    engine = create_engine(url)

    def migrate(connection: Any) -> None:
        command.upgrade(alembic_config("", connection=connection), "head")

    try:
        async with engine.connect() as conn, conn.begin() as transaction:
            await conn.run_sync(migrate)
            await transaction.rollback()
    finally:
        await engine.dispose()

    assert (await catalogue(url, ours=True))["relations"] == []


def test_our_folder_does_not_shadow_the_library() -> None:
    """With an ``__init__.py`` in alembic/, ``import alembic`` would be our migrations, wherever we are started."""
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert Path(alembic.__file__).parent != ROOT / "alembic"
    assert Path(alembic.__file__).parent.parent.name == "site-packages"
