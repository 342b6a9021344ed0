# pyright: basic
"""Gates: outcomes, and reasons that print the numbers compared."""

import json
import math

import pytest

from mulle.core.canonical import canonical_json
from mulle.core.errors import SpecError
from mulle.release.gate import decide_gates, default_margin
from mulle.release.gate_settings import parse_gates
from mulle.release.gate_types import (
    BoundGate,
    ChampionGate,
    FairnessGate,
    GateResult,
    LatencyGate,
    Measured,
    MeasuredSlice,
    SizeGate,
    Verdict,
)
from mulle.stats.estimate import Estimate
from mulle.stats.paired import PairedDifference


def measured(**metrics):
    return Measured({k: v if isinstance(v, Estimate) else Estimate(v) for k, v in metrics.items()}, 1443)


def pair(difference, se, *, champion=0.84, unpaired=0.015):
    return PairedDifference(champion + difference, champion, difference, difference - 2 * se, difference + 2 * se, se, unpaired)


def only(gate, given, comparison=None, **options):
    return decide_gates([gate], given, comparison, **options).results[0]


@pytest.mark.parametrize(
    ("gate", "estimate", "expected"),
    [
        pytest.param(
            BoundGate("roc_auc", "min", 0.8), Estimate(0.81, 0.79, 0.83), "pass", id="the figure is above min, whatever its interval"
        ),
        pytest.param(BoundGate("roc_auc", "min", 0.8), Estimate(0.8), "pass", id="exactly min passes"),
        pytest.param(BoundGate("roc_auc", "min", 0.8), Estimate(0.79), "fail", id="below min"),
        pytest.param(BoundGate("log_loss", "max", 0.5), Estimate(0.51), "fail", id="above max"),
        pytest.param(
            BoundGate("roc_auc", "min", 0.8, "interval"),
            Estimate(0.81, 0.79, 0.83),
            "inconclusive",
            id="judged by interval: min lies inside",
        ),
        pytest.param(
            BoundGate("roc_auc", "min", 0.8, "interval"), Estimate(0.85, 0.81, 0.89), "pass", id="judged by interval: all of it above"
        ),
        pytest.param(
            BoundGate("log_loss", "max", 0.5, "interval"), Estimate(0.6, 0.55, 0.65), "fail", id="judged by interval: all of it above max"
        ),
        pytest.param(BoundGate("f1", "min", 0.8), Estimate(math.nan), "inconclusive", id="no value is neither good nor bad"),
    ],
)
def test_bounds_decide_by_figure_or_by_interval(gate, estimate, expected):
    """A bound passes at equality; with `judge = interval` only evidence decides."""
    assert expected == only(gate, measured(**{gate.metric: estimate})).outcome


@pytest.mark.parametrize(
    ("gate", "difference", "expected"),
    [
        pytest.param(ChampionGate("roc_auc", 0.95, 0.005), pair(0.0, 0.002), "pass", id="equal, and a loss of .005 is ruled out"),
        pytest.param(
            ChampionGate("roc_auc", 0.95, 0.005), pair(-0.003, 0.0005), "pass", id="a little worse for sure, but within the margin"
        ),
        pytest.param(
            ChampionGate("roc_auc", 0.95, 0.005), pair(-0.002, 0.004), "inconclusive", id="the interval straddles zero and the margin"
        ),
        pytest.param(ChampionGate("roc_auc", 0.95, 0.005), pair(-0.010, 0.003), "fail", id="worse for sure, perhaps beyond the margin"),
        pytest.param(ChampionGate("roc_auc", 0.95, 0.0), pair(0.0, 0.0), "pass", id="the same answers pass even with no margin"),
        pytest.param(ChampionGate("log_loss", 0.95, 0.005), pair(0.02, 0.003), "fail", id="lower is better: more log-loss is worse"),
        pytest.param(ChampionGate("log_loss", 0.95, 0.005), pair(-0.02, 0.003), "pass", id="lower is better: less log-loss is a gain"),
        pytest.param(
            ChampionGate("rmse", 0.95), pair(0.1, 0.2, champion=50.0, unpaired=2.0), "pass", id="rmse: margins are a share of the value"
        ),
        pytest.param(
            ChampionGate("accuracy"), pair(0.0, 0.03, unpaired=0.04), "inconclusive", id="so few rows that the cap binds: cannot tell"
        ),
        pytest.param(ChampionGate("roc_auc"), pair(-0.03, 0.005), "fail", id="default margin: clearly worse"),
        pytest.param(ChampionGate("roc_auc"), pair(-0.003, 0.003), "pass", id="default margin: as another seed would be"),
    ],
)
def test_champion_gate_is_a_test_of_non_inferiority(gate, difference, expected):
    """The challenger passes when a loss beyond the margin is ruled out and fails when it is surely worse."""
    assert expected == only(gate, measured(), {gate.metric: difference}).outcome


def test_without_a_champion_its_gate_passes_and_says_why():
    """The first version has nothing to be worse than."""
    result = only(ChampionGate("roc_auc"), measured(roc_auc=0.8), None)

    assert ("pass", True) == (result.outcome, result.reason.startswith("no champion yet"))


def test_a_metric_that_could_not_be_compared_is_inconclusive():
    """No difference is no evidence."""
    assert "inconclusive" == only(ChampionGate("roc_auc"), measured(), {}).outcome


def test_the_champion_reason_prints_every_number_compared():
    """Both figures, the bound, the margin, the rows and what would have been noticed."""
    reason = only(ChampionGate("roc_auc"), measured(), {"roc_auc": pair(-0.003, 0.002)}, champion="version 3").reason

    for part in (
        "0.8370",
        "0.8400 (version 3)",
        "1,443 rows",
        "0.0030 worse",
        "95%",
        "no more than 0.0063 worse",
        "margin 0.0071",
        "9 times in 10",
    ):
        assert part in reason


def test_the_default_margin_follows_the_holdout_between_floor_and_cap():
    """z-scores times se; not below .001, not above .02 or twice the unpaired standard error."""
    zs = 1.6448536 + 1.5 * 1.2815516
    usual = default_margin("roc_auc", pair(0, 0.003), confidence=0.95)
    tiny = default_margin("roc_auc", pair(0, 0.00001), confidence=0.95)
    wide = default_margin("roc_auc", pair(0, 0.02, unpaired=0.03), confidence=0.95)
    alien = default_margin("roc_auc", pair(0, 0.006, unpaired=0.006), confidence=0.95)
    loss = default_margin("log_loss", pair(0, 0.5, champion=0.4, unpaired=1.0), confidence=0.95)

    assert (zs * 0.003, "holdout") == (pytest.approx(usual.value), usual.source)
    assert (0.001, "floor") == (tiny.value, tiny.source)
    assert (0.02, "cap") == (wide.value, wide.source)
    assert (0.012, "cap") == (alien.value, alien.source)
    assert 0.02 == pytest.approx(loss.value)
    assert usual.detectable == pytest.approx(usual.value + (1.2815516 - 1.6448536) * 0.003)


def slices(*rows):
    return Measured(
        {}, 1443, tuple(MeasuredSlice("성별", v, n, {"accuracy": Estimate(a, a - 2 * se, a + 2 * se, se)}) for v, n, a, se in rows)
    )


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        pytest.param([("여", 700, 0.80, 0.015), ("남", 740, 0.81, 0.015)], {}, "pass", id="close together for sure"),
        pytest.param([("여", 700, 0.60, 0.015), ("남", 740, 0.81, 0.015)], {}, "fail", id="further apart than the gap for sure"),
        pytest.param([("여", 60, 0.74, 0.06), ("남", 70, 0.81, 0.05)], {}, "inconclusive", id="the interval of the gap holds max_gap"),
        pytest.param(
            [("여", 700, 0.80, 0.01), ("남", 740, 0.81, 0.01), ("?", 3, 0.0, 0.2)], {}, "inconclusive", id="three rows cannot be judged"
        ),
        pytest.param(
            [("여", 700, 0.80, 0.01), ("남", 740, 0.81, 0.01), ("?", 3, 0.0, 0.2)],
            {"small": "ignore"},
            "pass",
            id="three rows told to stand aside",
        ),
        pytest.param([("여", 700, 0.80, 0.01)], {}, "inconclusive", id="one value has nothing to differ from"),
        pytest.param([], {}, "inconclusive", id="the column was not measured"),
    ],
)
def test_fairness_needs_enough_rows_to_speak(rows, options, expected):
    """A gap passes or fails only on evidence; too few rows are inconclusive."""
    assert expected == only(FairnessGate("성별", 0.10, **options), slices(*rows)).outcome


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        pytest.param(LatencyGate("p99", 5.0), "pass", id="4.2 ms of 5"),
        pytest.param(LatencyGate("p99", 4.0), "fail", id="4.2 ms of 4"),
        pytest.param(LatencyGate("p50", 1.0), "inconclusive", id="p50 was not measured"),
        pytest.param(SizeGate(1000), "pass", id="exactly as large as allowed"),
        pytest.param(SizeGate(999), "fail", id="one byte too large"),
    ],
)
def test_latency_and_size_compare_what_was_measured(gate, expected):
    """Time and bytes are compared as measured, on this host."""
    assert expected == only(gate, Measured({}, 10, latency_ms={"p99": 4.2}, size_bytes=1000)).outcome


@pytest.mark.parametrize(
    ("outcomes", "policy", "expected"),
    [
        pytest.param(["pass", "pass"], "hold", "pass", id="all pass"),
        pytest.param(["pass", "inconclusive"], "hold", "inconclusive", id="one cannot tell: wait for a person"),
        pytest.param(["pass", "inconclusive"], "fail", "fail", id="one cannot tell, and the policy is fail"),
        pytest.param(["inconclusive", "fail"], "hold", "fail", id="one fails: nothing else matters"),
        pytest.param([], "hold", "pass", id="no gates: nothing was asked"),
    ],
)
def test_the_verdict_is_the_worst_of_its_gates(outcomes, policy, expected):
    """Fail beats inconclusive beats pass; the policy turns inconclusive into fail."""
    values = {"pass": 0.9, "fail": 0.1, "inconclusive": math.nan}
    names = ["accuracy", "f1"]
    gates = [BoundGate(name, "min", 0.5) for name in names[: len(outcomes)]]
    verdict = decide_gates(gates, measured(**{n: values[o] for n, o in zip(names, outcomes, strict=False)}), None, on_inconclusive=policy)

    assert (expected, policy) == (verdict.outcome, verdict.on_inconclusive)


def test_a_verdict_survives_json_and_refuses_other_documents():
    """Written and read it is the same; a NaN never gets in; another format is refused."""
    verdict = decide_gates([BoundGate("f1", "min", 0.5), BoundGate("accuracy", "max", 1)], measured(f1=math.nan, accuracy=0.5), None)

    assert verdict == Verdict.from_dict(json.loads(canonical_json(verdict.to_dict())))
    with pytest.raises(SpecError) as caught:
        Verdict.from_dict({"format": "other", "version": 1})
    assert "verdict-format" == caught.value.code


def test_settings_become_gates():
    """The table of the design, as gates in its order."""
    table = {
        "roc_auc": {"min": 0.8, "max": None, "no_worse_than_champion": {"confidence": 0.95}},
        "fairness": {"slice_by": ["female"], "max_gap": 0.1},
        "latency_ms": {"p99_max": 5},
        "size_mb": {"max": 2},
        "f1": None,
    }
    expected = (
        BoundGate("roc_auc", "min", 0.8),
        ChampionGate("roc_auc", 0.95),
        FairnessGate("female", 0.1),
        LatencyGate("p99", 5.0),
        SizeGate(2 << 20),
    )

    assert expected == parse_gates(table, task="binary")


@pytest.mark.parametrize(
    ("table", "code", "fix"),
    [
        pytest.param({"roc_auk": {"min": 1}}, "gate-unknown", "did you mean 'roc_auc'?", id="a typo in the metric"),
        pytest.param({"f1": {"mim": 1}}, "gate-key", "did you mean 'min'?", id="a typo in the key"),
        pytest.param({"f1": {"min": "high"}}, "gate-value", "use a number", id="a text for a number"),
        pytest.param({"f1": {"min": math.nan}}, "gate-value", "use a number", id="NaN bounds nothing"),
        pytest.param({"f1": {"min": 0.9, "max": 0.1}}, "gate-value", "swap the two numbers", id="min above max"),
        pytest.param({"rmse": {"max": 1}}, "metric-unknown", "", id="a regression metric for a binary task"),
        pytest.param({"fairness": {"slice_by": "female"}}, "gate-value", "", id="a column instead of a list of columns"),
        pytest.param({"f1": {"no_worse_than_champion": {"confidence": 0.3}}}, "gate-value", "", id="a confidence below one half"),
    ],
)
def test_settings_errors_name_the_key_and_the_fix(table, code, fix):
    """Every mistake in the table is a SpecError with a stable code."""
    with pytest.raises(SpecError) as caught:
        parse_gates(table, task="binary")

    assert (code, True) == (caught.value.code, fix in caught.value.fix)


def test_two_gates_of_one_name_are_refused():
    """Which of two bounds counts must not depend on order."""
    with pytest.raises(SpecError, match="set twice"):
        decide_gates([BoundGate("f1", "min", 0.5), BoundGate("f1", "min", 0.6)], measured(f1=0.55), None)


def test_results_are_plain_values():
    """A result equals itself rebuilt from its fields."""
    result = only(BoundGate("f1", "min", 0.5), measured(f1=0.7))

    assert GateResult("f1.min", "pass", "f1 = 0.7000 on 1,443 rows is at least min = 0.5000", {"value": 0.7, "bound": 0.5}) == result
