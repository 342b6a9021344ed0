"""What to serve, where, within which limits: one value that crosses from the command line to every worker."""

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.formats.api_keys import KeySource
from mulle.formats.prediction_policy import LogPolicy
from mulle.serve.http.checks import Limits
from mulle.serve.http.cors import NO_CORS, CorsPolicy
from mulle.serve.journal.config import KeeperConfig
from mulle.serve.plane.deployment import Serving
from mulle.serve.plane.features import FeaturePolicy
from mulle.serve.protocols.predict import DEFAULT_MAX_ROWS
from mulle.serve.runtimes.providers import ProviderChoice

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What to serve, where, within which limits.

    Attributes:
        state_dir: The project's `.mulle`: specs are read from `serving/`, logs written under `logs/`.
        deployment: The deployment's name; the one meant where a request names none.
        trusted: Public keys in hexadecimal.
        bundle: Serve this folder as revision 1, without a spec.
        also: Further deployments.
        all_deployments: Serve every deployment that has a spec, also those that get one while the server runs; one whose spec
            is removed is unloaded.
        host: Loopback unless `allow_remote`.
        port: 0 takes a free one.
        grpc_port: Where the Open Inference Protocol is spoken over gRPC; None: nowhere. 0 takes a free one.
        allow_remote: Listen elsewhere too; then every request needs an API key.
        keys: Where API keys come from; None: nobody needs one.
        cors: Which web pages may ask.
        limits: Of connections.
        max_rows: Rows per request.
        workers: Processes behind the port.
        threads: Threads within an operator; 0: found by measuring.
        model_threads: Threads for models too dear for the loop; None: one per core.
        max_batch: Rows that run together at most.
        max_wait_ms: Estimated wait from which requests are refused; None: see `plane/batcher.py`.
        on_overload: `refuse` with 503, or `wait`: stop reading.
        provider: Where graphs are computed.
        drain_timeout_s: How long a request on its way may take after SIGTERM.
        log: What of the predictions is kept.
        keeper: What encodes, ships and removes the prediction log; None: nothing does.
        features: Deployment to how its requests are completed from `features/` in the state folder.
        otlp: Where traces are sent; None: nowhere.
        trace_sample: Share of the requests traced whose caller did not decide.
        access_log: One line per request on standard output.
        metrics_dir: Shared by the workers of one server; None: there is one.
        worker: Slot of this worker.
    """

    state_dir: Path
    deployment: str
    trusted: Collection[str]
    bundle: Path | None = None
    also: tuple[str, ...] = ()
    all_deployments: bool = False
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    allow_remote: bool = False
    keys: KeySource | None = None
    cors: CorsPolicy = NO_CORS
    limits: Limits = field(default_factory=Limits)
    max_rows: int = DEFAULT_MAX_ROWS
    workers: int = 1
    threads: int = 0
    model_threads: int | None = None
    max_batch: int = 64
    max_wait_ms: float | None = None
    on_overload: Literal["refuse", "wait"] = "refuse"
    provider: ProviderChoice = "auto"
    drain_timeout_s: float = 10.0
    log: LogPolicy = field(default_factory=LogPolicy)
    keeper: KeeperConfig | None = None
    features: Mapping[str, FeaturePolicy] = field(default_factory=dict[str, FeaturePolicy])
    otlp: str | None = None
    trace_sample: float = 0.01
    access_log: bool = False
    metrics_dir: Path | None = None
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A server that listens.

    Attributes:
        host: As bound.
        port: As bound.
        serving: The first deployment.
        example: A row that works.
        reload_error: Why the newest spec is not being served; None when it is.
        grpc_port: As bound; None without gRPC.
    """

    host: str
    port: int
    serving: Serving
    example: Mapping[str, Any]
    reload_error: MulleError | None
    grpc_port: int | None = None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def require_safe(config: ServeConfig) -> None:
    """Return if nobody is let in by mistake.

    Raises:
        SpecError: `serve-remote`: other machines can reach it, and that was not asked for, or there are no keys.
    """
    if config.host.lower() in LOOPBACK:
        return
    if not config.allow_remote:
        raise SpecError(
            "serve-remote",
            f"{config.host!r} can be reached from other machines",
            fix="use --host 127.0.0.1, or make an API key (mulle keys create NAME) and pass --allow-remote",
            where="--host",
        )
    if config.keys is None:
        raise SpecError(
            "serve-remote",
            f"{config.host!r} can be reached from other machines, and there are no API keys",
            fix="make one: mulle keys create NAME",
            where="--host",
        )


def listen(config: ServeConfig) -> socket.socket:
    """Return a listening socket.

    Raises:
        SpecError: `serve-address`.
        UnavailableError: `serve-port`.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, proto)
    except (OSError, OverflowError) as error:
        raise SpecError(
            "serve-address", f"cannot listen on {config.host!r} port {config.port}: {error}", fix="check --host and --port", where="--host"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            "serve-port",
            f"cannot listen on {config.host} port {config.port}: {error.strerror}",
            fix=f"stop what listens there, or use --port {config.port + 1}",
            where="--port",
        ) from error
    return listener
