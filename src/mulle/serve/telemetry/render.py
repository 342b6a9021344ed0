"""From the cells of all workers to one page in Prometheus' text format."""

from collections.abc import Iterable, Sequence

import msgspec

from mulle.formats.telemetry import FILES_IGNORED, METRICS, WORKERS, MetricSpec
from mulle.serve.telemetry.cells import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_EXACT_INTEGERS = 2**53
_KEY = msgspec.json.Decoder(list[str])


class Series:
    """One series of one worker."""

    __slots__ = ("record", "spec", "values")

    def __init__(self, spec: MetricSpec, values: tuple[str, ...], record: Record) -> None:
        self.spec = spec
        self.values = values
        self.record = record


class Source:
    """One worker's series.

    Attributes:
        worker: Its slot, -1 for the supervisor.
        started_ns: When the process that writes them began, in ns since 1970.
        alive: Whether a process writes them: gauges of the dead are not told.
        series: What was learnt so far.
    """

    __slots__ = ("alive", "series", "started_ns", "worker")

    def __init__(self, worker: int, started_ns: int, *, alive: bool = True) -> None:
        self.worker = worker
        self.started_ns = started_ns
        self.alive = alive
        self.series: list[Series] = []

    def learn(self, records: Iterable[Record]) -> None:
        """Take in new records; those that are no metric of ours are passed over."""
        for record in records:
            found = parse_key(record)
            if found is not None:
                self.series.append(Series(*found, record))


def parse_key(record: Record) -> tuple[MetricSpec, tuple[str, ...]] | None:
    """Return the metric and the values of its labels, or None for a record that is none of ours."""
    try:
        name, *values = _KEY.decode(record.key)
    except (msgspec.DecodeError, ValueError):
        return None
    spec = METRICS.get(name)
    if spec is None or len(values) != len(spec.labels) or record.n_cells != spec.n_cells:
        return None
    return spec, tuple(values)


def render_metrics(sources: Sequence[Source], *, n_ignored: int) -> str:
    """Return the merged page.

    Args:
        sources: Of all workers, dead ones too.
        n_ignored: Files of the folder that were not read.
    """
    merged: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in METRICS}
    # Of two processes in one slot (one drains while its successor starts) the younger one's word stands.
    for source in sorted(sources, key=lambda s: s.started_ns):
        _merge_source(merged, source)
    merged[WORKERS][()] = [float(sum(source.alive and source.worker >= 0 for source in sources))]
    merged[FILES_IGNORED][()] = [float(n_ignored)]
    lines: list[str] = []
    for name, series in merged.items():
        if series:
            spec = METRICS[name]
            lines += (f"# HELP {name} {spec.help}", f"# TYPE {name} {spec.kind}")
            labels = (*spec.labels, "worker") if spec.merge == "worker" else spec.labels
            for values in sorted(series):
                lines += _histogram_lines(spec, values, series[values]) if spec.buckets else _line(name, labels, values, series[values][0])
    return "\n".join(lines) + "\n"


def _merge_source(merged: dict[str, dict[tuple[str, ...], list[float]]], source: Source) -> None:
    worker = "supervisor" if source.worker < 0 else str(source.worker)
    for one in source.series:
        spec, record = one.spec, one.record
        gauge = spec.kind == "gauge"
        if gauge and not (source.alive and record.view[record.state]):
            continue
        values = (*one.values, worker) if spec.merge == "worker" else one.values
        new = [float(x) for x in record.view[record.first : record.first + record.n_cells]]
        series = merged[spec.name]
        old = series.get(values)
        if old is None or (spec.merge == "worker" and gauge):
            series[values] = new
        elif spec.merge in {"sum", "worker"}:
            series[values] = [a + b for a, b in zip(old, new, strict=True)]
        else:
            series[values] = [max(old[0], new[0]) if spec.merge == "max" else min(old[0], new[0])]


def _line(name: str, labels: Sequence[str], values: Sequence[str], x: float) -> list[str]:
    return [f"{name}{_labels(labels, values)} {_number(x)}"]


def _histogram_lines(spec: MetricSpec, values: tuple[str, ...], cells: list[float]) -> list[str]:
    # The count is that of the buckets, so that the page agrees with itself while a worker counts on.
    running = 0.0
    lines: list[str] = []
    start = _labels(spec.labels, values)[:-1] + "," if values else "{"
    for bound, n in zip((*spec.buckets, float("inf")), cells[1:], strict=True):
        running += n
        lines.append(f'{spec.name}_bucket{start}le="{_number(bound)}"}} {_number(running)}')
    labels = _labels(spec.labels, values)
    return [*lines, f"{spec.name}_sum{labels} {_number(cells[0])}", f"{spec.name}_count{labels} {_number(running)}"]


def _labels(labels: Sequence[str], values: Sequence[str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{label}="{_escape(value)}"' for label, value in zip(labels, values, strict=True)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(x: float) -> str:
    if x == float("inf"):
        return "+Inf"
    if x != x:  # noqa: PLR0124 - NaN is the only number that differs from itself
        return "NaN"
    return str(int(x)) if x.is_integer() and abs(x) < _EXACT_INTEGERS else repr(x)
