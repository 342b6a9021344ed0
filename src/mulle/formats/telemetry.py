"""The names and buckets of what the data plane tells Prometheus: one list for server, alert rules and dashboards."""

REQUESTS = "mulle_requests_total"
LATENCY = "mulle_request_duration_seconds"
ROWS = "mulle_rows_total"
IN_FLIGHT = "mulle_requests_in_flight"
CONNECTIONS = "mulle_connections"
ANOMALIES = "mulle_input_anomalies_total"
LOG_BYTES = "mulle_prediction_log_bytes_total"
LOG_FAILURES = "mulle_prediction_log_failures_total"
FEEDBACK = "mulle_feedback_total"
GENERATION = "mulle_deployment_generation"
RELOADS = "mulle_deployment_reloads_total"
RELOAD_OK = "mulle_deployment_last_reload_ok"
MODEL_INFO = "mulle_model_info"
WEIGHT = "mulle_revision_weight"

HELP: dict[str, tuple[str, str]] = {
    REQUESTS: ("counter", "Requests answered, by route, revision and HTTP status."),
    LATENCY: ("histogram", "Seconds from the last byte of a prediction request to its answer."),
    ROWS: ("counter", "Rows predicted and logged."),
    IN_FLIGHT: ("gauge", "Requests being worked on."),
    CONNECTIONS: ("gauge", "Open connections."),
    ANOMALIES: ("counter", "Values served although training never saw the like, by column and kind."),
    LOG_BYTES: ("counter", "Bytes handed to the prediction log."),
    LOG_FAILURES: ("counter", "Predictions refused because they could not be logged."),
    FEEDBACK: ("counter", "Feedback accepted; known says whether this server can place the prediction id."),
    GENERATION: ("gauge", "Generation of the deployment spec being served."),
    RELOADS: ("counter", "Attempts to load a new deployment spec, by outcome."),
    RELOAD_OK: ("gauge", "1 when the newest deployment spec is the one being served, 0 when it was refused."),
    MODEL_INFO: ("gauge", "Always 1; its labels say what is being served."),
    WEIGHT: ("gauge", "Share of requests a revision gets, in per cent."),
}
"""Metric name to (Prometheus type, help text)."""

LATENCY_BUCKETS_S: tuple[float, ...] = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the latency histogram, in seconds."""

PREDICTION_ID_HEADER = "mulle-prediction-id"
REVISION_HEADER = "mulle-revision"
UNIT_HEADER = "mulle-unit"
