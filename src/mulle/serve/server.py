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
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from mulle.core.errors import UnavailableError
from mulle.formats import telemetry as names
from mulle.serve.config import LOOPBACK, ServeConfig, Started, listen, require_safe
from mulle.serve.http.listener import HttpServer
from mulle.serve.journal.child import KeeperChild
from mulle.serve.journal.status import read_keeper_status
from mulle.serve.plane.deployment import Deployment
from mulle.serve.slots import accept_rest
from mulle.serve.worker import Worker

__all__ = ["LOOPBACK", "ServeConfig", "Started", "serve", "server_in_thread"]
LOG = logging.getLogger("mulle.serve")
_SWEEP_S = 0.25
_KEEP_S = 0.5
_BACKLOG_TURNS = 10
_LINGER_S = 1.0
# A thread that has run its model waits up to this long for the interpreter while the loop is busy: with a model of half a
# millisecond, at the default of 5 ms, the waiting would be most of the work.
_SWITCH_S = 0.0002
_OTHER_DESCRIPTORS = 256


def serve(
    config: ServeConfig,
    *,
    on_ready: Callable[[Started], None] | None = None,
    stop: threading.Event | None = None,
    listener: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, and drain.

    Args:
        config: What and where.
        on_ready: Called once it listens.
        stop: For a server in a thread, where signals do not arrive.
        listener: A socket that listens already; None: made from `config`.

    Raises:
        SpecError: remote binding without `allow_remote`, an unusable host or port, nothing to serve.
        CheckError: a bundle or spec that must not be served.
        UnavailableError: the log's folder cannot be written, or the port is taken.
    """
    require_safe(config)
    sys.setswitchinterval(_SWITCH_S)
    _allow_descriptors(config.limits.connections)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(config, on_ready, stop, listener))


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


async def _serve(
    config: ServeConfig, on_ready: Callable[[Started], None] | None, stop: threading.Event | None, listener: socket.socket | None
) -> None:
    loop = asyncio.get_running_loop()
    worker = Worker(config)
    listener = listener or listen(config)
    ended = asyncio.Event()
    _on_signals(loop, ended)
    async with _background(_sweep(worker.http), _keep(worker, config), _wait_for(stop, ended), *worker.watchers()):
        server = await loop.create_server(worker.http, sock=listener, backlog=1024)
        grpc_port = await worker.start_grpc()
        await worker.warm()
        # What was loaded lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        worker.state.ready = True
        host, port = listener.getsockname()[:2]
        if on_ready is not None:
            on_ready(worker.started(host, port, grpc_port))
        await ended.wait()
        worker.state.ready = False
        # Who is in the accept queue was let in already: a socket that closes would reset them.
        waiting = accept_rest(listener)
        server.close()
        for connection in waiting:
            await loop.connect_accepted_socket(worker.http, connection)
        await asyncio.gather(_drain(worker.http, config.drain_timeout_s), worker.stop_grpc(config.drain_timeout_s))
    if worker.completer is not None:
        await worker.completer.close()
    worker.close()
    gc.unfreeze()


def _allow_descriptors(n_connections: int) -> None:
    """Let this process open what its connections need, as far as the system's hard limit goes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


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


async def _keep(worker: Worker, config: ServeConfig) -> None:
    """Once a second: write outcomes and sync (a crash of the host loses no more than that), look at keys and at the keeper."""
    loop = asyncio.get_running_loop()
    keeper = None if config.keeper is None or config.worker else KeeperChild(config.keeper)
    n_turns = 0
    try:
        while True:
            await asyncio.sleep(_KEEP_S)
            n_turns += 1
            worker.poll_keys()
            if n_turns % 2:
                continue
            if keeper is not None and config.keeper is not None:
                keeper.look()
                worker.tell_keeper(read_keeper_status(config.keeper.root))
            worker.registry.collect()
            for deployment in list(worker.plane.deployments.values()):
                await _keep_log(worker, deployment, loop, measure=n_turns % _BACKLOG_TURNS == 0)
    finally:
        if keeper is not None:
            keeper.stop()


async def _keep_log(worker: Worker, deployment: Deployment, loop: asyncio.AbstractEventLoop, *, measure: bool) -> None:
    deployment.tell_log()
    try:
        deployment.log.flush_outcomes(worker.plane.now_ns())
        await loop.run_in_executor(None, deployment.log.sync)
        if measure:
            backlog = await loop.run_in_executor(None, deployment.log.measure_backlog)
            worker.registry.gauge(names.LOG_BACKLOG, deployment=deployment.name).put(backlog)
    except UnavailableError as error:
        deployment.log_failures.add()
        LOG.warning("the prediction log cannot be written: %s", error)


async def _drain(http: HttpServer, timeout_s: float) -> None:
    """Answer what was received, let clients see that each answer is the last, then close who asks nothing."""
    http.drain()
    linger_s = min(_LINGER_S, timeout_s / 2)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(http.empty.wait(), linger_s)
    n_idle = http.close_idle()
    if n_idle:
        LOG.info("closed %d idle connections; a request on its way to one of them was not answered", n_idle)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(http.empty.wait(), timeout_s - linger_s)
    http.abort()
    # The cut connections tell their protocols on the next turn.
    await asyncio.sleep(0)
