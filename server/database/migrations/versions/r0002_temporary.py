"""Pictures that are kept for a day only.

Frozen once released: a change of ``tables.py`` is a new revision, never an edit here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column and its index; no older job's pictures are temporary."""
    op.add_column("jobs", sa.Column("temporary", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("jobs_by_temporary", "jobs", ["temporary", "state", "created_at", "number"])


def downgrade() -> None:
    """Drops both."""
    op.drop_index("jobs_by_temporary", "jobs")
    op.drop_column("jobs", "temporary")
