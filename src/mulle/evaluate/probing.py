"""What is learned by asking the model again: permutation importance, and how long answers take."""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mulle.evaluate.result import Host, Importance, Latency
from mulle.stats.measure import Problem, measure_once
from mulle.stats.metric_names import METRICS
from mulle.stats.types import AnyArray, FloatArray, IntArray

Arrays = Mapping[str, AnyArray]
Score = Callable[[dict[str, AnyArray]], AnyArray]

MAX_IMPORTANCE_ROWS = 2000
MIN_LATENCY_SAMPLES = 30
_WARM_UP = 20
_MIN_ROWS = 200
_IMPORTANCE_BUDGET_S = 20.0


def permutation_importance(
    score: Score,
    arrays: Arrays,
    y: FloatArray | IntArray,
    problem: Problem,
    *,
    metric: str,
    columns: Sequence[str],
    repeats: int,
    rng: np.random.Generator,
) -> tuple[tuple[Importance, ...], int]:
    """Return how much `metric` loses when each raw column is shuffled, most important first, and the rows used.

    A loss is positive when the model needs the column. Correlated columns share their importance, so that each looks less
    important than both together.

    Args:
        score: Raw columns to scores.
        arrays: Raw columns, shape (n,) each.
        y: Encoded targets, shape (n,).
        problem: The task.
        metric: Name of the metric that is watched.
        columns: Which columns are shuffled.
        repeats: Shuffles per column, >= 1.
        rng: Source of randomness.

    Slow models are probed on fewer rows, at least 200, so that it takes about 20 s at most.

    Source: L. Breiman, Machine Learning 45 (2001), 5-32.
    """
    n = len(y)
    started = time.perf_counter()
    score({name: values[: min(n, _MIN_ROWS)] for name, values in arrays.items()})
    per_row = (time.perf_counter() - started) / max(1, min(n, _MIN_ROWS))
    affordable = int(_IMPORTANCE_BUDGET_S / max(1e-9, per_row * repeats * max(1, len(columns))))
    size = min(n, max(_MIN_ROWS, min(MAX_IMPORTANCE_ROWS, affordable)))
    rows = np.sort(rng.permutation(n)[:size])
    table = {name: values[rows] for name, values in arrays.items()}
    truth = y[rows]
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    base = measure_once(truth, np.asarray(score(table), dtype=np.float64), problem).get(metric)
    if base is None:
        return (), size
    result: list[Importance] = []
    # All shuffles of a column go through the model together: one call costs far less than many.
    repeated = {name: np.concatenate([values] * repeats) for name, values in table.items()}
    for column in columns:
        shuffled = np.concatenate([table[column][rng.permutation(size)] for _ in range(repeats)])
        scores = np.asarray(score({**repeated, column: shuffled}), dtype=np.float64)
        values = [measure_once(truth, part, problem).get(metric, base) for part in np.split(scores, repeats)]
        losses = sign * (base - np.asarray(values, dtype=np.float64))
        sd = float(losses.std(ddof=1)) if repeats > 1 else 0.0
        result.append(Importance(column, float(losses.mean()), sd, repeats))
    return tuple(sorted(result, key=lambda i: (-i.mean, i.column))), size


def measure_latency(score: Score, arrays: Arrays, *, rows: int, samples: int, rng: np.random.Generator, budget_s: float = 3.0) -> Latency:
    """Return p50 and p99 of the time of answers to requests of `rows` random rows, in milliseconds, after a warm-up.

    Args:
        score: Raw columns to scores; what is timed, with everything in it.
        arrays: Raw columns, shape (n,) each, n >= 1.
        rows: Rows per request.
        samples: How many requests; fewer when the budget ends first, at least 30.
        rng: Source of randomness.
        budget_s: Seconds to spend.
    """
    n = len(next(iter(arrays.values())))
    picks = rng.integers(n, size=(min(256, max(1, samples)), rows))
    requests = [{name: values[pick] for name, values in arrays.items()} for pick in picks]
    deadline = time.perf_counter() + budget_s
    for request in requests[:_WARM_UP]:
        score(request)
        if time.perf_counter() > deadline:
            break
    times: list[int] = []
    for i in range(max(samples, MIN_LATENCY_SAMPLES)):
        request = requests[i % len(requests)]
        start = time.perf_counter_ns()
        score(request)
        times.append(time.perf_counter_ns() - start)
        if len(times) >= MIN_LATENCY_SAMPLES and time.perf_counter() > deadline:
            break
    p50, p99 = (float(v) / 1e6 for v in np.quantile(np.asarray(times, dtype=np.float64), np.asarray([0.5, 0.99])))
    return Latency(rows, len(times), p50, p99)


def describe_host() -> Host:
    """Return what machine this is: CPU model, cores this process may use, system, Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Host(_cpu_model(), cores, f"{platform.system()} {platform.machine()}", version)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "model name":
                return value.strip()[:100]
    return (platform.processor() or platform.machine() or "unknown")[:100]
