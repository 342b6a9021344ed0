"""What the data plane tells Prometheus: names, labels, buckets and how workers' values merge; one list for server, alerts and dashboards.

Every label is bounded by construction: routes come from `ROUTES` (anything else is `other`), classes from the manifest (the
first `MAX_CLASSES`, then `other`), reasons and outcomes from the code. What remains (deployments, revisions, keys) is the
operator's, and cut at `MAX_SERIES` per metric and worker.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

MetricKind: TypeAlias = Literal["counter", "gauge", "histogram"]
MergeRule: TypeAlias = Literal["sum", "max", "min", "worker"]

REQUESTS = "mulle_requests_total"
LATENCY = "mulle_request_duration_seconds"
QUEUE_WAIT = "mulle_queue_wait_seconds"
BATCH_ROWS = "mulle_batch_rows"
INFERENCE = "mulle_inference_duration_seconds"
ROWS = "mulle_rows_total"
PREDICTIONS = "mulle_predictions_total"
IN_FLIGHT = "mulle_requests_in_flight"
CONNECTIONS = "mulle_connections"
CONNECTIONS_ACCEPTED = "mulle_connections_accepted_total"
REQUEST_BYTES = "mulle_request_bytes_total"
RESPONSE_BYTES = "mulle_response_bytes_total"
REJECTED = "mulle_requests_rejected_total"
EXPIRED = "mulle_requests_expired_total"
CANCELLED = "mulle_requests_cancelled_total"
RATE_LIMITED = "mulle_requests_rate_limited_total"
AUTH_FAILURES = "mulle_auth_failures_total"
ANOMALIES = "mulle_input_anomalies_total"
LOG_BYTES = "mulle_prediction_log_bytes_total"
LOG_FAILURES = "mulle_prediction_log_failures_total"
LOG_DROPPED = "mulle_prediction_log_dropped_rows_total"
LOG_BACKLOG = "mulle_prediction_log_backlog_bytes"
LOG_SHIPPED = "mulle_prediction_log_segments_shipped_total"
LOG_SHIP_FAILURES = "mulle_prediction_log_ship_failures_total"
FEEDBACK = "mulle_feedback_total"
GENERATION = "mulle_deployment_generation"
RELOADS = "mulle_deployment_reloads_total"
RELOAD_OK = "mulle_deployment_last_reload_ok"
MODEL_INFO = "mulle_model_info"
WEIGHT = "mulle_revision_weight"
SPANS_EXPORTED = "mulle_spans_exported_total"
SPANS_DROPPED = "mulle_spans_dropped_total"
ACCESS_DROPPED = "mulle_access_log_dropped_lines_total"
WORKERS = "mulle_workers"
WORKER_RESTARTS = "mulle_worker_restarts_total"
SERIES_REFUSED = "mulle_metrics_series_refused_total"
FILES_IGNORED = "mulle_metrics_files_ignored"
BUILD_INFO = "mulle_build_info"
PROCESS_CPU = "process_cpu_seconds_total"
PROCESS_MEMORY = "process_resident_memory_bytes"
PROCESS_START = "process_start_time_seconds"
PROCESS_FDS = "process_open_fds"
PROCESS_MAX_FDS = "process_max_fds"

LATENCY_BUCKETS_S: tuple[float, ...] = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the latency histogram, in seconds."""

WORK_BUCKETS_S: tuple[float, ...] = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    1.0,
    5.0,
)
"""Upper bounds for a wait in the queue and for one run of a graph, in seconds: a small model takes 20 µs, a large one a second."""

BATCH_BUCKETS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Upper bounds of the batch size, in rows."""

MAX_CLASSES = 50
"""Classes with a series of their own; the rest is counted as `other`."""

MAX_SERIES = 2_000
"""Series of one metric in one worker; what would be more is counted in a series whose labels all say `other`."""

MAX_LABEL_CHARS = 128
"""Characters of a label's value; longer ones are cut and end in a digest of the whole."""

OTHER = "other"

ROUTES: frozenset[str] = frozenset(
    {
        "/",
        "/docs",
        "/feedback",
        "/health",
        "/invocations",
        "/metrics",
        "/openapi.json",
        "/ping",
        "/predict",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/{model}",
        "/v2/models/{model}/infer",
        "/v2/models/{model}/ready",
        "/version",
        "grpc/ModelInfer",
        "grpc/ModelMetadata",
        "grpc/ModelReady",
        "grpc/ServerLive",
        "grpc/ServerMetadata",
        "grpc/ServerReady",
    }
)
"""What the label `route` may say besides `other`: paths with their variables named, and methods of gRPC."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: As Prometheus knows it.
        kind: Its Prometheus type.
        help: One sentence.
        labels: Names of its labels, in the order they are written.
        merge: How the values of several workers become one: their sum, the largest, the smallest, or one series per worker
            (a label `worker` is added). Counters and histograms keep what dead workers counted; gauges of the dead are left out.
        buckets: Upper bounds of a histogram, ascending, without infinity.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    merge: MergeRule = "sum"
    buckets: tuple[float, ...] = ()

    @property
    def n_cells(self) -> int:
        """Numbers kept per series: one, or for a histogram the sum, one count per bucket and one beyond the last."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


_D = ("deployment",)
_DR = ("deployment", "revision")

METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(REQUESTS, "counter", "Requests answered, by route, revision and HTTP status.", (*_D, "route", "revision", "status")),
        MetricSpec(
            LATENCY, "histogram", "Seconds from the last byte of a prediction request to its answer.", _DR, "sum", LATENCY_BUCKETS_S
        ),
        MetricSpec(QUEUE_WAIT, "histogram", "Seconds a prediction request waited for its batch.", _DR, "sum", WORK_BUCKETS_S),
        MetricSpec(BATCH_ROWS, "histogram", "Rows of one run of the graph.", _DR, "sum", BATCH_BUCKETS),
        MetricSpec(INFERENCE, "histogram", "Seconds one run of the graph took.", _DR, "sum", WORK_BUCKETS_S),
        MetricSpec(ROWS, "counter", "Rows predicted and logged.", _DR),
        MetricSpec(PREDICTIONS, "counter", "Rows by predicted class.", (*_DR, "class")),
        MetricSpec(IN_FLIGHT, "gauge", "Requests being worked on."),
        MetricSpec(CONNECTIONS, "gauge", "Open connections."),
        MetricSpec(CONNECTIONS_ACCEPTED, "counter", "Connections accepted."),
        MetricSpec(REQUEST_BYTES, "counter", "Bytes received from clients."),
        MetricSpec(RESPONSE_BYTES, "counter", "Bytes handed to connections."),
        MetricSpec(REJECTED, "counter", "Requests refused to protect the others, by reason.", (*_D, "reason")),
        MetricSpec(EXPIRED, "counter", "Requests whose deadline passed before they were answered.", _DR),
        MetricSpec(CANCELLED, "counter", "Requests whose client was gone before they were answered.", _DR),
        MetricSpec(RATE_LIMITED, "counter", "Requests refused because their API key asked too often.", (*_D, "key")),
        MetricSpec(AUTH_FAILURES, "counter", "Requests refused for their API key, by reason.", ("reason",)),
        MetricSpec(
            ANOMALIES, "counter", "Values served although training never saw the like, by column and kind.", (*_D, "column", "kind")
        ),
        MetricSpec(LOG_BYTES, "counter", "Bytes handed to the prediction log.", _D),
        MetricSpec(LOG_FAILURES, "counter", "Predictions refused because they could not be logged.", _D),
        MetricSpec(LOG_DROPPED, "counter", "Rows answered but not logged, because the log could not keep up.", _D),
        MetricSpec(LOG_BACKLOG, "gauge", "Bytes of the prediction log waiting to be encoded or shipped.", _D, "max"),
        MetricSpec(LOG_SHIPPED, "counter", "Segments of the prediction log that reached their store.", (), "max"),
        MetricSpec(LOG_SHIP_FAILURES, "counter", "Attempts to ship a segment that failed.", (), "max"),
        MetricSpec(FEEDBACK, "counter", "Feedback accepted; known says whether this server can place the prediction id.", (*_D, "known")),
        MetricSpec(GENERATION, "gauge", "Generation of the deployment spec being served; the oldest of all workers.", _D, "min"),
        MetricSpec(RELOADS, "counter", "Attempts to load a new deployment spec, by outcome.", (*_D, "outcome")),
        MetricSpec(RELOAD_OK, "gauge", "1 when the newest deployment spec is the one being served, 0 when a worker refused it.", _D, "min"),
        MetricSpec(
            MODEL_INFO, "gauge", "Always 1; its labels say what is being served.", (*_DR, "model", "model_version", "bundle"), "max"
        ),
        MetricSpec(WEIGHT, "gauge", "Share of requests a revision gets, in per cent.", _DR, "max"),
        MetricSpec(SPANS_EXPORTED, "counter", "Spans the collector accepted."),
        MetricSpec(SPANS_DROPPED, "counter", "Spans thrown away, by reason.", ("reason",)),
        MetricSpec(ACCESS_DROPPED, "counter", "Lines of the access log that nobody took in time."),
        MetricSpec(WORKERS, "gauge", "Worker processes alive."),
        MetricSpec(WORKER_RESTARTS, "counter", "Workers that ended unasked and were replaced, by slot.", ("slot",)),
        MetricSpec(SERIES_REFUSED, "counter", "Series refused because their metric has too many; they are counted as other.", ("metric",)),
        MetricSpec(FILES_IGNORED, "gauge", "Files among the workers' counts that cannot be read, or are none.", (), "max"),
        MetricSpec(BUILD_INFO, "gauge", "Always 1; its labels say which software serves.", ("version", "python", "onnxruntime"), "max"),
        MetricSpec(PROCESS_CPU, "counter", "User and system CPU time, with that of the processes it replaced.", (), "worker"),
        MetricSpec(PROCESS_MEMORY, "gauge", "Resident memory in bytes.", (), "worker"),
        MetricSpec(PROCESS_START, "gauge", "Start of the process in seconds since 1970-01-01 UTC.", (), "worker"),
        MetricSpec(PROCESS_FDS, "gauge", "Open file descriptors.", (), "worker"),
        MetricSpec(PROCESS_MAX_FDS, "gauge", "Most file descriptors the process may open.", (), "worker"),
    )
}
"""Metric name to what it is, in the order of the page."""

PREDICTION_ID_HEADER = "mulle-prediction-id"
REVISION_HEADER = "mulle-revision"
UNIT_HEADER = "mulle-unit"
"""What the server tells about itself."""


def route_label(route: str) -> str:
    """Return what the label `route` says: the route itself where it is one of ours, else `other`."""
    return route if route in ROUTES else OTHER
