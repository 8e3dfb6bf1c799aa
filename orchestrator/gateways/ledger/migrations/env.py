"""What Alembic runs around the revisions: always online, always on a connection that is already open."""

from alembic import context

from orchestrator.gateways.ledger.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite cannot alter columns in place
    transaction_per_migration=False,
)
context.run_migrations()
