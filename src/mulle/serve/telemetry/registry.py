"""Counters, gauges and histograms of one worker: handles bound once, then a store into mapped memory per event.

A handle belongs to one thread: adding is read, add, store, and two threads on one cell would lose counts. Everything of the
data plane counts on its event loop; what happens in a thread is told by a collector that raises a counter to the thread's own.
"""

import hashlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.formats import telemetry as names
from mulle.formats.telemetry import METRICS, MetricSpec
from mulle.serve.telemetry.cells import SUFFIX, CellReader, Cells, CellWriter, NoFileError, Record
from mulle.serve.telemetry.render import Source, parse_key, render_metrics

LOG = logging.getLogger("mulle.serve")
_MANY = 36  # from here numpy's fixed cost is less than a loop's
_MAX_BOUND = 10_000
_DIGEST_CHARS = 8


class Cell:
    """One number: a counter or a gauge.

    `view[index]` is the number itself, for callers who spare the call: `view[index] += n`.
    """

    __slots__ = ("index", "view")

    def __init__(self, view: Cells, index: int) -> None:
        self.view = view
        self.index = index

    def add(self, n: float = 1.0) -> None:
        """Add `n`; not negative for a counter."""
        self.view[self.index] += n

    def put(self, x: float) -> None:
        """Set a gauge."""
        self.view[self.index] = x

    def raise_to(self, x: float) -> None:
        """Set a counter to what somebody who outlives this worker has counted (its own totals: `MetricsRegistry.total`)."""
        self.view[self.index] = max(self.view[self.index], x)

    @property
    def value(self) -> float:
        """What this worker has counted, or put."""
        return self.view[self.index]


class Total:
    """A counter told from a total that somebody in this process keeps.

    It goes on from what the worker before this one has counted: a total starts from 0 with its process, the counter must not.
    """

    __slots__ = ("_cell", "_earlier")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._earlier = cell.value

    def tell(self, total: float) -> None:
        """Count up to `total`, of this process."""
        self._cell.put(self._earlier + total)


class HistogramCells:
    """Counts per bucket and the sum of what was observed. `view[first]` is the sum, the counts follow."""

    __slots__ = ("_array", "bounds", "counts", "first", "view")

    def __init__(self, view: Cells, first: int, bounds: tuple[float, ...]) -> None:
        self.view = view
        self.first = first
        self.counts = first + 1
        self.bounds = bounds
        self._array = np.array(bounds)

    def observe(self, x: float) -> None:
        """Count one value; NaN and negative ones are not counted, because a sum that is NaN stays so for ever."""
        if x >= 0.0:
            view = self.view
            view[self.counts + bisect_left(self.bounds, x)] += 1.0
            view[self.first] += x

    def observe_many(self, values: Sequence[float] | NDArray[Any]) -> None:
        """Count many values at once, each like `observe`.

        Args:
            values: Any number of them; an array of any numeric type, shape (n,).
        """
        view, counts, bounds = self.view, self.counts, self.bounds
        if len(values) < _MANY:
            total = 0.0
            for x in values.tolist() if isinstance(values, np.ndarray) else values:
                if x >= 0.0:
                    view[counts + bisect_left(bounds, x)] += 1.0
                    total += x
            view[self.first] += total
            return
        array = np.asarray(values, dtype=np.float64)
        array = array[array >= 0.0]
        found = np.bincount(np.searchsorted(self._array, array, side="left"))
        for i, n in enumerate(found.tolist(), start=counts):
            if n:
                view[i] += n
        view[self.first] += float(array.sum())


class ClassCounter:
    """Rows by predicted class of one revision; the first `MAX_CLASSES` by name, then `other`."""

    __slots__ = ("_cells", "_last")

    def __init__(self, registry: "MetricsRegistry", deployment: str, revision: str, classes: Sequence[str]) -> None:
        told = [*classes[: names.MAX_CLASSES], *([names.OTHER] if len(classes) > names.MAX_CLASSES else [])]
        self._cells = [registry.counter(names.PREDICTIONS, deployment=deployment, revision=revision, **{"class": name}) for name in told]
        self._last = len(told) - 1

    def add(self, index: int, n: float = 1.0) -> None:
        """Count `n` rows of the class at `index` of the manifest's classes."""
        self._cells[min(index, self._last)].add(n)

    def add_many(self, indices: NDArray[np.integer[Any]]) -> None:
        """Count one row per index; shape (n,), each within the manifest's classes."""
        if self._last >= 0:
            found = np.bincount(np.minimum(indices, self._last))
            for cell, n in zip(self._cells, found.tolist(), strict=False):
                if n:
                    cell.view[cell.index] += n


class MetricsRegistry:
    """All metrics of one worker, and the page of all workers.

    Args:
        folder: Shared by the workers of one server (see `shared_folder`). None: this process counts for itself.
        worker: Slot of this worker, from 0; `cells.SUPERVISOR` for the process above them.

    Note:
        A folder that cannot be used is logged, and this process then counts for itself: telemetry never stops answers.
    """

    def __init__(self, folder: Path | None = None, *, worker: int = 0) -> None:
        self.collectors: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._records: dict[bytes, Record] = {}
        self._bound: dict[tuple[str, names.MetricKind, tuple[tuple[str, str], ...]], Record] = {}
        self._gauges: dict[str, set[bytes]] = {}
        self._n_series: dict[str, int] = {}
        self._readers: dict[str, tuple[int, CellReader | None]] = {}
        self._sources: dict[str, Source] = {}
        self._folder = folder
        try:
            self._writer = CellWriter(folder, worker)
        except OSError as error:
            LOG.warning("workers cannot share their metrics in %s (%s): this one tells its own alone", folder, error.strerror or error)
            self._folder = None
            self._writer = CellWriter(None, worker)
        for record in self._writer.records:
            self._adopt(record)
        self._own = Source(worker, time.time_ns())
        self._n_own = 0
        for spec in METRICS.values():
            if spec.kind == "counter" and not spec.labels and spec.merge == "sum":
                self.counter(spec.name)

    @property
    def worker(self) -> int:
        """Slot of this worker."""
        return self._writer.worker

    def counter(self, name: str, **labels: str) -> Cell:
        """Return the handle of a counter; the same series for the same labels, also after a restart.

        Raises:
            ValueError: no such counter, or not its labels.
        """
        record = self._series(name, "counter", labels)
        return Cell(record.view, record.first)

    def total(self, name: str, **labels: str) -> Total:
        """Return what tells a counter from a total kept in this process; bind it once, and count the series nowhere else.

        Raises:
            ValueError: no such counter, or not its labels.
        """
        return Total(self.counter(name, **labels))

    def gauge(self, name: str, **labels: str) -> Cell:
        """Return the handle of a gauge; one that was forgotten is told again, from 0.

        Raises:
            ValueError: no such gauge, or not its labels.
        """
        record = self._series(name, "gauge", labels)
        return Cell(record.view, record.first)

    def histogram(self, name: str, **labels: str) -> HistogramCells:
        """Return the handle of a histogram.

        Raises:
            ValueError: no such histogram, or not its labels.
        """
        record = self._series(name, "histogram", labels)
        return HistogramCells(record.view, record.first, METRICS[name].buckets)

    def classes(self, deployment: str, revision: str, classes: Sequence[str]) -> ClassCounter:
        """Return the counter of a revision's predicted classes."""
        return ClassCounter(self, deployment, revision, classes)

    def forget(self, name: str, **labels: str) -> None:
        """Tell the gauges `name` of this worker no more whose labels include `labels`; without labels all of them.

        Raises:
            ValueError: `name` is no gauge: what was counted stays counted.
        """
        spec = _spec(name, "gauge")
        wanted = [(spec.labels.index(label), _bounded(value)) for label, value in labels.items()]
        with self._lock:
            for key in self._gauges.get(name, ()):
                record = self._records[key]
                if record.view[record.state]:
                    values = msgspec.json.decode(key)[1:]
                    if all(values[i] == value for i, value in wanted):
                        record.view[record.state] = 0.0
                        self._n_series[name] -= 1

    def collect(self) -> None:
        """Run the collectors: call it once a second, so that siblings tell gauges that are no older."""
        for collector in self.collectors:
            collector()

    def render(self) -> str:
        """Return what all workers of the server tell, in Prometheus' text format."""
        self.collect()
        with self._lock:
            fresh, self._n_own = self._writer.records[self._n_own :], len(self._writer.records)
            self._own.learn(fresh)
            sources, n_ignored = self._siblings()
            return render_metrics([self._own, *sources], n_ignored=n_ignored)

    def close(self) -> None:
        """Leave: counts stay for the others, gauges are told no more. Nothing may be counted afterwards."""
        self._writer.close()

    def _series(self, name: str, kind: names.MetricKind, labels: Mapping[str, str]) -> Record:
        bound = (name, kind, tuple(labels.items()))
        record = self._bound.get(bound)
        if record is None or not record.view[record.state]:
            record, refused = self._find(name, kind, labels)
            if not refused and len(self._bound) < _MAX_BOUND:
                self._bound[bound] = record
        return record

    def _find(self, name: str, kind: names.MetricKind, labels: Mapping[str, str]) -> tuple[Record, bool]:
        """Return the series, and whether it is the one for all that are too many."""
        spec = _spec(name, kind)
        if set(labels) != set(spec.labels):
            raise ValueError(f"{name} has the labels {', '.join(spec.labels) or '(none)'}, not {', '.join(labels) or '(none)'}")
        key = msgspec.json.encode([name, *(_bounded(labels[label]) for label in spec.labels)])
        with self._lock:
            record = self._records.get(key)
            told = record is not None and record.view[record.state] != 0.0
            if record is not None and told:
                return record, False
            if self._n_series.get(name, 0) < names.MAX_SERIES:
                return self._tell(spec, key, record), False
        # Only a metric with labels can have as many. No room for `other` either would mean that `other` is there.
        self.counter(names.SERIES_REFUSED, metric=name).add()
        other = msgspec.json.encode([name, *(names.OTHER for _ in spec.labels)])
        with self._lock:
            return self._records.get(other) or self._tell(spec, other, None), True

    def _tell(self, spec: MetricSpec, key: bytes, record: Record | None) -> Record:
        if record is None:
            record = self._records[key] = self._writer.add(key, spec.n_cells)
            if spec.kind == "gauge":
                self._gauges.setdefault(spec.name, set()).add(key)
        else:
            record.view[record.first] = 0.0
            record.view[record.state] = 1.0
        self._n_series[spec.name] = self._n_series.get(spec.name, 0) + 1
        return record

    def _adopt(self, record: Record) -> None:
        """Go on with a series of the worker whose place this one takes."""
        found = parse_key(record)
        if found is None:
            return
        spec, _ = found
        self._records[record.key] = record
        if spec.kind == "gauge":
            # What the dead one last said of itself is no longer so.
            record.view[record.state] = 0.0
            self._gauges.setdefault(spec.name, set()).add(record.key)
        else:
            self._n_series[spec.name] = self._n_series.get(spec.name, 0) + 1

    def _siblings(self) -> tuple[list[Source], int]:
        if self._folder is None:
            return [], 0
        sources: list[Source] = []
        n_ignored = 0
        found: dict[str, tuple[int, CellReader | None]] = {}
        try:
            paths = sorted(self._folder.iterdir())
        except OSError:
            return [], 1
        for path in paths:
            # Others may share other things in the folder.
            if path == self._writer.path or path.suffix != SUFFIX:
                continue
            try:
                inode = path.lstat().st_ino
                known = self._readers.get(path.name)
                reader = known[1] if known is not None and known[0] == inode else _reader(path)
                found[path.name] = (inode, reader)
                if reader is None:
                    n_ignored += 1
                    continue
                fresh = list(reader.refresh())
                n_ignored += reader.damaged
                identity = reader.identity
                if identity is not None:
                    source = self._sources.get(path.name) if known is not None and known[1] is reader else None
                    if source is None:
                        source = self._sources[path.name] = Source(identity[0], 0)
                    source.learn(fresh)
                    source.started_ns = identity[2]
                    source.alive = reader.is_alive()
                    sources.append(source)
            except OSError:
                n_ignored += 1
        self._readers = found
        return sources, n_ignored


def _reader(path: Path) -> CellReader | None:
    try:
        return CellReader(path)
    except (OSError, NoFileError):
        return None


def _spec(name: str, kind: names.MetricKind) -> MetricSpec:
    spec = METRICS.get(name)
    if spec is None or spec.kind != kind:
        raise ValueError(f"there is no {kind} {name!r}: see mulle.formats.telemetry.METRICS")
    return spec


def _bounded(value: str) -> str:
    # A lone surrogate has no UTF-8, and msgspec would refuse it.
    value = value.encode("utf-8", "replace").decode("utf-8")
    if len(value) <= names.MAX_LABEL_CHARS:
        return value
    digest = hashlib.blake2b(value.encode(), digest_size=_DIGEST_CHARS // 2).hexdigest()
    return f"{value[: names.MAX_LABEL_CHARS - _DIGEST_CHARS - 1]}~{digest}"
