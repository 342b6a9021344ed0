"""Counters of one process, and their Prometheus text. Plain dictionaries: everything runs on one event loop."""

import os
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mulle.formats import telemetry as names

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_EXACT_INTEGERS = 2**53
_Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts per latency bucket, with sum and count."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(names.LATENCY_BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one request."""
        self.counts[bisect_left(names.LATENCY_BUCKETS_S, seconds)] += 1
        self.total += seconds


class Metrics:
    """What the data plane counts."""

    def __init__(self) -> None:
        self.started_s = time.time()
        self.values: dict[str, dict[_Labels, float]] = {name: {} for name in names.HELP}
        self.latency: dict[_Labels, Histogram] = {}
        self.collectors: list[Callable[[], None]] = []

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        series = self.values[name]
        key = tuple(labels.items())
        series[key] = series.get(key, 0) + amount

    def put(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self.values[name][tuple(labels.items())] = value

    def clear(self, name: str) -> None:
        """Forget every series of a gauge, before it is put anew."""
        self.values[name].clear()

    def observe(self, seconds: float, **labels: str) -> None:
        """Count one prediction request's latency."""
        key = tuple(labels.items())
        histogram = self.latency.get(key)
        if histogram is None:
            histogram = self.latency[key] = Histogram()
        histogram.observe(seconds)

    def render(self) -> str:
        """Return everything in Prometheus' text format."""
        for collect in self.collectors:
            collect()
        lines: list[str] = []
        for name, (kind, text) in names.HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                for labels, histogram in self.latency.items():
                    lines += _histogram_lines(name, labels, histogram)
            else:
                lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in self.values[name].items()]
        return "\n".join([*lines, *_process_lines(self.started_s)]) + "\n"


def _histogram_lines(name: str, labels: _Labels, histogram: Histogram) -> Iterable[str]:
    running = 0
    for bound, count in zip((*names.LATENCY_BUCKETS_S, float("inf")), histogram.counts, strict=True):
        running += count
        yield f"{name}_bucket{_labels((*labels, ('le', _number(bound))))} {running}"
    yield f"{name}_sum{_labels(labels)} {_number(histogram.total)}"
    yield f"{name}_count{_labels(labels)} {running}"


def _process_lines(started_s: float) -> list[str]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # Linux counts ru_maxrss in KiB, macOS in bytes; the current size is only in /proc.
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    statm = Path("/proc/self/statm")
    if statm.exists():
        resident = int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    rows: Mapping[str, tuple[str, str, float]] = {
        "process_cpu_seconds_total": ("counter", "Total user and system CPU time spent in seconds.", usage.ru_utime + usage.ru_stime),
        "process_resident_memory_bytes": ("gauge", "Resident memory size in bytes.", resident),
        "process_start_time_seconds": ("gauge", "Start time of the process since unix epoch in seconds.", started_s),
    }
    lines: list[str] = []
    for name, (kind, text, value) in rows.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {_number(value)}"]
    return lines


def _labels(labels: _Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < _EXACT_INTEGERS else repr(float(value))
