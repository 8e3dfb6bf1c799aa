"""The Celery worker: one short task per station, all on one long-lived event loop."""
