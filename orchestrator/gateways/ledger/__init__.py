"""The ledger: all SQL of the program, on SQLite or PostgreSQL."""

from orchestrator.gateways.ledger.ledger import SqlLedger
from orchestrator.gateways.ledger.session import Database
from orchestrator.gateways.ledger.views import CanceledView, ItemView, LatencyView, WaitingView

__all__ = ["CanceledView", "Database", "ItemView", "LatencyView", "SqlLedger", "WaitingView"]
