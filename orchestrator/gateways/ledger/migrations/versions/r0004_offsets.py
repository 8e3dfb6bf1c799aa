"""The provider's clock against ours, as it was known when an attempt was made."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; of older attempts it is not known."""
    op.add_column("attempts", sa.Column("offset_s", sa.Float(), nullable=True))
