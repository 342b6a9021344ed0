"""What a revision costs on this host, measured on its golden requests before it takes traffic."""

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
from mulle.serve.plane.pool import n_cores
from mulle.serve.plane.served import Served
from mulle.serve.runtimes.onnx import OnnxRuntime

_BUDGET_NS = 60_000_000
_SIZES = (1, 8, 32, 64)
_MIN_RUNS = 3
_LARGE_NS = 2_000_000
_WORTH = 0.75


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


def load_widths(make_runtime: Callable[[int], OnnxRuntime], time_one: Callable[[OnnxRuntime], Callable[[], Any]]) -> OnnxRuntime:
    """Return the runtime to serve with, after trying on this host whether a large model should be held twice.

    With one thread per operator a host answers most requests a second; with all cores it answers a lone request soonest.
    Neither is worth giving up, so a model of more than 2 ms that is at least a quarter faster on all cores is held both ways
    (`OnnxRuntime.wide`): a request that finds nobody else takes all cores, the others one each.

    Args:
        make_runtime: Loads the graph with so many threads.
        time_one: Gives what runs one request on a runtime.
    """
    single = make_runtime(1)
    n = n_cores()
    alone = _fastest(time_one(single))
    if n == 1 or alone < _LARGE_NS:
        return single
    wide = make_runtime(n)
    if _fastest(time_one(wide)) <= alone * _WORTH:
        single.wide = wide
    return single


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
