"""Event log, state, model versions, lineage, and the MLflow projection."""
