"""One measured load in a process of its own: `python -m serving.drive`, a job on standard input, figures on standard output."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from load import tree_cpu_s, tree_memory_mib
from measure import SkippedError, quiet_environment

from mulle.serve.loadtest.histogram import Histogram
from mulle.serve.loadtest.result import Load, Result
from serving.fleet import Ask, Server

BENCHMARKS = Path(__file__).resolve().parent.parent
CALLS_PER_CHANNEL = 16


class Job(msgspec.Struct, kw_only=True):
    """What the process does: warm up, then measure, with the server's CPU read before and after."""

    pid: int
    load: Load | None = None
    rpc: tuple[int, str, tuple[bytes, ...], int, int, float, tuple[tuple[str, str], ...]] | None = None
    warm_s: float = 0.3


class Shot(msgspec.Struct, kw_only=True):
    """One measurement.

    Attributes:
        rate: Good answers per second.
        cpu_us: The server's CPU per answer, all its processes, in µs.
        latency: Buckets of the good answers' latencies in nanoseconds (`loadtest.histogram`).
        n_failed: Requests without a good answer.
        client_cpu_us: The generator's own CPU per answer.
        saturated: Whether the generator was the limit.
        cpu_s: The server's CPU in seconds.
        result: All that came back, of HTTP loads.
    """

    rate: float
    cpu_us: float
    latency: dict[int, int]
    n_failed: int
    client_cpu_us: float
    saturated: bool
    cpu_s: float
    memory_mib: float = 0.0
    result: Result | None = None

    def histogram(self) -> Histogram:
        """Return the latencies."""
        return Histogram.from_pairs(self.latency)


def shoot(
    server: Server, ask: Ask, *, connections: int, seconds: float, warm_s: float = 0.3, rate: float | None = None, **options: Any
) -> Shot:
    """Return what a server did under a closed loop, or an open one where a rate is given.

    Raises:
        SkippedError: the generator failed.
    """
    if ask.rpc is not None:
        channels = max(1, connections // CALLS_PER_CHANNEL)
        rpc = (server.ports.grpc, ask.rpc, ask.requests, channels, connections // channels, seconds, ask.headers)
        return _run(Job(pid=server.pid, rpc=rpc, warm_s=warm_s), seconds)
    load = Load(
        host="127.0.0.1",
        port=server.ports.http,
        requests=ask.requests,
        connections=connections,
        duration_s=seconds,
        warmup_s=0.0,
        rate=rate,
        **{"timeout_s": 20.0, **options},
    )
    return _run(Job(pid=server.pid, load=load, warm_s=warm_s), seconds)


def _run(job: Job, seconds: float) -> Shot:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "serving.drive"],
            input=msgspec.msgpack.encode(job),
            capture_output=True,
            cwd=BENCHMARKS,
            env=quiet_environment(),
            timeout=seconds + 60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError("the load generator did not end in time") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SkippedError(f"the load failed: {' '.join(said)[:200]}")
    return msgspec.msgpack.decode(done.stdout, type=Shot)


def _work(job: Job) -> Shot:
    import asyncio
    import time

    import uvloop

    from mulle.serve.loadtest.generator import run_load

    gc.disable()
    if job.load is not None:
        if job.warm_s:
            warm = msgspec.structs.replace(
                job.load, rate=None, pipeline=1, connections=min(job.load.connections, 64), duration_s=job.warm_s
            )
            run_load(warm)
        before = tree_cpu_s(job.pid)
        result = run_load(job.load)
        used = tree_cpu_s(job.pid) - before
        return Shot(
            rate=result.ok_rate,
            # Read after the last answer, so that it pays for every one of them.
            cpu_us=1e6 * used / max(1, result.n_answered),
            latency=result.latency().to_pairs(),
            n_failed=result.n_errors,
            client_cpu_us=result.cpu_us_per_request,
            saturated=result.saturated,
            cpu_s=used,
            memory_mib=tree_memory_mib(job.pid),
            result=result,
        )
    from serving.h2 import run_calls

    assert job.rpc is not None
    port, path, messages, connections, calls, seconds, headers = job.rpc
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_calls(port, path, messages, connections=connections, calls=calls, seconds=job.warm_s or 0.1, headers=headers))
        before, own = tree_cpu_s(job.pid), time.process_time()
        histogram, n_failed, took = runner.run(
            run_calls(port, path, messages, connections=connections, calls=calls, seconds=seconds, headers=headers)
        )
        used, own = tree_cpu_s(job.pid) - before, time.process_time() - own
    n = max(1, histogram.n)
    return Shot(
        rate=histogram.n / took,
        cpu_us=1e6 * used / n,
        latency=histogram.to_pairs(),
        n_failed=n_failed,
        client_cpu_us=1e6 * own / n,
        saturated=own / took > 0.85,
        cpu_s=used,
        memory_mib=tree_memory_mib(job.pid),
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(_work(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job))))
