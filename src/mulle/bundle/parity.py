"""Parity: the graph that will be served says what the Python model says.

Metrics must agree within 1e-3. Rows are counted as well, but limited by a share instead of being forbidden: an honest
forest may send a row that sits on a split to the other side when a feature was computed in single precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.core.labels import label_text
from mulle.core.project import Task
from mulle.stats import metrics

FloatArray = NDArray[np.float64]

ROW_TOLERANCE = 1e-4
DEFAULT_METRIC_GAP = 1e-3
DEFAULT_DISAGREEING_SHARE = 0.01
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MetricGap:
    """One metric of both, and how far they are apart; errors in the target's unit are divided by its standard deviation."""

    name: str
    python: float
    graph: float
    gap: float
    ok: bool


@dataclass(frozen=True, slots=True)
class DisagreeingRow:
    """One row both score differently; `row` counts from 0 in the order given."""

    row: int
    python: tuple[float, ...]
    graph: tuple[float, ...]
    difference: float


@dataclass(frozen=True, slots=True)
class Parity:
    """What the comparison found.

    Attributes:
        metrics: One entry per metric that is defined on these rows.
        n_rows: Rows compared.
        n_disagreeing: Rows whose largest difference exceeds `tolerance`, or that are not finite in one of the two.
        n_other_class: Rows whose most probable class differs; 0 for regression.
        max_difference: Largest difference of any row; infinite when one side is not finite.
        tolerance: Absolute for probabilities; for predictions relative to max(1, |prediction|).
        max_metric_gap: Largest gap allowed.
        max_disagreeing_share: Largest share of disagreeing rows allowed.
        examples: Up to five rows, the farthest apart first.
        skipped: Metric to why it has no value here.
    """

    metrics: tuple[MetricGap, ...]
    n_rows: int
    n_disagreeing: int
    n_other_class: int
    max_difference: float
    tolerance: float
    max_metric_gap: float
    max_disagreeing_share: float
    examples: tuple[DisagreeingRow, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def disagreeing_share(self) -> float:
        """Share of rows that disagree, in [0, 1]."""
        return self.n_disagreeing / self.n_rows

    @property
    def ok(self) -> bool:
        """Whether all scores are finite, and every metric and the share of rows within their limits."""
        return (
            bool(np.isfinite(self.max_difference))
            and all(metric.ok for metric in self.metrics)
            and self.disagreeing_share <= self.max_disagreeing_share
        )

    @property
    def reason(self) -> str:
        """One sentence with the numbers compared."""
        worst = max(self.metrics, key=lambda metric: metric.gap, default=None)
        allowed = f"allowed {self.max_disagreeing_share:.1%}"
        rows = f"{self.n_disagreeing:,} of {self.n_rows:,} rows differ by more than {self.tolerance:g} ({allowed})"
        if worst is None:
            return rows
        return f"{worst.name} {worst.python:.6f} in Python, {worst.graph:.6f} in the graph (allowed gap {self.max_metric_gap:g}); {rows}"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "ok": self.ok,
            "reason": self.reason,
            "metrics": [{"name": m.name, "python": m.python, "graph": m.graph, "gap": m.gap, "ok": m.ok} for m in self.metrics],
            "skipped": self.skipped,
            "n_rows": self.n_rows,
            "n_disagreeing": self.n_disagreeing,
            "n_other_class": self.n_other_class,
            "disagreeing_share": self.disagreeing_share,
            "max_difference": self.max_difference if np.isfinite(self.max_difference) else None,
            "tolerance": self.tolerance,
            "max_metric_gap": self.max_metric_gap,
            "max_disagreeing_share": self.max_disagreeing_share,
            "examples": [
                {
                    "row": e.row,
                    "python": [_finite(v) for v in e.python],
                    "graph": [_finite(v) for v in e.graph],
                    "difference": _finite(e.difference),
                }
                for e in self.examples
            ],
        }


def check_parity(
    python_scores: ArrayLike,
    graph_scores: ArrayLike,
    y: Any,
    *,
    task: Task,
    classes: Sequence[str] = (),
    positive: str | None = None,
    max_metric_gap: float = DEFAULT_METRIC_GAP,
    max_disagreeing_share: float = DEFAULT_DISAGREEING_SHARE,
) -> Parity:
    """Return how the Python model's and the graph's scores of the same rows compare.

    Args:
        python_scores: Shape (n, k) probabilities, or (n, 1) predictions.
        graph_scores: The same shape.
        y: Shape (n,): class numbers 0 … k-1, or labels among `classes`; for regression numbers. Rows whose target is
            missing count as rows, not in metrics. None: rows only.
        task: What the scores are.
        classes: The labels in the order of the columns.
        positive: For `binary`: the label that counts as 1; None: the last.
        max_metric_gap: Largest gap of a metric, >= 0.
        max_disagreeing_share: Largest share of rows that may disagree, in [0, 1].

    Raises:
        SpecError: shapes that do not fit, no rows, or labels outside `classes`.
    """
    python, graph = np.asarray(python_scores, dtype=np.float64), np.asarray(graph_scores, dtype=np.float64)
    if python.ndim != 2 or python.shape != graph.shape or len(python) == 0:  # noqa: PLR2004  (rows and columns)
        raise SpecError(
            "parity-shape",
            f"the Python model gives scores of shape {python.shape}, the graph {graph.shape}",
            fix="score the same rows with both; there must be at least one",
        )
    scale = np.maximum(1.0, np.abs(python)) if task == "regression" else 1.0
    difference = (np.abs(python - graph) / scale).max(axis=1)
    difference[~np.isfinite(difference)] = np.inf
    disagreeing = np.flatnonzero(difference > ROW_TOLERANCE)
    farthest = disagreeing[np.argsort(-difference[disagreeing], kind="stable")][:MAX_SHOWN]
    gaps: list[MetricGap] = []
    skipped: dict[str, str] = {}
    if y is not None and np.isfinite(python).all() and np.isfinite(graph).all():
        labels = np.asarray(y).reshape(-1)
        if len(labels) != len(python):
            raise SpecError("parity-shape", f"there are {len(labels):,} targets for {len(python):,} rows", fix="give one target per row")
        known = np.array([value is not None and value == value for value in labels.tolist()])  # noqa: PLR0124  (NaN is not itself)
        here, there = python[known], graph[known]
        spread = (float(np.std(labels[known].astype(np.float64))) if task == "regression" and known.any() else 0.0) or 1.0
        measures = (
            _regression(labels[known]) if task == "regression" else _classification(labels[known], classes, positive, python.shape[1])
        )
        for name, measure in measures.items():
            try:
                a, b = measure(here), measure(there)
            except metrics.MetricUndefinedError as error:
                skipped[name] = error.what
                continue
            gap = abs(a - b) / (spread if name in {"rmse", "mae"} else 1.0)
            gaps.append(MetricGap(name, a, b, gap, gap <= max_metric_gap))
    return Parity(
        metrics=tuple(gaps),
        n_rows=len(python),
        n_disagreeing=len(disagreeing),
        n_other_class=0 if task == "regression" else int((python.argmax(axis=1) != graph.argmax(axis=1)).sum()),
        max_difference=float(difference.max()),
        tolerance=ROW_TOLERANCE,
        max_metric_gap=max_metric_gap,
        max_disagreeing_share=max_disagreeing_share,
        examples=tuple(DisagreeingRow(int(i), tuple(python[i].tolist()), tuple(graph[i].tolist()), float(difference[i])) for i in farthest),
        skipped=skipped,
    )


def require_parity(
    parity: Parity,
    *,
    fix: str = "use another estimator or simpler transformers; or allow more rows: [export] max_disagreeing_share in mulle.toml",
) -> None:
    """Return if the graph says what the Python model says.

    Raises:
        CheckError: it does not; the numbers compared and up to five rows are in the facts.
    """
    if parity.ok:
        return
    facts = {
        f"row {e.row}": f"Python {', '.join(f'{v:.6f}' for v in e.python)}; graph {', '.join(f'{v:.6f}' for v in e.graph)}"
        for e in parity.examples
    }
    raise CheckError(
        "export-parity",
        f"the exported graph does not say what the Python model says: {parity.reason}",
        fix=fix,
        facts=facts,
    )


def _classification(y: Any, classes: Sequence[str], positive: str | None, k: int) -> dict[str, Callable[[FloatArray], float]]:
    codes = class_codes(y, classes, k)
    one = list(classes).index(positive) if positive is not None and positive in classes else 1
    return {
        "accuracy": lambda p: _value(metrics.accuracy(metrics.confusion(codes, p.argmax(axis=1).astype(np.int64), k))),
        "roc_auc": lambda p: _value(metrics.roc_auc(codes, p, positive=one)),
        "pr_auc": lambda p: _value(metrics.average_precision(codes, p, positive=one)),
        "log_loss": lambda p: _value(metrics.mean(metrics.log_losses(codes, p))),
    }


def _regression(y: Any) -> dict[str, Callable[[FloatArray], float]]:
    truth = np.asarray(y, dtype=np.float64)
    return {
        "rmse": lambda p: _value(metrics.rmse(truth, p[:, 0])),
        "mae": lambda p: _value(metrics.mae(truth, p[:, 0])),
        "r2": lambda p: _value(metrics.r2(truth, p[:, 0])),
    }


def class_codes(y: Any, classes: Sequence[str], k: int) -> NDArray[np.int64]:
    """Return labels as class numbers 0 … k-1: texts are looked up in `classes`, numbers are taken as they are.

    Raises:
        SpecError: a label that is not among the classes.
    """
    values = list(np.asarray(y).reshape(-1).tolist())
    if values and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < k for v in values):
        return np.asarray(values, dtype=np.int64)
    order = {name: i for i, name in enumerate(classes)}
    unknown = next((v for v in values if label_text(v) not in order), None)
    if unknown is not None:
        raise SpecError(
            "parity-label", f"the label {unknown!r} is not among the classes {list(classes)[:8]!r}", fix="give the labels the model learnt"
        )
    return np.asarray([order[label_text(v)] for v in values], dtype=np.int64)


def _value(values: FloatArray) -> float:
    return float(np.ravel(values)[0])


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
