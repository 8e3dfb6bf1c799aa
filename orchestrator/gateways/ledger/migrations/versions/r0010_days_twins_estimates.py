"""What was spent by day, rows that share what an equal one buys, what a batch was expected to cost and whether it goes on
only while its command does, and numbers of batches that are given once."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COPIED = sa.text("copies IS NOT NULL")
SHARES = sa.text("share_key IS NOT NULL")


def upgrade() -> None:
    """Add columns and their indexes; the days of what was bought before are found from its attempts."""
    op.create_table(
        "batch_days", sa.Column("batch_pk", sa.BigInteger(), primary_key=True), sa.Column("day", sa.String(), primary_key=True),
        sa.Column("spent_units", sa.BigInteger(), nullable=False), sa.Column("reserved_units", sa.BigInteger(), nullable=False))
    op.execute(_days(op.get_bind().dialect.name))
    _without_orphans()
    with op.batch_alter_table("batches", recreate="auto" if op.get_bind().dialect.name == "postgresql" else "always",
                              table_kwargs={"sqlite_autoincrement": True}) as batches:
        batches.add_column(sa.Column("known_shared", sa.BigInteger(), nullable=True))
        batches.add_column(sa.Column("estimate_json", sa.String(), nullable=True))
        batches.add_column(sa.Column("attended", sa.Boolean(), nullable=True))
    op.add_column("items", sa.Column("twin_of", sa.BigInteger(), nullable=True))
    op.add_column("items", sa.Column("copies", sa.BigInteger(), nullable=True))
    op.add_column("items", sa.Column("share_key", sa.String(), nullable=True))
    op.create_index("ix_items_copies", "items", ["batch_pk", "state", "copies"], sqlite_where=COPIED, postgresql_where=COPIED)
    op.create_index("uq_items_share_key", "items", ["batch_pk", "share_key"], unique=True, sqlite_where=SHARES,
                    postgresql_where=SHARES)


def _without_orphans() -> None:
    """Two runs that loaded one batch, and both found its file wrong, could leave rows of a batch that is gone. SQLite would give
    its number to the next one."""
    op.execute("DELETE FROM items WHERE batch_pk NOT IN (SELECT pk FROM batches)")
    op.execute("DELETE FROM source_chunks WHERE batch_pk NOT IN (SELECT pk FROM batches)")


def _days(dialect: str) -> sa.Insert:
    attempts = sa.table("attempts", *(sa.column(name) for name in (
        "batch_pk", "created_at", "charge_units", "reserved_units")))
    days = sa.table("batch_days", *(sa.column(name) for name in ("batch_pk", "day", "spent_units", "reserved_units")))
    at = attempts.c.created_at
    day = sa.func.substr(at, 1, 10) if dialect == "sqlite" else sa.func.to_char(sa.func.timezone("UTC", at), "YYYY-MM-DD")
    sums = [sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)
            for column in (attempts.c.charge_units, attempts.c.reserved_units)]
    some = sa.select(attempts.c.batch_pk, day.label("day"), *sums).group_by(attempts.c.batch_pk, sa.text("2"))
    return sa.insert(days).from_select([column.name for column in days.c], some)
