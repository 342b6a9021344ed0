"""May this model be registered? A pure decision over measured numbers; every result prints the numbers it compared.

The champion gate is a test of non-inferiority. With `gain` the difference to the champion on the same rows, turned so
that more is better, and `se` its standard error with rows paired:

    pass          gain - z(confidence) * se >= -margin      a loss beyond the margin is ruled out
    fail          gain + z(confidence) * se < 0             worse for sure, and a loss beyond the margin is not ruled out
    inconclusive  neither: the holdout cannot tell

See `default_margin` for the margin when none is given.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mulle.core.errors import SpecError
from mulle.release.gate_types import (
    BoundGate,
    ChampionGate,
    FairnessGate,
    Gate,
    GateResult,
    LatencyGate,
    Measured,
    MeasuredSlice,
    OnInconclusive,
    Outcome,
    SizeGate,
    Verdict,
)
from mulle.stats.estimate import Estimate
from mulle.stats.metric_names import gain, metric_info
from mulle.stats.paired import PairedDifference

RETRAIN_PASS_RATE = 0.90
"""How often the default margin lets an identical recipe pass that was trained again with another seed."""

RETRAIN_SPREAD = 1.5
"""How much further apart two trainings of one recipe are than the holdout's rows alone explain.

`se` knows only which rows were held out; training again moves the model itself. Over 16 retrainings each of gradient
boosting, forests and logistic regression on 7,043 customers the standard deviation of difference / se was 0.7 to 1.5.
"""

MAX_MARGIN_POINTS = 0.02
MAX_MARGIN_SHARE = 0.05
MAX_MARGIN_UNPAIRED_SE = 2.0
MIN_MARGIN_POINTS = 0.001
MIN_MARGIN_SHARE = 0.001

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Margin:
    """The loss that is tolerated, where it comes from, and what it can miss.

    Attributes:
        value: In the metric's unit, >= 0.
        source: `given`, `holdout` (what the rows resolve), `cap` (that was too much) or `floor` (too little to matter).
        detectable: A true loss of this size fails to pass 9 times in 10.
        wanted: What the holdout would have needed; larger than `value` when capped.
    """

    value: float
    source: str
    detectable: float
    wanted: float


def default_margin(metric: str, difference: PairedDifference, *, confidence: float) -> Margin:
    """Return the margin that the holdout can resolve, in the metric's unit.

    It is (z(confidence) + 1.5 * z(0.90)) * se: wide enough that the same recipe with another seed passes at least 9 times
    in 10 (simulated: `tests/unit/release/test_gate_simulation.py`). Because a challenger that has little in common with
    the champion would buy itself a wide margin through a large `se`, it is capped at the smallest of 0.02 points (for
    losses and errors 5 % of the champion's value) and twice the unpaired standard error. Below 0.001 points (0.1 %) it
    does not fall: on millions of rows a seed's own noise is larger than the rows'.
    """
    points = metric_info(metric).points
    scale = 1.0 if points else abs(difference.champion)
    floor = MIN_MARGIN_POINTS if points else MIN_MARGIN_SHARE * scale
    cap = min(MAX_MARGIN_POINTS if points else MAX_MARGIN_SHARE * scale, MAX_MARGIN_UNPAIRED_SE * difference.se_unpaired)
    wanted = (_z(confidence) + RETRAIN_SPREAD * _z(RETRAIN_PASS_RATE)) * difference.se
    value = max(floor, min(wanted, cap))
    source = "floor" if value > wanted else "holdout" if value == wanted else "cap"
    return Margin(value, source, _detectable(value, difference.se, confidence), wanted)


def decide_gates(
    gates: Sequence[Gate],
    measured: Measured,
    comparison: Mapping[str, PairedDifference] | None,
    *,
    champion: str = "",
    on_inconclusive: OnInconclusive = "hold",
) -> Verdict:
    """Return what the gates say about one evaluation.

    Args:
        gates: In the order they are to be reported.
        measured: The figures of the graph that would be served.
        comparison: Metric to difference against the champion on the same rows; None when there is no champion yet, and
            then the champion gates pass.
        champion: What the champion is called, for the reasons.
        on_inconclusive: `hold`: the verdict stays inconclusive, for a person to decide. `fail`: it fails.

    Raises:
        SpecError: two gates of one name.
    """
    names = [gate.name for gate in gates]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise SpecError("gate-duplicate", f"the gate {double!r} is set twice", fix="keep one of the two")
    results = tuple(_decide(gate, measured, comparison, champion) for gate in gates)
    outcomes = {result.outcome for result in results}
    outcome: Outcome = "pass"
    if "fail" in outcomes or ("inconclusive" in outcomes and on_inconclusive == "fail"):
        outcome = "fail"
    elif "inconclusive" in outcomes:
        outcome = "inconclusive"
    return Verdict(outcome, results, on_inconclusive, champion if comparison is not None else "")


def _decide(gate: Gate, measured: Measured, comparison: Mapping[str, PairedDifference] | None, champion: str) -> GateResult:
    match gate:
        case BoundGate():
            return _decide_bound(gate, measured)
        case ChampionGate():
            return _decide_champion(gate, measured, comparison, champion)
        case FairnessGate():
            return _decide_fairness(gate, measured)
        case LatencyGate():
            return _decide_latency(gate, measured)
        case SizeGate():
            return _decide_size(gate, measured)


def _decide_bound(gate: BoundGate, measured: Measured) -> GateResult:
    found = measured.metrics.get(gate.metric)
    if found is None or not math.isfinite(found.value):
        return GateResult(gate.name, "inconclusive", f"{gate.metric} has no value on these {measured.n:,} rows")
    low, high = (found.value, found.value) if gate.judge == "point" else _ends(found)
    sign = 1.0 if gate.side == "min" else -1.0
    near, far = (low, high) if gate.side == "min" else (high, low)
    outcome: Outcome = "inconclusive"
    if sign * (near - gate.bound) >= 0:
        outcome = "pass"
    elif sign * (far - gate.bound) < 0:
        outcome = "fail"
    interval = f" [{_show(found.low)}, {_show(found.high)}]" if found.low is not None and found.high is not None else ""
    word = {
        "pass": "at least" if gate.side == "min" else "at most",
        "fail": "below" if gate.side == "min" else "above",
        "inconclusive": "not surely on the right side of",
    }[outcome]
    reason = f"{gate.metric} = {_show(found.value)}{interval} on {measured.n:,} rows is {word} {gate.side} = {_show(gate.bound)}"
    return GateResult(gate.name, outcome, reason, _numbers(value=found.value, low=found.low, high=found.high, bound=gate.bound))


def _decide_champion(
    gate: ChampionGate, measured: Measured, comparison: Mapping[str, PairedDifference] | None, champion: str
) -> GateResult:
    if comparison is None:
        return GateResult(gate.name, "pass", "no champion yet: there is nothing to be worse than")
    d = comparison.get(gate.metric)
    if d is None or not all(map(math.isfinite, (d.difference, d.se))):
        return GateResult(gate.name, "inconclusive", f"{gate.metric} could not be compared with the champion on these {measured.n:,} rows")
    margin = default_margin(gate.metric, d, confidence=gate.confidence)
    if gate.margin is not None:
        margin = Margin(gate.margin, "given", _detectable(gate.margin, d.se, gate.confidence), gate.margin)
    better = gain(gate.metric, d.difference)
    reach = _z(gate.confidence) * d.se
    lower, upper = better - reach, better + reach
    outcome: Outcome = "inconclusive"
    if lower >= -margin.value:
        outcome = "pass"
    elif upper < 0:
        outcome = "fail"
    numbers = _numbers(
        challenger=d.challenger,
        champion=d.champion,
        gain=better,
        se=d.se,
        lower=lower,
        upper=upper,
        margin=margin.value,
        confidence=gate.confidence,
        detectable_loss=margin.detectable,
    )
    who = f"the champion's {_show(d.champion)}" + (f" ({champion})" if champion else "")
    direction = "better" if better >= 0 else "worse"
    sentence = (
        f"{gate.metric} = {_show(d.challenger)} against {who} on the same {measured.n:,} rows: {_show(abs(better))} {direction}, "
        f"at {gate.confidence:.0%} confidence {_bound_text(lower)}; {_margin_text(margin, gate)}"
    )
    return GateResult(gate.name, outcome, f"{sentence}. {_champion_ending(outcome, margin, d, gate, measured.n)}", numbers)


def _champion_ending(outcome: Outcome, margin: Margin, d: PairedDifference, gate: ChampionGate, n: int) -> str:
    if outcome == "pass":
        return f"A true loss of {_show(margin.detectable)} would have been stopped 9 times in 10"
    if outcome == "fail":
        return "It is worse, and a loss beyond the margin cannot be ruled out"
    needed = (_z(gate.confidence) + RETRAIN_SPREAD * _z(RETRAIN_PASS_RATE)) * d.se
    rows = math.ceil(n * (needed / margin.value) ** 2 / 100) * 100 if margin.value > 0 else 0
    return "These rows cannot tell" + (f"; about {rows:,} could" if rows > n else "")


def _decide_fairness(gate: FairnessGate, measured: Measured) -> GateResult:
    present = [s for s in measured.slices if s.column == gate.column]
    if not present:
        return GateResult(gate.name, "inconclusive", f"no slices of {gate.column!r} were measured; add it to [evaluate] slices")
    sound = [s for s in present if _sound(s, gate)]
    weak = [s for s in present if not _sound(s, gate)]
    weak_text = ", ".join(f"{s.value[:40]!r} ({s.n:,} rows)" for s in weak[:5])
    if len(sound) < 2:  # noqa: PLR2004 - a gap needs two
        least = f"{gate.min_rows:,} rows and a value of {gate.metric}"
        reason = f"fewer than two values of {gate.column!r} have {least}; too few: {weak_text or 'none other'}"
        return GateResult(gate.name, "inconclusive", reason)
    pairs = list(itertools.combinations(sound, 2))
    # To fail, one pair must be surely too far apart among all that were looked at (Bonferroni); to pass, each must be
    # surely close enough, which needs no correction.
    strict = _z(1.0 - (1.0 - gate.confidence) / len(pairs))
    gaps = [(abs(a.metrics[gate.metric].value - b.metrics[gate.metric].value), _pair_se(a, b, gate.metric), a, b) for a, b in pairs]
    gap, se, a, b = max(gaps, key=lambda g: g[0])
    highest = max(g + _z(gate.confidence) * s for g, s, _, _ in gaps)
    outcome: Outcome = "inconclusive"
    if any(g - strict * s > gate.max_gap for g, s, _, _ in gaps):
        outcome = "fail"
    elif highest <= gate.max_gap and (not weak or gate.small == "ignore"):
        outcome = "pass"
    low_side, high_side = sorted((a, b), key=lambda s: s.metrics[gate.metric].value)
    reason = (
        f"{gate.metric} by {gate.column!r} runs from {_slice_text(low_side, gate)} to {_slice_text(high_side, gate)}: "
        f"a gap of {_show(gap)}, at {gate.confidence:.0%} confidence at most {_show(highest)}, against max_gap = {_show(gate.max_gap)}"
    )
    if weak:
        reason += f"; too few rows to judge {weak_text}"
    return GateResult(gate.name, outcome, reason, _numbers(gap=gap, se=se, upper=highest, bound=gate.max_gap))


def _decide_latency(gate: LatencyGate, measured: Measured) -> GateResult:
    found = measured.latency_ms.get(gate.quantile)
    if found is None:
        return GateResult(gate.name, "inconclusive", f"the {gate.quantile} latency was not measured")
    ok = found <= gate.max_ms
    note = f" ({measured.latency_note})" if measured.latency_note else ""
    reason = f"{gate.quantile} = {found:.3g} ms{note} is {'at most' if ok else 'above'} {gate.quantile}_max = {gate.max_ms:g} ms"
    return GateResult(gate.name, "pass" if ok else "fail", reason, _numbers(value=found, bound=gate.max_ms))


def _decide_size(gate: SizeGate, measured: Measured) -> GateResult:
    if measured.size_bytes is None:
        return GateResult(gate.name, "inconclusive", "the size of the graph is not known")
    ok = measured.size_bytes <= gate.max_bytes
    reason = f"the graph has {measured.size_bytes:,} bytes, {'at most' if ok else 'more than'} max = {gate.max_bytes:,} bytes"
    return GateResult(gate.name, "pass" if ok else "fail", reason, _numbers(value=measured.size_bytes, bound=gate.max_bytes))


def _sound(s: MeasuredSlice, gate: FairnessGate) -> bool:
    found = s.metrics.get(gate.metric)
    return s.n >= gate.min_rows and found is not None and found.se is not None and math.isfinite(found.value)


def _pair_se(a: MeasuredSlice, b: MeasuredSlice, metric: str) -> float:
    return math.hypot(a.metrics[metric].se or 0.0, b.metrics[metric].se or 0.0)


def _slice_text(s: MeasuredSlice, gate: FairnessGate) -> str:
    return f"{_show(s.metrics[gate.metric].value)} ({s.value[:40]!r}, {s.n:,} rows)"


def _bound_text(lower: float) -> str:
    return f"no more than {_show(-lower)} worse" if lower < 0 else f"at least {_show(lower)} better"


def _margin_text(margin: Margin, gate: ChampionGate) -> str:
    return {
        "given": f"margin {_show(margin.value)} as set",
        "holdout": f"margin {_show(margin.value)}, what these rows resolve",
        "floor": f"margin {_show(margin.value)}, the smallest that is used",
        "cap": f"margin {_show(margin.value)}, the largest allowed (these rows resolve {_show(margin.wanted)} for {gate.metric})",
    }[margin.source]


def _detectable(margin: float, se: float, confidence: float) -> float:
    """Return the true loss that fails to pass 9 times in 10: the loss at which `gain - z * se < -margin` has that chance."""
    return max(0.0, margin + (_z(0.90) - _z(confidence)) * se)


def _ends(found: Estimate) -> tuple[float, float]:
    return (found.value if found.low is None else found.low, found.value if found.high is None else found.high)


def _z(confidence: float) -> float:
    return _NORMAL.inv_cdf(confidence)


def _show(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"  # noqa: PLR2004 - digits a person compares


def _numbers(**given: float | None) -> dict[str, float]:
    """Keep what is finite: a verdict is written as canonical JSON, which knows no NaN."""
    return {name: float(value) for name, value in given.items() if value is not None and math.isfinite(value)}
