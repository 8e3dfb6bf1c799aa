"""Why a prediction is an attempt's, and predictions bought beyond need."""

import sqlalchemy as sa
from alembic import op

from orchestrator.gateways.ledger.tables import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

GONE = sa.text("(state = 'absent' OR state = 'lost')")
SURPLUS = sa.text("surplus_at IS NOT NULL")


def upgrade() -> None:
    """Add two columns, and an index for each question about them."""
    op.add_column("attempts", sa.Column("bound_by", sa.String(), nullable=True))
    op.add_column("attempts", sa.Column("surplus_at", UtcTime(), nullable=True))
    op.create_index("ix_attempts_gone", "attempts", ["account", "created_at"], sqlite_where=GONE, postgresql_where=GONE)
    op.create_index("ix_attempts_surplus", "attempts", ["account", "batch_pk"], sqlite_where=SURPLUS, postgresql_where=SURPLUS)
