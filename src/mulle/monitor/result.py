"""What a check of one window found: plain values, printable as JSON and as text."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "drift", "too few rows", "incomplete"]
TestKind = Literal["distribution", "missing", "range", "new values"]
FORMAT = "mulle.monitor-report"
VERSION = 1


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """How a window is judged.

    Attributes:
        alpha: Probability, for one window in which nothing changed, of the verdict `drift`; over all columns and tests together.
        min_rows: Fewer rows than this are not judged.
        min_effect: A distribution that certainly changed, but by less than this share of rows, is said and not alarmed.
        max_examples: How many new values are shown per column.
    """

    alpha: float = 0.05
    min_rows: int = 100
    min_effect: float = 0.01
    max_examples: int = 5


@dataclass(frozen=True, slots=True)
class TestResult:
    """One test of one column.

    Attributes:
        kind: What was asked: `distribution`, `missing`, `range` or `new values`.
        method: `KS`, `chi-square`, `Fisher exact`, `order` or `union bound`.
        statistic: As the method defines it.
        p_value: Of this test alone.
        p_adjusted: After Holm's correction over all tests of the check.
        effect: Share of rows in [0, 1] concerned: KS distance, total variation, difference of shares.
        sentence: What changed, with the numbers.
        alarm: Whether it makes the verdict `drift`.
    """

    kind: TestKind
    method: str
    statistic: float
    p_value: float
    effect: float
    sentence: str
    p_adjusted: float = 1.0
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two histograms of one column: shares per bin, each summing to 1.

    Numbers have `edges` (bins + 1 of them; what lies beyond is in the first and last bin), categories have `labels`.
    """

    labels: tuple[str, ...]
    edges: tuple[float, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column of the window beside the baseline.

    Attributes:
        name: The column, or `score` and `predicted class` for what the model answered.
        type: `number`, `datetime`, `boolean` or `text`.
        n: Values present in the window.
        n_missing: Rows of the window without a value.
        n_reference: Values present in the reference.
        tests: Those that could be made.
        sentence: The most telling sentence about the column.
        anomalies: What is odd whether or not a test alarms: new values, values out of range, missing where none were.
        figures: Distances for the eye: psi, psi_cut, wasserstein, jensen_shannon, medians …; None where undefined.
        comparison: Histograms; None when a side is empty.
    """

    name: str
    type: str
    n: int
    n_missing: int
    n_reference: int
    tests: tuple[TestResult, ...]
    sentence: str
    anomalies: tuple[str, ...] = ()
    figures: dict[str, float | None] = field(default_factory=dict[str, float | None])
    comparison: Comparison | None = None

    @property
    def drifted(self) -> bool:
        """Whether a test of this column alarms."""
        return any(test.alarm for test in self.tests)

    @property
    def p_adjusted(self) -> float:
        """The smallest adjusted p-value; 1 without tests."""
        return min((test.p_adjusted for test in self.tests), default=1.0)

    @property
    def effect(self) -> float:
        """The largest effect among tests; 0 without any."""
        return max((test.effect for test in self.tests), default=0.0)


@dataclass(frozen=True, slots=True)
class WindowInfo:
    """Which rows were looked at, and whether the log can be trusted about them.

    Attributes:
        deployment: Whose predictions.
        model: The model's name.
        model_version: The version whose baseline is the reference; None when served from a bundle alone.
        revision: Its revision number.
        bundle_digest: Its bundle.
        since: ISO time of the first row looked at; empty when there is none.
        until: ISO time of the last.
        n_other_revisions: Rows of other revisions in the span: left out.
        n_refused: Requests refused (4xx) in the span, as far as the log counts them.
        n_failed: Requests failed (5xx).
        gaps: Why the log is incomplete; empty when it is whole.
        notes: What else a reader should know.
    """

    deployment: str = ""
    model: str = ""
    model_version: int | None = None
    revision: int | None = None
    bundle_digest: str = ""
    since: str = ""
    until: str = ""
    n_other_revisions: int = 0
    n_refused: int = 0
    n_failed: int = 0
    gaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Performance:
    """How the model did on the rows whose label has arrived, beside what its evaluation promised.

    Attributes:
        n_labelled: Rows of the window with a label.
        n_rows: Rows of the window.
        metrics: Metric to value on the labelled rows; None where it is undefined (one class only …).
        evaluation: The same metrics at evaluation, where known.
        note: What to keep in mind.
    """

    n_labelled: int
    n_rows: int
    metrics: dict[str, float | None]
    evaluation: dict[str, float]
    note: str = ""

    def render_text(self) -> str:
        """Return one line: how many labels, and each metric beside its promise."""
        parts = [
            f"{name} {'undefined' if value is None else f'{value:.3f}'}"
            + (f" (evaluation {self.evaluation[name]:.3f})" if name in self.evaluation else "")
            for name, value in self.metrics.items()
        ]
        return f"{self.n_labelled:,} of {self.n_rows:,} rows: {', '.join([*parts, *([self.note] if self.note else [])])}"


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """The verdict on one window and everything it rests on; columns come most changed first.

    `files` are where it was written, relative to the state folder.
    """

    verdict: Verdict
    summary: str
    n_rows: int
    n_reference_rows: int
    n_tests: int
    settings: DriftSettings
    columns: tuple[ColumnReport, ...]
    window: WindowInfo = field(default_factory=WindowInfo)
    performance: Performance | None = None
    files: tuple[str, ...] = ()

    @property
    def drifted(self) -> tuple[ColumnReport, ...]:
        """The columns that alarm, most changed first."""
        return tuple(column for column in self.columns if column.drifted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON with format and version."""
        fields = asdict(self)
        for plain, column in zip(fields["columns"], self.columns, strict=True):
            plain.update(drifted=column.drifted, p_adjusted=column.p_adjusted, effect=column.effect)
        return {"format": FORMAT, "version": VERSION, "drifted": [column.name for column in self.drifted], **fields}

    def render_text(self) -> str:
        """Return the report for a terminal: the verdict, what changed, what is odd."""
        lines = [f"{self.verdict}: {self.summary}"]
        lines += [f"  drift    {test.sentence}" for column in self.drifted for test in column.tests if test.alarm]
        lines += [f"  odd      {column.name}: {text}" for column in self.columns if not column.drifted for text in column.anomalies]
        lines += [f"  log      {text}" for text in (*self.window.gaps, *self.window.notes)]
        if self.performance is not None:
            lines.append(f"  labels   {self.performance.render_text()}")
        return "\n".join(lines)
