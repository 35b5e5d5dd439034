"""The boundary around handoffs, kept by the database; and what workers know of their provider.

Whoever may insert handoffs but not rescore (the web role) may hand off only the response that he stores together
with it, against what it was pinned to, due now. And nobody may have an answer scored against another question.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What storage.questions takes before it publishes.
PUBLISH_LOCK = int.from_bytes(b"publish", "big")

# A trigger's function finds our tables in the schema in which they are, whatever the search_path of whoever fires it,
# and nothing else anywhere but in pg_catalog. {home} is that schema.
CREATE_FUNCTION = """
DO $migration$ BEGIN EXECUTE replace($create$
CREATE FUNCTION {home}.%(name)s() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
%(body)s
$function$
$create$, '{home}', (
    SELECT quote_ident(nspname) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace
    WHERE c.oid = CAST('scoring_handoffs' AS regclass)
)); END $migration$
"""

# Is the digest one of the question that the response answers? True, or false, or null.
IS_OF_ITS_QUESTION = """(
            SELECT r.question_digest = {row}.question_digest OR EXISTS (
                SELECT FROM {home}.assessment_questions AS q
                WHERE q.question_digest = {row}.question_digest
                    AND q.module_slug = r.module_slug AND q.question_id = r.question_id
            )
            FROM {home}.assessment_responses AS r WHERE r.response_id = {row}.response_id
        )"""

REFUSE_FOREIGN_QUESTION = """RAISE EXCEPTION 'a handoff names the content of another question than its response answers'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_scoring_handoffs_own_question',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;"""

# The rows of one statement have one xmin, and a response that was stored in the same (sub)transaction has it too.
# Comparing these asks for no snapshot: "has it a score?" would be answered by one that is as old as the transaction
# where that is REPEATABLE READ. Scalar subqueries, not joins: the plan is kept by the connection, and must be as good
# for one row as for five hundred.
INSERTED = f"""
BEGIN
    IF has_column_privilege(current_user, TG_RELID, 'lane', 'INSERT') THEN
        IF EXISTS (
            SELECT FROM inserted WHERE question_digest IS NOT NULL AND {IS_OF_ITS_QUESTION.replace("{row}", "inserted")} IS NOT TRUE
        ) THEN
            {REFUSE_FOREIGN_QUESTION}
        END IF;
        RETURN NULL;
    END IF;
    IF EXISTS (
        SELECT FROM inserted WHERE (
            SELECT r.xmin = (
                    SELECT h.xmin FROM {{home}}.scoring_handoffs AS h
                    WHERE h.handoff_id = (SELECT handoff_id FROM inserted LIMIT 1)
                )
                AND r.question_digest IS NOT DISTINCT FROM inserted.question_digest
                AND (inserted.due_at = 'infinity' OR inserted.due_at BETWEEN now() AND statement_timestamp())
            FROM {{home}}.assessment_responses AS r WHERE r.response_id = inserted.response_id
        ) IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'this role may hand off only a response that it stores with the handoff, as it is pinned, due now'
            USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'ck_scoring_handoffs_stored_with_response',
            TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NULL;
END
"""

REDIRECTED = f"""
BEGIN
    IF {IS_OF_ITS_QUESTION.replace("{row}", "NEW")} IS NOT TRUE THEN
        {REFUSE_FOREIGN_QUESTION}
    END IF;
    RETURN NULL;
END
"""


def keep_writers_out() -> None:
    # Publications, claims, submits, then settlements: each finds its first lock taken, and waits before it holds one
    # that is asked for at the end. One that runs already needs nothing more that these locks exclude. Readers go on.
    op.execute(f"SELECT pg_advisory_xact_lock({PUBLISH_LOCK})")
    for table, mode in (
        ("assessment_claims", "EXCLUSIVE"),
        ("assessment_responses", "SHARE ROW EXCLUSIVE"),
        ("assessment_questions", "SHARE ROW EXCLUSIVE"),
        ("scoring_handoffs", "EXCLUSIVE"),
    ):
        op.execute(f"LOCK TABLE {table} IN {mode} MODE")


def upgrade() -> None:
    keep_writers_out()
    op.create_index(
        "ix_assessment_questions_pinned",
        "assessment_questions",
        ["question_digest", "module_slug", "question_id"],
        unique=True,
    )
    # Reads every response, a second for a million. NOT VALID and VALIDATE would help only in two transactions.
    op.create_foreign_key(
        "fk_assessment_responses_pinned",
        "assessment_responses",
        "assessment_questions",
        ["question_digest", "module_slug", "question_id"],
        ["question_digest", "module_slug", "question_id"],
    )
    for name, body in (("scoring_handoffs_inserted", INSERTED), ("scoring_handoffs_redirected", REDIRECTED)):
        op.execute(CREATE_FUNCTION % {"name": name, "body": body.strip()})
    op.execute(
        "CREATE TRIGGER tr_scoring_handoffs_inserted AFTER INSERT ON scoring_handoffs"
        " REFERENCING NEW TABLE AS inserted"
        " FOR EACH STATEMENT EXECUTE FUNCTION scoring_handoffs_inserted()"
    )
    # Leases and renewals, which are most updates, do not name these columns.
    op.execute(
        "CREATE TRIGGER tr_scoring_handoffs_redirected AFTER UPDATE OF question_digest, response_id ON scoring_handoffs"
        " FOR EACH ROW WHEN (NEW.question_digest IS NOT NULL AND"
        " (NEW.question_digest, NEW.response_id) IS DISTINCT FROM (OLD.question_digest, OLD.response_id))"
        " EXECUTE FUNCTION scoring_handoffs_redirected()"
    )
    op.add_column(
        "scoring_workers",
        sa.Column(
            "provider",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="breaker and rate limits, as this worker knows them",
        ),
    )
    # Last, and over in a moment: this keeps readers out as well.
    op.drop_constraint("fk_assessment_responses_question", "assessment_responses", type_="foreignkey")


def downgrade() -> None:
    keep_writers_out()
    op.create_foreign_key(
        "fk_assessment_responses_question",
        "assessment_responses",
        "assessment_questions",
        ["question_digest"],
        ["question_digest"],
    )
    op.drop_column("scoring_workers", "provider")
    # Readers are kept out in the order in which a student's page reads.
    op.drop_constraint("fk_assessment_responses_pinned", "assessment_responses", type_="foreignkey")
    op.drop_index("ix_assessment_questions_pinned", "assessment_questions")
    for name in ("scoring_handoffs_redirected", "scoring_handoffs_inserted"):
        op.execute(f"DROP TRIGGER tr_{name} ON scoring_handoffs")
        op.execute(f"DROP FUNCTION {name}()")
