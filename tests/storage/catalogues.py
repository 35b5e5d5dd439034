"""What stands in a database's catalogue, of ours and of others; and a web app's database to look at."""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory

from storage.tables import OWN_TABLES, VERSION_TABLE
from tests.databases import alembic_config, raw_connection

if TYPE_CHECKING:
    from collections.abc import Callable

# The revision that this version of the code needs.
HEAD = ScriptDirectory.from_config(alembic_config("")).get_current_head()

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


async def execute(url: str, statements: str) -> None:
    async with raw_connection(url) as connection:
        await connection.execute(statements)


async def value(url: str, query: str) -> Any:
    async with raw_connection(url) as connection:
        return await connection.fetchval(query)
