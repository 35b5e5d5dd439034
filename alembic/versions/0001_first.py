"""Responses, questions, handoffs, scores, claims, workers and watermarks.

`users` belongs to the web app. Where it exists we only refer to it; on a machine that has none (a demo, a
test, a standalone deployment) the smallest one that can be referred to is made. The downgrade never drops it.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A script (`--sql`) cannot look: there the statement itself asks.
    if op.get_context().as_sql or not sa.inspect(op.get_bind()).has_table("users"):
        op.create_table(
            "users",
            sa.Column("user_id", sa.Integer(), sa.Identity(always=False), nullable=False),
            sa.PrimaryKeyConstraint("user_id"),
            if_not_exists=True,
        )
    op.create_table(
        "assessment_questions",
        sa.Column(
            "question_digest", sa.Text(), nullable=False, comment="SHA-256 of the content, hexadecimal"
        ),
        sa.Column("module_slug", sa.Text(), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.Column("question_text", sa.Text(), nullable=False),
        sa.Column("rubric", sa.Text(), nullable=False),
        sa.Column("scale_min", sa.Double(), nullable=False),
        sa.Column("scale_max", sa.Double(), nullable=False),
        sa.Column(
            "dimensions",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("reference_answer", sa.Text(), nullable=True),
        sa.Column("learning_outcome_name", sa.Text(), nullable=True),
        sa.Column("publication", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("jsonb_typeof(dimensions) = 'array'", name="ck_assessment_questions_dimensions"),
        sa.CheckConstraint("scale_min < scale_max", name="ck_assessment_questions_scale"),
        sa.PrimaryKeyConstraint("question_digest"),
    )
    op.create_index(
        "ix_assessment_questions_current",
        "assessment_questions",
        ["module_slug", "question_id", sa.literal_column("publication DESC")],
        unique=True,
    )
    op.create_table(
        "assessment_responses",
        sa.Column("response_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("anonymous_token", sa.Text(), nullable=True),
        sa.Column("module_slug", sa.Text(), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.Column("learning_outcome_id", sa.Text(), nullable=True),
        sa.Column("content_id", sa.Text(), nullable=True),
        sa.Column("answer_text", sa.Text(), nullable=False),
        sa.Column("answer_metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("submission_key", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "question_digest",
            sa.Text(),
            nullable=True,
            comment="what the student was asked, if it was published then",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("answer_text ~ '\\S'", name="ck_assessment_responses_answer"),
        sa.CheckConstraint(
            "num_nonnulls(user_id, anonymous_token) = 1", name="ck_assessment_responses_owner"
        ),
        sa.ForeignKeyConstraint(
            ["question_digest"],
            ["assessment_questions.question_digest"],
            name="fk_assessment_responses_question",
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_assessment_responses_user"),
        sa.PrimaryKeyConstraint("response_id"),
        sa.UniqueConstraint("submission_key", name="uq_assessment_responses_submission_key"),
    )
    op.create_index(
        "ix_assessment_responses_token",
        "assessment_responses",
        ["anonymous_token", sa.literal_column("response_id DESC")],
        unique=False,
        postgresql_where=sa.text("anonymous_token IS NOT NULL"),
    )
    op.create_index(
        "ix_assessment_responses_user",
        "assessment_responses",
        ["user_id", sa.literal_column("response_id DESC")],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_index(
        "ix_assessment_responses_user_question",
        "assessment_responses",
        ["user_id", "question_id", "module_slug", sa.literal_column("response_id DESC")],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "scoring_handoffs",
        sa.Column("handoff_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("response_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "question_digest",
            sa.Text(),
            nullable=True,
            comment="what to score against; null while the question is not published",
        ),
        sa.Column("lane", sa.Text(), server_default=sa.text("'live'"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'open'"), nullable=False),
        sa.Column(
            "due_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="waiting: from when; leased: until when; dead or unpublished: infinity",
        ),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("postponements", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("suspicions", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_losses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trace_context", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("lane IN ('live', 'bulk')", name="ck_scoring_handoffs_lane"),
        sa.CheckConstraint(
            "question_digest IS NOT NULL OR (due_at = 'infinity' AND lease_token IS NULL)",
            name="ck_scoring_handoffs_unpublished",
        ),
        sa.CheckConstraint(
            "state <> 'open' OR question_digest IS NULL OR due_at < 'infinity'",
            name="ck_scoring_handoffs_due",
        ),
        sa.CheckConstraint(
            "state = 'open' OR (due_at = 'infinity' AND lease_token IS NULL AND last_error IS NOT NULL)",
            name="ck_scoring_handoffs_ended",
        ),
        sa.CheckConstraint("state IN ('open', 'dead', 'dismissed')", name="ck_scoring_handoffs_state"),
        sa.ForeignKeyConstraint(
            ["question_digest"], ["assessment_questions.question_digest"], name="fk_scoring_handoffs_question"
        ),
        sa.ForeignKeyConstraint(
            ["response_id"],
            ["assessment_responses.response_id"],
            name="fk_scoring_handoffs_response",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("handoff_id"),
        sa.UniqueConstraint("response_id", name="uq_scoring_handoffs_response"),
        postgresql_with={
            "fillfactor": "70",
            "autovacuum_vacuum_scale_factor": "0.02",
            "autovacuum_vacuum_threshold": "1000",
        },
    )
    op.create_index(
        "ix_scoring_handoffs_due",
        "scoring_handoffs",
        ["lane", "due_at", "handoff_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open' AND question_digest IS NOT NULL"),
    )
    op.create_index(
        "ix_scoring_handoffs_ended",
        "scoring_handoffs",
        ["state", "handoff_id"],
        unique=False,
        postgresql_where=sa.text("state <> 'open'"),
    )
    op.create_index(
        "ix_scoring_handoffs_suspect",
        "scoring_handoffs",
        ["due_at", "handoff_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open' AND lease_losses >= 2"),
    )
    op.create_index(
        "ix_scoring_handoffs_troubled",
        "scoring_handoffs",
        ["last_error_at"],
        unique=False,
        postgresql_where=sa.text("state = 'open' AND last_error IS NOT NULL"),
    )
    op.create_index(
        "ix_scoring_handoffs_unpublished",
        "scoring_handoffs",
        ["handoff_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open' AND question_digest IS NULL"),
    )
    op.create_table(
        "assessment_scores",
        sa.Column("score_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("response_id", sa.BigInteger(), nullable=False),
        sa.Column("handoff_id", sa.BigInteger(), nullable=False),
        sa.Column("question_digest", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("prompt_version", sa.Text(), nullable=False),
        sa.Column("score_data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "picked_up_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="start of the lease under which it was scored",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("jsonb_typeof(score_data) = 'object'", name="ck_assessment_scores_data"),
        sa.ForeignKeyConstraint(
            ["question_digest"],
            ["assessment_questions.question_digest"],
            name="fk_assessment_scores_question",
        ),
        sa.ForeignKeyConstraint(
            ["response_id"], ["assessment_responses.response_id"], name="fk_assessment_scores_response"
        ),
        sa.PrimaryKeyConstraint("score_id"),
        sa.UniqueConstraint("handoff_id", name="uq_assessment_scores_handoff"),
    )
    op.create_index("ix_assessment_scores_created_at", "assessment_scores", ["created_at"], unique=False)
    op.create_index(
        "ix_assessment_scores_response",
        "assessment_scores",
        ["response_id", sa.literal_column("score_id DESC")],
        unique=False,
    )
    op.create_table(
        "assessment_claims",
        sa.Column("claim_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("anonymous_token", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column(
            "requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("moved", sa.Integer(), nullable=True),
        sa.Column("skipped", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "num_nulls(applied_at, moved, skipped) IN (0, 3)", name="ck_assessment_claims_applied"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_assessment_claims_user"),
        sa.PrimaryKeyConstraint("claim_id"),
    )
    op.create_index(
        "ix_assessment_claims_requested",
        "assessment_claims",
        ["claim_id"],
        unique=False,
        postgresql_where=sa.text("applied_at IS NULL"),
    )
    op.create_index(
        "ix_assessment_claims_token", "assessment_claims", ["anonymous_token", "user_id"], unique=False
    )
    op.create_index("ix_assessment_claims_user", "assessment_claims", ["user_id"], unique=False)
    op.create_table(
        "scoring_workers",
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("free_slots", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True, comment="why it takes less than it could, if it does"),
        sa.PrimaryKeyConstraint("worker_id"),
    )
    op.create_table(
        "scoring_watermarks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("verified_response_id", sa.BigInteger(), nullable=False),
        sa.Column("pending_response_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "pending_xid",
            sa.BigInteger(),
            nullable=False,
            comment="transactions below this were over or running then",
        ),
        sa.Column("pending_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    # What refers goes before what is referred to; indexes go with their tables.
    for table in (
        "scoring_watermarks",
        "scoring_workers",
        "assessment_claims",
        "assessment_scores",
        "scoring_handoffs",
        "assessment_responses",
        "assessment_questions",
    ):
        op.drop_table(table)
