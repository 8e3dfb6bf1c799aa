"""What each charge was reckoned from."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COLUMNS = ("charge_unit", "charge_quantity", "charge_quantity_out", "charge_price", "charge_price_out", "charge_price_id")


def upgrade() -> None:
    """Add the columns; of what was charged before nobody wrote it down, and it stays null."""
    for name in COLUMNS:
        op.add_column("attempts", sa.Column(name, sa.String(), nullable=True))
