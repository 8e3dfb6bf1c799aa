"""How many rows had failed when a person last said that a batch is to go on."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns; nothing counts as none."""
    op.add_column("batches", sa.Column("known_failed", sa.BigInteger(), nullable=True))
    op.add_column("batches", sa.Column("known_refused", sa.BigInteger(), nullable=True))
