# pyright: basic
"""Properties every metric has, whatever the numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mulle.release.gate import decide_gates
from mulle.release.gate_types import ChampionGate, Measured
from mulle.stats.calibration import calibration_error, equal_mass_bins
from mulle.stats.measure import Problem, measure_once
from mulle.stats.metrics import average_precision_binary, roc_auc_binary
from mulle.stats.paired import PairedDifference

SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60).filter(
    lambda rows: len({up for up, _ in rows}) == 2
)


def split(rows):
    return np.array([int(up) for up, _ in rows]), np.array([s / 20 for _, s in rows])


@given(SCORES)
def test_the_area_is_the_share_of_pairs_in_order(rows):
    """ROC-AUC equals counting pairs; turning the scores round turns the area round."""
    y, s = split(rows)
    up, down = s[y == 1][:, None], s[y == 0][None, :]
    counted = ((up > down) + 0.5 * (up == down)).mean()

    assert abs(counted - roc_auc_binary(y, s)[0]) < 1e-12
    assert abs(roc_auc_binary(y, s)[0] + roc_auc_binary(y, -s)[0] - 1) < 1e-12


@given(SCORES, st.data())
def test_weights_mean_rows_repeated(rows, data):
    """A row with weight 3 counts like three rows, in every metric of a battery."""
    y, s = split(rows)
    weights = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(y), max_size=len(y))))
    many = np.repeat(np.arange(len(y)), weights)

    for function in (roc_auc_binary, average_precision_binary):
        assert abs(function(y, s, weights[None, :].astype(float))[0] - function(y[many], s[many])[0]) < 1e-12


@given(SCORES)
def test_metrics_stay_in_their_range_and_ignore_the_order_of_rows(rows):
    """Every share lies in [0, 1], and shuffled rows give the same figures."""
    y, s = split(rows)
    p = np.c_[1 - s, s]
    found = measure_once(y, p, Problem("binary"))
    turned = measure_once(y[::-1], p[::-1], Problem("binary"))

    assert all(0 <= v <= 1 for name, v in found.items() if name != "log_loss")
    assert all(abs(found[name] - turned[name]) < 1e-9 for name in found)


@given(arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)), st.integers(2, 20))
def test_bins_keep_ties_together_and_rise_with_the_score(p, n_bins):
    """Equal scores share a bin, a higher score never has a lower bin, and the error of the promise itself is 0."""
    bins = equal_mass_bins(p, n_bins)

    assert int(bins.max()) < n_bins
    assert all(len(set(bins[p == v].tolist())) == 1 for v in p)
    assert (np.diff(bins[np.argsort(p, kind="stable")]) >= 0).all()
    assert calibration_error(p, p, n_bins=n_bins)[0] == 0


@given(st.floats(-0.1, 0.1), st.floats(0, 0.05), st.floats(0, 0.05), st.floats(0.6, 0.99))
def test_a_better_challenger_never_fares_worse(difference, extra, se, confidence):
    """Raising the gain at the same uncertainty never turns pass into something else."""
    order = {"fail": 0, "inconclusive": 1, "pass": 2}

    def outcome(d):
        pair = PairedDifference(0.8 + d, 0.8, d, d - se, d + se, se, 2 * se)
        return decide_gates([ChampionGate("roc_auc", confidence)], Measured({}, 100), {"roc_auc": pair}).outcome

    assert order[outcome(difference)] <= order[outcome(difference + extra)]
