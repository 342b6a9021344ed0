"""One worker: the data plane with everything it needs, put together from its configuration."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from mulle.core.errors import MulleError
from mulle.formats import telemetry as names
from mulle.formats.bundle import GOLDEN
from mulle.formats.feedback_log import FeedbackWriter
from mulle.formats.golden import read_golden
from mulle.formats.prediction_log import LogWriter, known_prefixes
from mulle.serve.access.guard import Guard
from mulle.serve.access.keys import KeyRing
from mulle.serve.access.rates import RateTable
from mulle.serve.config import LOOPBACK, ServeConfig, Started
from mulle.serve.http.cors import cors_lines
from mulle.serve.http.listener import HttpServer
from mulle.serve.journal.status import KeeperStatus
from mulle.serve.observe import PredictionObserver
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.deployment import Deployment, Serving
from mulle.serve.plane.features import FeatureCompleter, FileFeatureSource
from mulle.serve.protocols.completion import BodyCompleter
from mulle.serve.protocols.gate import Gate
from mulle.serve.protocols.multipart import PictureForms
from mulle.serve.protocols.oip_rest import OipRoutes
from mulle.serve.protocols.oip_service import OipService
from mulle.serve.protocols.routes import Routes
from mulle.serve.reload import DeploymentsWatcher, Reloader, SpecSource, load_first, serve_folder
from mulle.serve.state import ServerState
from mulle.serve.telemetry.logs import AccessLog
from mulle.serve.telemetry.process import watch_process
from mulle.serve.telemetry.registry import MetricsRegistry
from mulle.serve.telemetry.tracing import Tracer

LOG = logging.getLogger("mulle.serve")
_FEATURES = "features"


class Worker:
    """Everything of one worker process but its sockets and signals. Make it on a running event loop.

    Args:
        config: What to serve.

    Raises:
        SpecError, CheckError: a deployment has nothing that can be served; keys or settings cannot be used.
        UnavailableError: the log's folder cannot be written.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.state = ServerState()
        self.registry = MetricsRegistry(config.metrics_dir, worker=config.worker)
        watch_process(self.registry, onnxruntime=ort.__version__)
        self.plane = DataPlane(
            self.registry,
            max_batch=config.max_batch,
            n_threads=config.model_threads,
            max_wait_ms=config.max_wait_ms,
            refuse=config.on_overload == "refuse",
        )
        self.tracer = Tracer.make(config.otlp, sample=config.trace_sample, attributes={"service.instance.id": config.worker})
        self.access = AccessLog(fields={"worker": config.worker}) if config.access_log else None
        if self.tracer is not None:
            self.tracer.tell(self.registry)
        if self.access is not None:
            self.access.tell(self.registry)
        self._reloaders: dict[str, Reloader] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for name in dict.fromkeys((config.deployment, *config.also)):
            self.load(name)
        guard = self._make_guard()
        self._guard = guard
        gate = Gate(guard, self.plane)
        self.completer = self._make_completer()
        service = OipService(self.plane, self.state, max_rows=config.max_rows)
        self._grpc: Any = None
        self._service = service
        routes = Routes(
            self.plane,
            self.state,
            gate,
            OipRoutes(service, max_body_bytes=config.limits.body_bytes),
            max_rows=config.max_rows,
            cors=config.cors,
            pictures=PictureForms(),
            completer=self.completer,
            observer=PredictionObserver(self.tracer, self.access) if self.tracer or self.access else None,
        )
        self.http = HttpServer(
            routes,
            limits=config.limits,
            allowed_hosts=None if config.allow_remote else LOOPBACK | {config.host.lower()},
            cors=cors_lines(config.cors),
        )
        if config.on_overload == "wait":
            self.http.is_full = lambda: self.plane.batcher.is_full
        self._totals = tuple(self.registry.total(name) for name in (names.REQUEST_BYTES, names.RESPONSE_BYTES, names.CONNECTIONS_ACCEPTED))
        self.registry.collectors.append(self._measure)

    def load(self, name: str) -> None:
        """Load and prove a deployment and serve it from the next request on.

        Raises:
            SpecError, CheckError: it has nothing that can be served.
            UnavailableError: its log's folder cannot be written.
        """
        self.open(name, *self.prove(name))

    def prove(self, name: str) -> tuple[Serving, Reloader | None]:
        """Return what a deployment serves, loaded and proven, and what watches its spec. Blocking; may run in a thread."""
        config = self.config
        source = SpecSource(
            state_dir=config.state_dir,
            deployment=name,
            trusted=config.trusted,
            threads=config.threads,
            max_batch=config.max_batch,
            provider=config.provider,
        )
        if config.bundle is not None and name == config.deployment:
            return serve_folder(config.bundle, source), None
        serving, signed, error = load_first(source)
        return serving, Reloader(source, self.plane, self.state, signed, error=error, on_install=self._install_example)

    def open(self, name: str, serving: Serving, reloader: Reloader | None) -> None:
        """Serve what `prove` returned."""
        logs = self.config.state_dir / "logs"
        log = LogWriter(logs, name, policy=self.config.log)
        earlier = frozenset(known_prefixes(logs, name))
        self.state.examples[name] = example_row(serving)
        self.plane.add(Deployment(serving, log, FeedbackWriter(logs, name), self.registry, earlier_prefixes=earlier))
        if reloader is not None:
            self._reloaders[name] = reloader
            reloader.begin()

    def unload(self, name: str) -> None:
        """Stop serving a deployment and let go of its memory."""
        deployment = self.plane.remove(name)
        self._reloaders.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        self.state.examples.pop(name, None)
        self.state.note_reload(name, None)
        deployment.retire()
        deployment.log.close(self.plane.now_ns())
        deployment.feedback.close()

    def watchers(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Return what has to run beside the server: one look at every spec, five times a second."""
        yield DeploymentsWatcher(
            self.config.state_dir, self._reloaders, load=self._load_later, unload=self.unload, follow=self.config.all_deployments
        ).watch()

    def started(self, host: str, port: int, grpc_port: int | None) -> Started:
        """Return what a caller is told once the worker listens."""
        first = self.plane.deployment("")
        error = self.state.reload_errors.get(first.name)
        return Started(host, port, first.serving, self.state.examples.get(first.name, {}), error, grpc_port)

    async def start_grpc(self) -> int | None:
        """Return the port gRPC listens on, or None where it is not wanted.

        Raises:
            SpecError: `extra-missing`.
            UnavailableError: `serve-port`.
        """
        if self.config.grpc_port is None:
            return None
        from mulle.serve.protocols.oip_grpc import GrpcServer

        self._grpc = GrpcServer(self._service, authorize=self._authorize, max_message_bytes=self.config.limits.body_bytes)
        return int(await self._grpc.start(self.config.host, self.config.grpc_port, reuse_port=self.config.workers > 1))

    async def stop_grpc(self, grace_s: float) -> None:
        """Take no more requests over gRPC."""
        if self._grpc is not None:
            await self._grpc.stop(grace_s)

    async def warm(self) -> None:
        """Make feature stores ready, so that the first request does not pay for it; one that is not is warned about."""
        if self.completer is not None:
            for name, error in (await self.completer.warm()).items():
                LOG.warning("the features of %s are not ready: %s", name, error)

    def poll_keys(self) -> None:
        """Take over a key document that changed."""
        if self._guard is not None:
            self._guard.ring.poll(self.plane.now_ns())

    def tell_keeper(self, status: KeeperStatus | None) -> None:
        """Tell what the prediction log's keeper has shipped; its counts go on over its restarts."""
        if status is not None:
            self.registry.counter(names.LOG_SHIPPED).raise_to(status.shipped_segments)
            self.registry.counter(names.LOG_SHIP_FAILURES).raise_to(status.ship_failures)

    def close(self) -> None:
        """Write what was counted, sync, and let go of everything."""
        for deployment in self.plane.deployments.values():
            deployment.note_now()
            deployment.log.close(self.plane.now_ns())
            deployment.feedback.close()
        self.plane.close()
        if self.tracer is not None:
            self.tracer.close()
        if self.access is not None:
            self.access.close()
        self.registry.close()

    # ---- inside

    async def _load_later(self, name: str) -> None:
        found = await asyncio.get_running_loop().run_in_executor(None, self.prove, name)
        self.open(name, *found)

    def _install_example(self, serving: Serving) -> None:
        self.state.examples[serving.deployment] = example_row(serving)

    def _make_guard(self) -> Guard | None:
        config = self.config
        if config.keys is None:
            return None
        rates = RateTable(None if config.metrics_dir is None else config.metrics_dir / "rates")
        return Guard(
            KeyRing(config.keys, required=config.allow_remote or config.host.lower() not in LOOPBACK, rates=rates, now_ns=time.time_ns())
        )

    def _make_completer(self) -> BodyCompleter | None:
        if not self.config.features:
            return None
        source = FileFeatureSource(self.config.state_dir / _FEATURES, clock=self.plane.clock)
        return BodyCompleter(
            {name: FeatureCompleter(source, policy, clock=self.plane.clock) for name, policy in self.config.features.items()}
        )

    def _authorize(self, metadata: Iterable[tuple[str, str]], deployment: str) -> MulleError | None:
        if self._guard is None:
            return None
        try:
            now_ns, now_s = self.plane.now_ns(), self.plane.monotonic_ns() / 1e9
            self._guard.authorize(metadata, deployment or self.plane.default, now_ns=now_ns, now_s=now_s)
        except MulleError as error:
            return error
        return None

    def _measure(self) -> None:
        registry, http = self.registry, self.http
        registry.gauge(names.CONNECTIONS).put(len(http.connections))
        registry.gauge(names.IN_FLIGHT).put(http.n_in_flight)
        for total, n in zip(self._totals, (http.n_bytes_in, http.n_bytes_out, http.n_accepted), strict=True):
            total.tell(n)


def example_row(serving: Serving, folder: Path | None = None) -> dict[str, Any]:
    """Return the first golden row of what is served: a request that works; empty where the golden requests are not at hand."""
    folder = folder or serving.revisions[0].runtime.folder
    if serving.revisions[0].manifest.kind != "columns":
        return {}
    try:
        golden = read_golden(folder / GOLDEN)
    except MulleError:
        return {}
    known = [column.name for column in serving.revisions[0].manifest.columns]
    row = golden.rows[0] if golden.rows else {}
    return {name: row.get(name) for name in known if row.get(name) is not None}
