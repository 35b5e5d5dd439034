"""Drafts for students; runs that can be stopped and resumed, and a record of who did what, for operators.

Only new tables: old workers and web apps go on beside it.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "assessment_drafts",
        sa.Column("draft_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("anonymous_token", sa.Text(), nullable=True),
        sa.Column("module_slug", sa.Text(), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.Column("answer_text", sa.Text(), nullable=False),
        sa.Column("submission_key", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("num_nonnulls(user_id, anonymous_token) = 1", name="ck_assessment_drafts_owner"),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_assessment_drafts_user"),
        sa.PrimaryKeyConstraint("draft_id"),
    )
    for name, owner in (("user", "user_id"), ("token", "anonymous_token")):
        op.create_index(
            f"ix_assessment_drafts_{name}",
            "assessment_drafts",
            [owner, "module_slug", "question_id"],
            unique=True,
            postgresql_where=sa.text(f"{owner} IS NOT NULL"),
        )
    op.create_index("ix_assessment_drafts_saved_at", "assessment_drafts", ["saved_at"], unique=False)
    op.create_table(
        "scoring_runs",
        sa.Column("run_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "filters",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="which responses; never answer text",
        ),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_response_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "until_response_id",
            sa.BigInteger(),
            nullable=False,
            comment="what came later is not part of it",
        ),
        sa.Column(
            "expected",
            sa.BigInteger(),
            nullable=False,
            comment="how many responses it set out to change",
        ),
        sa.Column("changed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('rescore', 'backfill', 'purge')", name="ck_scoring_runs_kind"),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index(
        "ix_scoring_runs_unfinished",
        "scoring_runs",
        ["run_id"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "scoring_actions",
        sa.Column("action_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("acted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "actor", sa.Text(), nullable=False, comment="who acted, as the command or the console knows it"
        ),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("affected", sa.BigInteger(), nullable=False, comment="how many answers it changed"),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "action IN ('retry', 'dismiss', 'rescore', 'backfill', 'purge', 'erase', 'export')",
            name="ck_scoring_actions_action",
        ),
        sa.PrimaryKeyConstraint("action_id"),
    )


def downgrade() -> None:
    for table in ("scoring_actions", "scoring_runs", "assessment_drafts"):
        op.drop_table(table)
