"""The offline checks as values, what they are given, and what they answer. `release/gate.py` decides."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mulle.core.errors import SpecError
from mulle.stats.estimate import Estimate

Outcome = Literal["pass", "fail", "inconclusive"]
OnInconclusive = Literal["hold", "fail"]

DEFAULT_CONFIDENCE = 0.95
DEFAULT_MIN_ROWS = 30
VERDICT_FORMAT = "mulle.verdict"
VERDICT_VERSION = 1


@dataclass(frozen=True, slots=True)
class BoundGate:
    """A metric is at least, or at most, a number.

    Attributes:
        metric: Name of the metric.
        side: `min` or `max`.
        bound: The number; equality passes.
        judge: `point`: the figure itself decides. `interval`: its whole interval must lie on the right side to pass and on
            the wrong side to fail; in between the gate is inconclusive.
    """

    metric: str
    side: Literal["min", "max"]
    bound: float
    judge: Literal["point", "interval"] = "point"

    @property
    def name(self) -> str:
        """How results and settings call this gate."""
        return f"{self.metric}.{self.side}"


@dataclass(frozen=True, slots=True)
class ChampionGate:
    """A metric is no worse than the champion's on the same rows, but for a margin.

    Attributes:
        metric: Name of the metric.
        confidence: Of the one-sided bounds, in (0.5, 1).
        margin: The loss that is tolerated, >= 0, in the metric's unit; None: what the holdout can resolve.
    """

    metric: str
    confidence: float = DEFAULT_CONFIDENCE
    margin: float | None = None

    @property
    def name(self) -> str:
        """How results and settings call this gate."""
        return f"{self.metric}.no_worse_than_champion"


@dataclass(frozen=True, slots=True)
class FairnessGate:
    """A metric differs by at most `max_gap` between any two values of a column.

    Attributes:
        column: The column whose values are compared.
        max_gap: Largest difference, in the metric's unit.
        metric: Name of the metric.
        min_rows: A value with fewer rows cannot be judged.
        confidence: Of the one-sided bounds on a difference.
        small: What values with too few rows do: make the gate inconclusive, or stand aside (and be named).
    """

    column: str
    max_gap: float
    metric: str = "accuracy"
    min_rows: int = DEFAULT_MIN_ROWS
    confidence: float = DEFAULT_CONFIDENCE
    small: Literal["inconclusive", "ignore"] = "inconclusive"

    @property
    def name(self) -> str:
        """How results and settings call this gate."""
        return f"fairness.{self.column}"


@dataclass(frozen=True, slots=True)
class LatencyGate:
    """A quantile of the time of single-row answers on this host is at most `max_ms` milliseconds."""

    quantile: Literal["p50", "p99"]
    max_ms: float

    @property
    def name(self) -> str:
        """How results and settings call this gate."""
        return f"latency_ms.{self.quantile}_max"


@dataclass(frozen=True, slots=True)
class SizeGate:
    """The graph has at most `max_bytes` bytes."""

    max_bytes: int

    @property
    def name(self) -> str:
        """How results and settings call this gate."""
        return "size_bytes.max"


Gate = BoundGate | ChampionGate | FairnessGate | LatencyGate | SizeGate


@dataclass(frozen=True, slots=True)
class MeasuredSlice:
    """The metrics of the rows on which a column has one value."""

    column: str
    value: str
    n: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Measured:
    """What gates judge: the figures of one evaluation.

    Attributes:
        metrics: Name to estimate, on the whole holdout.
        n: Rows of the holdout.
        slices: One entry per column and value.
        latency_ms: `p50` and `p99` of single-row answers, milliseconds.
        latency_note: What the latencies rest on: samples, host.
        size_bytes: Size of the graph; None when it is not known.
    """

    metrics: Mapping[str, Estimate]
    n: int
    slices: tuple[MeasuredSlice, ...] = ()
    latency_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    latency_note: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate says: the outcome, one sentence with the numbers compared, and those numbers."""

    name: str
    outcome: Outcome
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all gates say together.

    Attributes:
        outcome: `fail` if any gate fails, else `inconclusive` if any is, else `pass`. With the policy `fail`, inconclusive
            gates count as failed.
        results: One per gate, in the order given.
        on_inconclusive: The policy that was applied.
        champion: What the challenger was compared with; empty when there was none.
    """

    outcome: Outcome
    results: tuple[GateResult, ...]
    on_inconclusive: OnInconclusive = "hold"
    champion: str = ""

    @property
    def summary(self) -> str:
        """One sentence: the outcome, how many gates, and which did not pass."""
        if not self.results:
            return "pass: no gates are set, so nothing was checked"
        held = [r.name for r in self.results if r.outcome != "pass"]
        count = f"{len(self.results) - len(held)} of {len(self.results)} gates passed"
        return f"{self.outcome}: {count}" + (f"; not {', '.join(held[:6])}" if held else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON with format and version."""
        return {
            "format": VERDICT_FORMAT,
            "version": VERDICT_VERSION,
            "outcome": self.outcome,
            "summary": self.summary,
            "on_inconclusive": self.on_inconclusive,
            "champion": self.champion,
            "results": [{**asdict(r), "numbers": dict(r.numbers)} for r in self.results],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that `to_dict` wrote.

        Raises:
            SpecError: another format or version, or fields that are missing.
        """
        if document.get("format") != VERDICT_FORMAT or document.get("version") != VERDICT_VERSION:
            found = f"{document.get('format')!r} version {document.get('version')!r}"
            raise SpecError(
                "verdict-format", f"this is not a {VERDICT_FORMAT} version {VERDICT_VERSION}: {found}"[:200], fix="decide the gates again"
            )
        try:
            results = tuple(GateResult(r["name"], r["outcome"], r["reason"], dict(r["numbers"])) for r in document["results"])
            return cls(document["outcome"], results, document["on_inconclusive"], document["champion"])
        except (KeyError, TypeError) as error:
            raise SpecError(
                "verdict-format", f"a field of the verdict does not fit: {error!r}"[:200], fix="decide the gates again"
            ) from error
