"""The Celery tasks, at module top level, so that a spawned child can import what the message names."""
