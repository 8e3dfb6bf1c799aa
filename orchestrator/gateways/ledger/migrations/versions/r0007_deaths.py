"""How often in a row whoever held an item died."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; nothing counts as none."""
    op.add_column("items", sa.Column("deaths", sa.Integer(), nullable=True))
