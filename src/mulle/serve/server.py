"""The server process: start, timers, signals, drain.

Start: load and prove what to serve, open the logs, listen. SIGTERM: stop listening, answer what was received, write the
last counts, sync, leave with 0.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.formats import telemetry as names
from mulle.formats.bundle import GOLDEN
from mulle.formats.feedback_log import FeedbackWriter
from mulle.formats.golden import read_golden
from mulle.formats.prediction_log import LogWriter, known_prefixes
from mulle.serve.http.checks import Limits
from mulle.serve.http.connection import HttpServer
from mulle.serve.plane.dataplane import DataPlane, Serving
from mulle.serve.protocols.routes import DEFAULT_MAX_ROWS, Routes
from mulle.serve.reload import Reloader, SpecSource, load_first, serve_folder
from mulle.serve.state import ServerState
from mulle.serve.telemetry.metrics import Metrics

LOG = logging.getLogger("mulle.serve")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SWEEP_S = 0.25
_SYNC_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What to serve, where, within which limits.

    Attributes:
        state_dir: The project's `.mulle`: specs are read from `serving/`, logs written under `logs/`.
        deployment: The deployment's name.
        trusted: Public keys in hexadecimal.
        bundle: Serve this folder as revision 1, without a spec.
        host: Loopback unless `allow_remote`.
        port: 0 takes a free one.
        allow_remote: Listen elsewhere too. There is no authentication yet: put a proxy with one in front.
        limits: Of connections.
        max_rows: Rows per request.
        threads: Threads within an operator.
        drain_timeout_s: How long a request on its way may take after SIGTERM.
    """

    state_dir: Path
    deployment: str
    trusted: Collection[str]
    bundle: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    allow_remote: bool = False
    limits: Limits = field(default_factory=Limits)
    max_rows: int = DEFAULT_MAX_ROWS
    threads: int = 1
    drain_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Started:
    """A server that listens."""

    host: str
    port: int
    serving: Serving
    example: Mapping[str, Any]
    reload_error: MulleError | None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def serve(config: ServeConfig, *, on_ready: Callable[[Started], None] | None = None, stop: threading.Event | None = None) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, and drain.

    Args:
        config: What and where.
        on_ready: Called once it listens.
        stop: For a server in a thread, where signals do not arrive.

    Raises:
        SpecError: remote binding without `allow_remote`, an unusable host or port, nothing to serve.
        CheckError: a bundle or spec that must not be served.
        UnavailableError: the log's folder cannot be written, or the port is taken.
    """
    _require_host(config)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(config, on_ready, stop))


@contextlib.contextmanager
def server_in_thread(config: ServeConfig) -> Generator[Started]:
    """Serve in a thread while the block runs; for tests and notebooks."""
    ready = threading.Event()
    stop = threading.Event()
    box: list[Started] = []
    failure: list[BaseException] = []

    def started(what: Started) -> None:
        box.append(what)
        ready.set()

    def work() -> None:
        try:
            serve(config, on_ready=started, stop=stop)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=work, name="mulle-serve", daemon=True)
    thread.start()
    ready.wait()
    try:
        if failure:
            raise failure[0]
        yield box[0]
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]


async def _serve(config: ServeConfig, on_ready: Callable[[Started], None] | None, stop: threading.Event | None) -> None:
    loop = asyncio.get_running_loop()
    state = ServerState()
    source = SpecSource(state_dir=config.state_dir, deployment=config.deployment, trusted=config.trusted, threads=config.threads)
    signed = None
    if config.bundle is not None:
        serving = serve_folder(config.bundle, deployment=config.deployment, trusted=config.trusted, threads=config.threads)
    else:
        serving, signed, state.reload_error = load_first(source)
    state.example = example_row(serving)
    logs = config.state_dir / "logs"
    earlier = frozenset(known_prefixes(logs, config.deployment))
    metrics = Metrics()
    log = LogWriter(logs, config.deployment)
    feedback = FeedbackWriter(logs, config.deployment)
    plane = DataPlane(serving, log, feedback, metrics, earlier_prefixes=earlier)
    http = HttpServer(
        Routes(plane, state, max_rows=config.max_rows),
        limits=config.limits,
        allowed_hosts=None if config.allow_remote else LOOPBACK | {config.host.lower()},
    )
    metrics.collectors.append(lambda: _measure(metrics, http))
    listener = _listen(config)
    ended = asyncio.Event()
    _on_signals(loop, ended)
    async with _background(_sweep(http), _keep_log(plane), _wait_for(stop, ended)), contextlib.AsyncExitStack() as stack:
        if signed is not None:
            reloader = Reloader(source, plane, state, signed, lambda new: _set_example(state, new))
            await stack.enter_async_context(_background(reloader.watch()))
        server = await loop.create_server(http, sock=listener, backlog=1024)
        # What was loaded lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        state.ready = True
        host, port = listener.getsockname()[:2]
        if on_ready is not None:
            on_ready(Started(host, port, serving, state.example, state.reload_error))
        await ended.wait()
        state.ready = False
        server.close()
        await _drain(http, config.drain_timeout_s)
    log.close(plane.now_ns())
    feedback.close()
    gc.unfreeze()


def example_row(serving: Serving, folder: Path | None = None) -> dict[str, Any]:
    """Return the first golden row of what is served: a request that works; empty where the golden requests are not at hand."""
    folder = folder or serving.revisions[0].runtime.folder
    try:
        golden = read_golden(folder / GOLDEN)
    except MulleError:
        return {}
    known = [column.name for column in serving.revisions[0].manifest.columns]
    row = golden.rows[0] if golden.rows else {}
    return {name: row.get(name) for name in known if row.get(name) is not None}


def _set_example(state: ServerState, serving: Serving) -> None:
    state.example = example_row(serving)


def _require_host(config: ServeConfig) -> None:
    if config.host.lower() not in LOOPBACK and not config.allow_remote:
        raise SpecError(
            "serve-remote",
            f"{config.host!r} can be reached from other machines, and there is no authentication yet",
            fix="use --host 127.0.0.1, or pass --allow-remote and put a proxy with authentication in front",
            where="--host",
        )


def _listen(config: ServeConfig) -> socket.socket:
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


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _on_signals(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)


@contextlib.asynccontextmanager
async def _background(*works: Any) -> AsyncGenerator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _wait_for(stop: threading.Event | None, ended: asyncio.Event) -> None:
    while stop is not None and not ended.is_set():
        if stop.is_set():
            ended.set()
        await asyncio.sleep(0.02)


async def _sweep(http: HttpServer) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_SWEEP_S)
        http.sweep(loop.time())


async def _keep_log(plane: DataPlane) -> None:
    """Write outcomes and sync once a second: a crash of the host loses no more than that."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_SYNC_S)
        try:
            plane.log.flush_outcomes(plane.now_ns())
            await loop.run_in_executor(None, plane.log.sync)
        except UnavailableError as error:
            plane.metrics.add(names.LOG_FAILURES, deployment=plane.serving.deployment)
            LOG.warning("the prediction log cannot be written: %s", error)


def _measure(metrics: Metrics, http: HttpServer) -> None:
    metrics.put(names.CONNECTIONS, len(http.connections))
    metrics.put(names.IN_FLIGHT, http.n_in_flight)


async def _drain(http: HttpServer, timeout_s: float) -> None:
    http.drain()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(http.empty.wait(), timeout_s)
    http.abort()
    # The cut connections tell their protocols on the next turn.
    await asyncio.sleep(0)
