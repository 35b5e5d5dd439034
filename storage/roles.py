"""The boundary, enforced by the database: three roles and the columns each may touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from storage.errors import AccessDeniedError, InvalidInputError
from storage.tables import VERSION_TABLE
from storage.translation import translated
from storage.validation import storable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

# Longer names PostgreSQL would cut off.
MAX_NAME_BYTES = 63
_QUOTE = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]

_SUBMIT_COLUMNS = (
    "user_id, anonymous_token, module_slug, question_id, learning_outcome_id, content_id, answer_text, "
    "answer_metadata, submission_key, question_digest"
)

# What each role may do. Nobody may change or delete an answer or a score, or publish over a digest; only
# ops may delete, when a student is erased. FOR UPDATE needs UPDATE on at least one column.
PRIVILEGES: Mapping[str, Mapping[str, str]] = {
    "web": {
        "assessment_questions": "SELECT",
        "assessment_responses": f"SELECT, INSERT ({_SUBMIT_COLUMNS})",
        "scoring_handoffs": "SELECT, INSERT (response_id, question_digest, due_at, trace_context)",
        "assessment_scores": "SELECT",
        "assessment_claims": "SELECT, INSERT (anonymous_token, user_id)",
        "assessment_drafts": "SELECT, DELETE, UPDATE (answer_text, submission_key, saved_at), "
        "INSERT (user_id, anonymous_token, module_slug, question_id, answer_text, submission_key)",
        VERSION_TABLE: "SELECT",
    },
    "worker": {
        "assessment_questions": "SELECT",
        "assessment_responses": "SELECT, UPDATE (user_id, anonymous_token)",
        "scoring_handoffs": "SELECT, DELETE, UPDATE (question_digest, state, due_at, lease_token, leased_at, "
        "attempts, postponements, suspicions, lease_losses, last_error, last_error_at)",
        "assessment_scores": "SELECT, INSERT",
        "assessment_claims": "SELECT, UPDATE (applied_at, moved, skipped)",
        "assessment_drafts": "SELECT, DELETE, UPDATE (user_id, anonymous_token)",
        "scoring_workers": "SELECT, INSERT, UPDATE, DELETE",
        VERSION_TABLE: "SELECT",
    },
    "ops": {
        "assessment_questions": "SELECT, INSERT, UPDATE (publication, published_at)",
        "assessment_responses": "SELECT, DELETE",
        "scoring_handoffs": "SELECT, DELETE, INSERT (response_id, question_digest, lane, due_at), UPDATE",
        "assessment_scores": "SELECT, DELETE",
        "assessment_claims": "SELECT, DELETE",
        "assessment_drafts": "SELECT, DELETE, UPDATE (saved_at)",
        "scoring_workers": "SELECT",
        "scoring_runs": "SELECT, INSERT (kind, filters, started_by, until_response_id, expected), "
        "UPDATE (last_response_id, changed, updated_at, finished_at)",
        "scoring_actions": "SELECT, INSERT (actor, action, affected, details)",
        "scoring_watermarks": "SELECT, INSERT, UPDATE",
        VERSION_TABLE: "SELECT",
    },
}

# Is there such a role?
_EXISTS = text("SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = :name)")

# May we grant on all of these? Who may not gets a warning from PostgreSQL, not an error.
_OWNED = text(
    "SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class WHERE oid = ANY (CAST(:tables AS regclass[]))"
)

_TABLES = sorted({table for granted in PRIVILEGES.values() for table in granted})


def _create_statement(name: str) -> str:
    return (
        f"DO $$ BEGIN CREATE ROLE {_QUOTE(name)} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )


def _check_name(part: str, name: str) -> None:
    storable(part, name, max_chars=MAX_NAME_BYTES)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidInputError(part, f"a role's name has 1 to {MAX_NAME_BYTES} bytes")
    # What is granted to "public" is granted to everybody: psql goes on after the role that could not be created.
    if name in {"public", "none"} or name.startswith("pg_"):
        raise InvalidInputError(part, "PostgreSQL keeps this name to itself")


def grant_statements(roles: Mapping[str, str]) -> list[str]:
    """Spell out the statements that give each role what it needs and nothing else.

    Args:
        roles: The role's name in the database by its part: ``web``, ``worker``, ``ops``.

    Returns:
        SQL statements that create roles that are missing, then take away what each may, then give it.

    Raises:
        InvalidInputError: A name cannot be one, or two parts have the same.
    """
    for part, name in roles.items():
        _check_name(part, name)
    if len(set(roles.values())) < len(roles):
        raise InvalidInputError("roles", "each part needs a role of its own: what one may, another must not")
    statements = [_create_statement(name) for name in roles.values()]
    for part, tables in PRIVILEGES.items():
        if part not in roles:
            continue
        role = _QUOTE(roles[part])
        statements.append(f"REVOKE ALL ON {', '.join(_TABLES)} FROM {role}")
        statements.extend(f"GRANT {privileges} ON {table} TO {role}" for table, privileges in tables.items())
    return statements


async def grant_roles(conn: AsyncConnection, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Create the roles that are missing, without a login, and give each what it needs and nothing else.

    Logins of your own become members: ``GRANT scoring_web TO webapp``.

    Args:
        conn: A connection of the tables' owner; nothing is committed here.
        roles: As for :func:`grant_statements`.

    Returns:
        ``part``, ``role`` and ``created`` of each.

    Raises:
        InvalidInputError: A name cannot be one, or two parts have the same.
        AccessDeniedError: The connection may not create roles or does not own the tables.
    """
    statements = grant_statements(roles)
    granted = []
    with translated():
        if not (await conn.execute(_OWNED, {"tables": _TABLES})).scalar_one():
            raise AccessDeniedError(
                "This login does not own our tables, so it cannot grant: connect as their owner."
            )
        for part, name in roles.items():
            exists = (await conn.execute(_EXISTS, {"name": name})).scalar_one()
            granted.append({"part": part, "role": name, "created": not exists})
        for statement in statements:
            await conn.execute(text(statement))
    return granted
