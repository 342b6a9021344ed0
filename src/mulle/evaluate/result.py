"""What an evaluation found, as one versioned JSON document. Reports and gates read it; nothing else is kept."""

from typing import Any, Literal

import msgspec

from mulle.formats.envelope import decode_document
from mulle.release.gate_types import Measured, MeasuredSlice
from mulle.stats.calibration import ReliabilityBin
from mulle.stats.estimate import Estimate
from mulle.stats.paired import DeLong, McNemar, PairedDifference

FORMAT = "mulle.evaluation"
VERSION = 1


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One drawn line: a ROC or precision-recall curve of a class, thinned."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts over common bins, one sequence per group of rows (a class; for regression all rows)."""

    label: str
    edges: tuple[float, ...]
    groups: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class SliceResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The metrics of the rows on which `column` has `value`; `small` marks fewer than 30 rows."""

    column: str
    value: str
    n: int
    small: bool
    metrics: dict[str, Estimate]


class Importance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the main metric loses when one raw column is shuffled: mean and standard deviation over the repeats."""

    column: str
    mean: float
    sd: float
    repeats: int


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times of answers to requests of `rows` rows, in milliseconds, through the score function on this host."""

    rows: int
    samples: int
    p50_ms: float
    p99_ms: float


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine the latencies were measured on."""

    cpu: str
    cores: int
    system: str
    python: str


class FoldSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A metric over the folds of a cross-validation."""

    mean: float
    sd: float
    values: tuple[float, ...]


class WorstRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row the model is most wrong about: where it stands, truth, answer, its loss and its bounded raw values."""

    row: int
    target: str
    predicted: str
    score: float
    loss: float
    values: dict[str, str]


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Challenger and champion on the same rows. `delong` and `mcnemar` are there where they apply."""

    champion: str
    n: int
    confidence: float
    metrics: dict[str, PairedDifference]
    delong: DeLong | None = None
    mcnemar: McNemar | None = None
    curves: tuple[Curve, ...] = ()


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything measured on the graph that would be served.

    `confusion` has true classes as rows and answers as columns. `metrics` carry two-sided intervals at `confidence` from
    `n_resamples` bootstrap resamples, stratified by class (regression: by quantile bins of the target).
    """

    format: Literal["mulle.evaluation"] = FORMAT
    version: Literal[1] = VERSION
    task: Literal["binary", "multiclass", "regression"]
    classes: tuple[str, ...]
    positive: str | None
    threshold: float
    main_metric: str
    n: int
    n_missing_target: int
    confidence: float
    n_resamples: int
    metrics: dict[str, Estimate]
    confusion: tuple[tuple[int, ...], ...] = ()
    roc: tuple[Curve, ...] = ()
    precision_recall: tuple[Curve, ...] = ()
    reliability: tuple[ReliabilityBin, ...] = ()
    histogram: Histogram | None = None
    observed: tuple[ReliabilityBin, ...] = ()
    folds: dict[str, FoldSummary] = {}
    slices: tuple[SliceResult, ...] = ()
    slices_left_out: dict[str, int] = {}
    importance: tuple[Importance, ...] = ()
    importance_rows: int = 0
    latency: tuple[Latency, ...] = ()
    host: Host | None = None
    size_bytes: int | None = None
    comparison: Comparison | None = None
    worst: tuple[WorstRow, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; `evaluation_from_bytes` reads its encoding."""
        return msgspec.to_builtins(self)

    def to_bytes(self) -> bytes:
        """Return the document as indented UTF-8 JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def measured(self) -> Measured:
        """Return what gates judge."""
        single = next((entry for entry in self.latency if entry.rows == 1), None)
        note = ""
        if single is not None:
            host = f" on {self.host.cores} cores" if self.host else ""
            note = f"{single.samples:,} single-row answers{host}"
        return Measured(
            metrics=self.metrics,
            n=self.n,
            slices=tuple(MeasuredSlice(s.column, s.value, s.n, s.metrics) for s in self.slices),
            latency_ms={} if single is None else {"p50": single.p50_ms, "p99": single.p99_ms},
            latency_note=note,
            size_bytes=self.size_bytes,
        )

    def differences(self) -> dict[str, PairedDifference] | None:
        """Return metric to difference against the champion, for the gates; None without a champion."""
        return None if self.comparison is None else self.comparison.metrics


def evaluation_from_bytes(data: bytes, *, where: str) -> Evaluation:
    """Return the evaluation in `data`.

    Raises:
        CheckError: not an evaluation, a newer version, or fields that do not fit.
    """
    return decode_document(data, Evaluation, name=FORMAT, version=VERSION, where=where)
