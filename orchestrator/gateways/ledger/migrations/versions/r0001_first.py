"""The first tables."""

import sqlalchemy as sa
from alembic import op

from orchestrator.gateways.ledger.tables import UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PENDING = sa.text("state = 'pending'")
COLLECTING = sa.text("state = 'collecting'")
ALIVE = sa.text("state IN ('open', 'unsure', 'running')")
UNPRICED = sa.text("charge_units IS NULL AND state IN ('succeeded', 'failed', 'canceled', 'aborted', 'lost')")


def upgrade() -> None:
    """Make everything."""
    _batches()
    _items()
    _attempts()
    _outputs()
    _small_tables()


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("pk", BIG_KEY, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("run_key", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("finished_at", UtcTime(), nullable=True),
        sa.Column("target_endpoint", sa.String(), nullable=False),
        sa.Column("target_name", sa.String(), nullable=False),
        sa.Column("target_version", sa.String(), nullable=True),
        sa.Column("job_json", sa.String(), nullable=False),
        sa.Column("openapi_json", sa.String(), nullable=False),
        sa.Column("source_json", sa.String(), nullable=False),
        sa.Column("price_json", sa.String(), nullable=False),
        sa.Column("source_schema_json", sa.String(), nullable=True),
        sa.Column("output_to", sa.String(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("start_limit", sa.Integer(), nullable=True),
        sa.Column("started", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=True),
        sa.Column("cap_units", sa.BigInteger(), nullable=True),
        sa.Column("spent_units", sa.BigInteger(), nullable=False),
        sa.Column("reserved_units", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("run_key"),
    )


def _items() -> None:
    op.create_table(
        "items",
        sa.Column("pk", BIG_KEY, nullable=False),
        sa.Column("batch_pk", sa.BigInteger(), nullable=False),
        sa.Column("idx", sa.BigInteger(), nullable=False),
        sa.Column("row_id", sa.String(), nullable=False),
        sa.Column("input_json", sa.String(), nullable=True),
        sa.Column("input_hash", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=True),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("error_class", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("batch_pk", "idx", name="uq_items_batch_pk_idx"),
    )
    op.create_index("ix_items_state", "items", ["batch_pk", "state"])
    op.create_index("ix_items_pending", "items", ["batch_pk", "due_at", "idx"], sqlite_where=PENDING,
                    postgresql_where=PENDING)
    op.create_index("ix_items_collecting", "items", ["batch_pk", "completed_at", "due_at"], sqlite_where=COLLECTING,
                    postgresql_where=COLLECTING)


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("item_pk", sa.BigInteger(), nullable=False),
        sa.Column("batch_pk", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("lease_until", UtcTime(), nullable=False),
        sa.Column("target_key", sa.String(), nullable=False),
        sa.Column("input_hash", sa.String(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("post_by_at", UtcTime(), nullable=False),
        sa.Column("sent_until_at", UtcTime(), nullable=True),
        sa.Column("answered_at", UtcTime(), nullable=True),
        sa.Column("next_check_at", UtcTime(), nullable=True),
        sa.Column("prediction_id", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("provider_created_at", UtcTime(), nullable=True),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.Column("output_json", sa.String(), nullable=True),
        sa.Column("metrics_json", sa.String(), nullable=True),
        sa.Column("logs_tail", sa.String(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("error_class", sa.String(), nullable=True),
        sa.Column("reserved_units", sa.BigInteger(), nullable=False),
        sa.Column("charge_units", sa.BigInteger(), nullable=True),
        sa.Column("charge_basis", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("prediction_id"),
    )
    op.create_index("ix_attempts_item", "attempts", ["item_pk"])
    op.create_index("ix_attempts_alive", "attempts", ["account", "state", "created_at"], sqlite_where=ALIVE,
                    postgresql_where=ALIVE)
    op.create_index("ix_attempts_answered", "attempts", ["batch_pk", "answered_at"])
    op.create_index("ix_attempts_completed", "attempts", ["account", "completed_at"])
    op.create_index("ix_attempts_unpriced", "attempts", ["batch_pk", "item_pk"], sqlite_where=UNPRICED,
                    postgresql_where=UNPRICED)


def _outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("item_pk", sa.BigInteger(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("batch_pk", sa.BigInteger(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("stem", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("media_type", sa.String(), nullable=True),
        sa.Column("source_url", sa.String(), nullable=True),
        sa.Column("stored_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("item_pk", "idx"),
        sa.UniqueConstraint("batch_pk", "name_key", name="uq_outputs_batch_pk_name_key"),
    )


def _small_tables() -> None:
    op.create_table(
        "source_chunks",
        sa.Column("batch_pk", sa.BigInteger(), nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch_pk", "first_index"),
    )
    op.create_table(
        "work",
        sa.Column("station", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("lane", sa.Integer(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("sent_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("station", "key", "lane"),
    )
    op.create_index("ix_work_due_at", "work", ["due_at"])
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("offset_s", sa.Float(), nullable=False),
        sa.Column("noted_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
