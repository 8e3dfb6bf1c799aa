"""Partial indexes whose condition costs nothing to ask. No query finds other rows than before."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ALIVE = sa.text("(state = 'open' OR state = 'unsure' OR state = 'running')")
COMPLETED = sa.text("completed_at IS NOT NULL")
UNPRICED = sa.text("charge_units IS NULL AND (state = 'succeeded' OR state = 'failed' OR state = 'canceled' OR state = 'aborted' "
                   "OR state = 'lost')")
INDEXES = (
    ("ix_attempts_alive", ["account", "state", "created_at"], ALIVE),
    ("ix_attempts_completed", ["account", "completed_at"], COMPLETED),
    ("ix_attempts_unpriced", ["batch_pk", "item_pk"], UNPRICED),
)


def upgrade() -> None:
    """Make three indexes anew."""
    for name, columns, where in INDEXES:
        op.drop_index(name, "attempts")
        op.create_index(name, "attempts", columns, sqlite_where=where, postgresql_where=where)
