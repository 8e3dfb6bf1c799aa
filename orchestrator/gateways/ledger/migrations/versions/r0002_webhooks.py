"""Webhooks taken in, where the end of an attempt was learned, and the processes at work."""

import sqlalchemy as sa
from alembic import op

from orchestrator.gateways.ledger.tables import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEPT = sa.text("payload_json IS NOT NULL")


def upgrade() -> None:
    """Add two tables and a column."""
    op.add_column("attempts", sa.Column("ended_via", sa.String(), nullable=True))
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("prediction_id", sa.String(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.Column("payload_json", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_deliveries_received_at", "deliveries", ["received_at"])
    op.create_index("ix_deliveries_kept", "deliveries", ["attempt_id"], sqlite_where=KEPT, postgresql_where=KEPT)
    op.create_table(
        "roles",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("seen_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
