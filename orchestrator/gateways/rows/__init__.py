"""Files of rows in, result tables out. Nothing here knows a model, a price or a state."""

from orchestrator.gateways.rows.durable import ManifestWriter, write_json
from orchestrator.gateways.rows.reading import columns_of, read
from orchestrator.gateways.rows.results import RESULT_COLUMNS, ResultsWriter
from orchestrator.gateways.rows.schema import SourceSchema
from orchestrator.gateways.rows.snapshot import open_blob
from orchestrator.gateways.rows.sources import fingerprint, resolve

__all__ = [
    "RESULT_COLUMNS",
    "ManifestWriter",
    "ResultsWriter",
    "SourceSchema",
    "columns_of",
    "fingerprint",
    "open_blob",
    "read",
    "resolve",
    "write_json",
]
