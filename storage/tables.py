"""The tables, as SQLAlchemy Core. This is the only module that migrations import.

Every constraint has a name: errors are translated, and migrations are compared, by it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

# Belongs to the web app. It stands here so that foreign keys can name it; migrations never change it.
users = Table("users", metadata, Column("user_id", Integer, primary_key=True), info={"foreign": True})

questions = Table(
    "assessment_questions",
    metadata,
    Column("question_digest", Text, primary_key=True, comment="SHA-256 of the content, hexadecimal"),
    Column("module_slug", Text, nullable=False),
    Column("question_id", Text, nullable=False),
    Column("question_text", Text, nullable=False),
    Column("rubric", Text, nullable=False),
    Column("scale_min", Double, nullable=False),
    Column("scale_max", Double, nullable=False),
    Column("dimensions", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("reference_answer", Text),
    Column("learning_outcome_name", Text),
    # Grows with every publication: content that is published again becomes the current one again.
    Column("publication", BigInteger, Identity(always=True), nullable=False),
    Column("published_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("scale_min < scale_max", name="ck_assessment_questions_scale"),
    CheckConstraint("jsonb_typeof(dimensions) = 'array'", name="ck_assessment_questions_dimensions"),
    Index(
        "ix_assessment_questions_current",
        "module_slug",
        "question_id",
        text("publication DESC"),
        unique=True,
    ),
    # What a response is pinned to is referred to by all three, so that it is content of its own question.
    Index("ix_assessment_questions_pinned", "question_digest", "module_slug", "question_id", unique=True),
)

responses = Table(
    "assessment_responses",
    metadata,
    Column("response_id", BigInteger, Identity(always=True), primary_key=True),
    # No ON DELETE: whoever deletes a user must decide about his answers first.
    Column("user_id", Integer, ForeignKey("users.user_id", name="fk_assessment_responses_user")),
    Column("anonymous_token", Text),
    Column("module_slug", Text, nullable=False),
    Column("question_id", Text, nullable=False),
    Column("learning_outcome_id", Text),
    Column("content_id", Text),
    Column("answer_text", Text, nullable=False),
    Column("answer_metadata", JSONB),
    Column("submission_key", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    Column(
        "question_digest",
        Text,
        comment="what the student was asked, if it was published then",
    ),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Of its own question, or of none while that is not published.
    ForeignKeyConstraint(
        ["question_digest", "module_slug", "question_id"],
        [
            "assessment_questions.question_digest",
            "assessment_questions.module_slug",
            "assessment_questions.question_id",
        ],
        name="fk_assessment_responses_pinned",
    ),
    CheckConstraint("num_nonnulls(user_id, anonymous_token) = 1", name="ck_assessment_responses_owner"),
    CheckConstraint("answer_text ~ '\\S'", name="ck_assessment_responses_answer"),
    UniqueConstraint("submission_key", name="uq_assessment_responses_submission_key"),
    Index(
        "ix_assessment_responses_user",
        "user_id",
        text("response_id DESC"),
        postgresql_where=text("user_id IS NOT NULL"),
    ),
    Index(
        "ix_assessment_responses_user_question",
        "user_id",
        "question_id",
        "module_slug",
        text("response_id DESC"),
        postgresql_where=text("user_id IS NOT NULL"),
    ),
    # Anonymous students have few answers each: one index serves the list, the question and the claim.
    Index(
        "ix_assessment_responses_token",
        "anonymous_token",
        text("response_id DESC"),
        postgresql_where=text("anonymous_token IS NOT NULL"),
    ),
)

handoffs = Table(
    "scoring_handoffs",
    metadata,
    Column("handoff_id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "response_id",
        BigInteger,
        ForeignKey(
            "assessment_responses.response_id", name="fk_scoring_handoffs_response", ondelete="CASCADE"
        ),
        nullable=False,
    ),
    Column(
        "question_digest",
        Text,
        ForeignKey("assessment_questions.question_digest", name="fk_scoring_handoffs_question"),
        comment="what to score against; null while the question is not published",
    ),
    Column("lane", Text, nullable=False, server_default=text("'live'")),
    Column("state", Text, nullable=False, server_default=text("'open'")),
    Column(
        "due_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="waiting: from when; leased: until when; dead or unpublished: infinity",
    ),
    Column("lease_token", Uuid),
    Column("leased_at", DateTime(timezone=True)),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("postponements", Integer, nullable=False, server_default=text("0")),
    Column("suspicions", SmallInteger, nullable=False, server_default=text("0")),
    Column("lease_losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("last_error_at", DateTime(timezone=True)),
    Column("trace_context", JSONB),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("response_id", name="uq_scoring_handoffs_response"),
    CheckConstraint("lane IN ('live', 'bulk')", name="ck_scoring_handoffs_lane"),
    CheckConstraint("state IN ('open', 'dead', 'dismissed')", name="ck_scoring_handoffs_state"),
    CheckConstraint(
        "state = 'open' OR (due_at = 'infinity' AND lease_token IS NULL AND last_error IS NOT NULL)",
        name="ck_scoring_handoffs_ended",
    ),
    CheckConstraint(
        "question_digest IS NOT NULL OR (due_at = 'infinity' AND lease_token IS NULL)",
        name="ck_scoring_handoffs_unpublished",
    ),
    CheckConstraint(
        "state <> 'open' OR question_digest IS NULL OR due_at < 'infinity'", name="ck_scoring_handoffs_due"
    ),
    Index(
        "ix_scoring_handoffs_due",
        "lane",
        "due_at",
        "handoff_id",
        postgresql_where=text("state = 'open' AND question_digest IS NOT NULL"),
    ),
    # These are empty on a good day, and read by every sweep, or by a person who asks what is wrong.
    Index(
        "ix_scoring_handoffs_unpublished",
        "handoff_id",
        postgresql_where=text("state = 'open' AND question_digest IS NULL"),
    ),
    Index("ix_scoring_handoffs_ended", "state", "handoff_id", postgresql_where=text("state <> 'open'")),
    # Those that the next loss of a lease makes suspect, see storage.leases. Without it, every sweep would read
    # the whole backlog to learn that there are none.
    Index(
        "ix_scoring_handoffs_suspect",
        "due_at",
        "handoff_id",
        postgresql_where=text("state = 'open' AND lease_losses >= 2"),
    ),
    # Why answers wait, the latest first.
    Index(
        "ix_scoring_handoffs_troubled",
        "last_error_at",
        postgresql_where=text("state = 'open' AND last_error IS NOT NULL"),
    ),
    # Rows are updated on every lease and renewal and live for seconds: leave room on their page, and
    # vacuum before the dead ones outnumber the living by thousands.
    postgresql_with={
        "fillfactor": "70",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "1000",
    },
)

scores = Table(
    "assessment_scores",
    metadata,
    Column("score_id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "response_id",
        BigInteger,
        ForeignKey("assessment_responses.response_id", name="fk_assessment_scores_response"),
        nullable=False,
    ),
    # No foreign key: the handoff is deleted by the transaction that inserts this row.
    Column("handoff_id", BigInteger, nullable=False),
    Column(
        "question_digest",
        Text,
        ForeignKey("assessment_questions.question_digest", name="fk_assessment_scores_question"),
        nullable=False,
    ),
    Column("model_id", Text, nullable=False),
    Column("prompt_version", Text, nullable=False),
    Column("score_data", JSONB, nullable=False),
    Column("picked_up_at", DateTime(timezone=True), comment="start of the lease under which it was scored"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("handoff_id", name="uq_assessment_scores_handoff"),
    CheckConstraint("jsonb_typeof(score_data) = 'object'", name="ck_assessment_scores_data"),
    Index("ix_assessment_scores_response", "response_id", text("score_id DESC")),
    Index("ix_assessment_scores_created_at", "created_at"),
)

claims = Table(
    "assessment_claims",
    metadata,
    Column("claim_id", BigInteger, Identity(always=True), primary_key=True),
    Column("anonymous_token", Text, nullable=False),
    Column(
        "user_id",
        Integer,
        ForeignKey("users.user_id", name="fk_assessment_claims_user"),
        nullable=False,
    ),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("applied_at", DateTime(timezone=True)),
    Column("moved", Integer),
    Column("skipped", Integer),
    CheckConstraint("num_nulls(applied_at, moved, skipped) IN (0, 3)", name="ck_assessment_claims_applied"),
    Index("ix_assessment_claims_requested", "claim_id", postgresql_where=text("applied_at IS NULL")),
    # A retried submit asks whether its token has become this user; deleting a user asks for his claims.
    Index("ix_assessment_claims_token", "anonymous_token", "user_id"),
    Index("ix_assessment_claims_user", "user_id"),
)

drafts = Table(
    "assessment_drafts",
    metadata,
    Column("draft_id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Integer, ForeignKey("users.user_id", name="fk_assessment_drafts_user")),
    Column("anonymous_token", Text),
    Column("module_slug", Text, nullable=False),
    Column("question_id", Text, nullable=False),
    Column("answer_text", Text, nullable=False),
    # Under which the draft will be submitted: a draft whose key has a response is spent, and is not shown again.
    Column("submission_key", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("saved_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("num_nonnulls(user_id, anonymous_token) = 1", name="ck_assessment_drafts_owner"),
    # One draft of each student for each question; whoever starts anew replaces it.
    Index(
        "ix_assessment_drafts_user",
        "user_id",
        "module_slug",
        "question_id",
        unique=True,
        postgresql_where=text("user_id IS NOT NULL"),
    ),
    Index(
        "ix_assessment_drafts_token",
        "anonymous_token",
        "module_slug",
        "question_id",
        unique=True,
        postgresql_where=text("anonymous_token IS NOT NULL"),
    ),
    Index("ix_assessment_drafts_saved_at", "saved_at"),
)

workers = Table(
    "scoring_workers",
    metadata,
    Column("worker_id", Uuid, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("slots", Integer, nullable=False),
    Column("free_slots", Integer, nullable=False),
    Column("note", Text, comment="why it takes less than it could, if it does"),
    Column("provider", JSONB, comment="breaker and rate limits, as this worker knows them"),
)

watermarks = Table(
    "scoring_watermarks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("verified_response_id", BigInteger, nullable=False),
    Column("pending_response_id", BigInteger, nullable=False),
    Column(
        "pending_xid", BigInteger, nullable=False, comment="transactions below this were over or running then"
    ),
    Column("pending_at", DateTime(timezone=True), nullable=False),
)

runs = Table(
    "scoring_runs",
    metadata,
    Column("run_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("filters", JSONB, nullable=False, comment="which responses; never answer text"),
    Column("started_by", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # The cursor moves in the transaction that does the work, so that a run goes on exactly where it was stopped.
    Column("last_response_id", BigInteger, nullable=False, server_default=text("0")),
    Column("until_response_id", BigInteger, nullable=False, comment="what came later is not part of it"),
    Column("expected", BigInteger, nullable=False, comment="how many responses it set out to change"),
    Column("changed", BigInteger, nullable=False, server_default=text("0")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint("kind IN ('rescore', 'backfill', 'purge')", name="ck_scoring_runs_kind"),
    Index("ix_scoring_runs_unfinished", "run_id", postgresql_where=text("finished_at IS NULL")),
)

actions = Table(
    "scoring_actions",
    metadata,
    Column("action_id", BigInteger, Identity(always=True), primary_key=True),
    Column("acted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False, comment="who acted, as the command or the console knows it"),
    Column("action", Text, nullable=False),
    Column("affected", BigInteger, nullable=False, comment="how many answers it changed"),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    CheckConstraint(
        "action IN ('retry', 'dismiss', 'rescore', 'backfill', 'purge', 'erase', 'export')",
        name="ck_scoring_actions_action",
    ),
)

OWN_TABLES = frozenset(table.name for table in metadata.sorted_tables if not table.info.get("foreign"))
VERSION_TABLE = "scoring_alembic_version"
