"""${message}

Rules for a migration here:
- touch only tables named in storage.tables.OWN_TABLES; `users` and everything else belongs to others;
- lock_timeout and statement_timeout are set by env.py: do not raise them, split the migration instead;
- old and new workers run side by side during a deploy: add first, remove in a later release;
- write the downgrade, and run both directions (`pytest tests/storage/test_migrations.py`).

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
