"""`[serving]`: the data plane."""

from typing import Annotated, Literal

from pydantic import Field

from mulle.loop.settings.base import Address, Duration, Scalar, Share, Table


class ServingLogTable(Table):
    """What of the predictions is kept, and where it goes."""

    durability: Literal["process", "sync"] = Field(
        default="process",
        description="process: an answer waits for the kernel, a crashed host loses at most a second. sync: it waits for the disk.",
    )
    on_full: Literal["block", "drop"] = Field(
        default="block",
        description="While the log cannot be written: block refuses predictions, drop answers them and counts the loss.",
    )
    sample: Share = Field(default=1.0, description="Share of the predictions that is kept; windows of a sample are marked.")
    redact: tuple[str, ...] = Field(default=(), description="Columns whose values are not kept.")
    max_backlog_mb: int = Field(
        default=0, ge=0, description="Megabytes waiting to be encoded from which the log counts as full; 0: no limit."
    )
    keep_days: float | None = Field(default=None, gt=0.0, description="Days after which encoded segments are removed; kept unless given.")
    keep_mb: int | None = Field(default=None, ge=1, description="Megabytes all segments may take; the oldest go first.")
    sink: Address | None = Field(default=None, description="Where encoded segments are copied: file:///folder or s3://bucket/prefix.")


class ServingFeaturesTable(Table):
    """How requests that carry only who they are about are completed from `.mulle/features/`."""

    service: str = Field(min_length=1, max_length=63, description="The feature service.")
    columns: tuple[str, ...] | None = Field(default=None, description="Columns that come from the store; any the request lacks by default.")
    missing: Literal["refuse", "null", "default"] = Field(default="refuse", description="What happens where neither has a value.")
    defaults: dict[str, Scalar] = Field(default_factory=dict, description="Values for missing = default, by column.")
    budget_ms: float = Field(default=20.0, gt=0.0, le=60_000.0, description="Milliseconds the store may take.")
    max_age: Duration | None = Field(default=None, description="Older values count as missing.")


class ServingTelemetryTable(Table):
    """What the server tells about itself beside /metrics."""

    log_format: Literal["text", "json"] = Field(default="text", description="How the server's own log is written.")
    access_log: bool = Field(default=False, description="One line per request on standard output.")
    otlp: Address | None = Field(default=None, description="Where traces are sent, such as http://127.0.0.1:4318; nowhere by default.")
    trace_sample: Share = Field(default=0.01, description="Share of the requests traced whose caller did not decide.")


class ServingTable(Table):
    """The data plane."""

    deployment: str | None = Field(
        default=None, min_length=1, max_length=63, description="Name of the deployment; the project's name by default."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the Open Inference Protocol over gRPC; not spoken unless given."
    )
    workers: int = Field(default=1, ge=1, le=1024, description="Processes behind the port.")
    threads: int = Field(default=0, ge=0, le=256, description="Threads within an operator; 0: found by measuring.")
    max_batch: int = Field(default=64, ge=1, le=65536, description="Rows that are answered together at most.")
    max_rows: int = Field(default=10_000, ge=1, le=1_000_000, description="Rows of one request at most.")
    max_body_mb: int = Field(default=16, ge=1, le=1024, description="Megabytes of one request at most.")
    max_connections: int = Field(default=12_000, ge=1, le=1_000_000, description="Connections of one worker at most.")
    max_wait_ms: float | None = Field(
        default=None,
        gt=0.0,
        description="Estimated wait in milliseconds from which requests are refused; found from the model's cost unless given.",
    )
    on_overload: Literal["refuse", "wait"] = Field(
        default="refuse", description="refuse: 503 at once with Retry-After. wait: stop reading, the client's own time-out decides."
    )
    drain_timeout: Duration = Field(default="10s", description="How long a request on its way may take after SIGTERM.")
    provider: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where graphs are computed.")
    cors_origins: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="Origins whose web pages may ask, such as https://app.example.com."
    )
    log: ServingLogTable = ServingLogTable()
    features: ServingFeaturesTable | None = None
    telemetry: ServingTelemetryTable = ServingTelemetryTable()
