"""What a revision costs on this host, measured on its golden requests before it takes traffic."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mulle.core.errors import MulleError
from mulle.formats.golden import read_golden
from mulle.formats.golden_tensors import read_golden_tensors
from mulle.formats.rows import encode_rows
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.jobs import ARRAYS, IMAGES, TENSORS, Job
from mulle.serve.plane.served import Served
from mulle.serve.runtimes.onnx import OnnxRuntime

_BUDGET_NS = 60_000_000
_SIZES = (1, 8, 32, 64)
_MIN_RUNS = 3
_LARGE_NS = 2_000_000
_WORTH_LATENCY = 0.8
_WORTH_THROUGHPUT = 0.92


def measure_curve(served: Served, *, max_batch: int) -> CostCurve:
    """Return what batches of a revision cost here; takes about 60 ms, or a few runs of a large model.

    The first run of every size warms it up and is not counted. A revision whose golden requests cannot be replayed in
    batches keeps what one of them costs.
    """
    make = _golden_jobs(served)
    found: dict[int, float] = {}
    began = time.monotonic_ns()
    for size in _SIZES:
        if size > max(1, max_batch) or (found and (time.monotonic_ns() - began > _BUDGET_NS or max(found.values()) * 4 > _BUDGET_NS)):
            break
        if size > 1 and not served.runtime.batchable:
            break
        try:
            jobs = make(size)
            best = _fastest(lambda jobs=jobs: served.run(jobs))
        except MulleError:
            break
        found[size] = best
    return CostCurve(found or {1: 1_000_000.0})


def choose_threads(make_runtime: Callable[[int], OnnxRuntime], time_one: Callable[[OnnxRuntime], Callable[[], Any]]) -> OnnxRuntime:
    """Return the runtime to serve with, its threads within an operator found by trying on this host.

    One thread per operator answers most requests a second; a large model answers a single one sooner with all cores. All
    cores are taken only where that gives up less than 8 % of the requests and makes a single one at least 20 % faster.

    Args:
        make_runtime: Loads the graph with so many threads.
        time_one: Gives what runs one request on a runtime.
    """
    single = make_runtime(1)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = _fastest(time_one(single))
    if n_cores == 1 or alone < _LARGE_NS:
        return single
    wide = make_runtime(n_cores)
    alone_wide = _fastest(time_one(wide))
    if alone_wide > alone * _WORTH_LATENCY:
        return single
    together, together_wide = _together(time_one(single), n_cores), _together(time_one(wide), n_cores)
    return wide if together_wide * _WORTH_THROUGHPUT <= together else single


def one_request(runtime: OnnxRuntime) -> Callable[[], Any]:
    """Return what runs the first golden request on a runtime, without decoding pictures."""
    manifest = runtime.manifest
    path = runtime.folder / manifest.golden_file
    if manifest.kind == "columns":
        arrays = encode_rows(read_golden(path).rows[:1], manifest.columns, absent_is_missing=True)
        return lambda: runtime.run(arrays)
    case = read_golden_tensors(path).cases[0]
    if manifest.image is not None:
        pixels = np.zeros((1, *manifest.image.shape), np.float32 if manifest.image.dtype == "float32" else np.uint8)
        return lambda: runtime.run_pixels(pixels)
    tensors = {name: tensor.to_array() for name, tensor in case.inputs.items()}
    return lambda: runtime.run_tensors(tensors)


def _golden_jobs(served: Served) -> Callable[[int], list[Job]]:
    """Return what makes a list of jobs with so many rows altogether."""
    runtime, manifest = served.runtime, served.manifest
    path = runtime.folder / manifest.golden_file
    if manifest.kind == "columns":
        rows = read_golden(path).rows

        def of_rows(size: int) -> list[Job]:
            arrays = encode_rows([rows[i % len(rows)] for i in range(size)], manifest.columns, absent_is_missing=True)
            return [Job(served, ARRAYS, arrays, size, 0, key=ARRAYS)]

        return of_rows
    cases = read_golden_tensors(path).cases
    if manifest.image is not None:
        pictures = [case.image for case in cases]
        return lambda size: [Job(served, IMAGES, [pictures[i % len(pictures)] for i in range(size)], size, 0, key=IMAGES)]
    inputs = {name: tensor.to_array() for name, tensor in cases[0].inputs.items()}
    n_rows = next(iter(inputs.values())).shape[0] if inputs else 1

    def of_tensors(size: int) -> list[Job]:
        return [Job(served, TENSORS, inputs, n_rows, 0, key=TENSORS) for _ in range(max(1, size // max(1, n_rows)))]

    return of_tensors


def _fastest(run: Callable[[], Any]) -> float:
    """Return the least of a few runs in nanoseconds: what it costs where nothing else is in the way."""
    run()
    best = float("inf")
    began = time.monotonic_ns()
    n_runs = 0
    while n_runs < _MIN_RUNS or (n_runs < 20 and time.monotonic_ns() - began < _BUDGET_NS // 20):  # noqa: PLR2004 - enough
        before = time.monotonic_ns()
        run()
        best = min(best, time.monotonic_ns() - before)
        n_runs += 1
    return max(best, 1.0)


def _together(run: Callable[[], Any], n_threads: int) -> float:
    """Return nanoseconds per run when so many threads run at once."""

    def work() -> None:
        for _ in range(_MIN_RUNS):
            run()

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    before = time.monotonic_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.monotonic_ns() - before) / (_MIN_RUNS * n_threads)
