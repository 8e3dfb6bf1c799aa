"""Schedules and their slots."""

import sqlalchemy as sa
from alembic import op

from orchestrator.gateways.ledger.tables import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPEN_SLOT = sa.text("state IN ('due', 'running')")


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "schedules",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("known_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("job", "rule"),
    )
    op.create_table(
        "slots",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("slot_at", UtcTime(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("batch_id", sa.String(), nullable=True),
        sa.Column("claimed_by", sa.String(), nullable=True),
        sa.Column("lease_until", UtcTime(), nullable=True),
        sa.Column("noted_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("job", "slot_at"),
    )
    op.create_index("ix_slots_open", "slots", ["job", "slot_at"], sqlite_where=OPEN_SLOT, postgresql_where=OPEN_SLOT)
