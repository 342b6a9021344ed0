# pyright: basic
"""Bootstrap, intervals, folds, calibration and paired tests against oracles and by simulation."""

import numpy as np
import pytest
from scipy import stats as oracle
from sklearn.metrics import roc_auc_score

from mulle.core.errors import SpecError
from mulle.stats.calibration import calibration_error, equal_mass_bins, reliability
from mulle.stats.measure import Problem, measure_resamples
from mulle.stats.paired import delong, mcnemar_exact, midranks, paired_bootstrap
from mulle.stats.resampling import bca_interval, bootstrap_weights, jackknife_weights, percentile_interval, stratified_folds


def test_bootstrap_weights_keep_every_stratum_at_its_size():
    """Each resample draws as many rows of each class as the sample has."""
    strata = np.array([0] * 7 + [1] * 3)
    weights = np.concatenate(list(bootstrap_weights(10, 50, np.random.default_rng(0), strata=strata)))

    assert (50, 10) == weights.shape
    assert {7.0} == set(weights[:, :7].sum(axis=1).tolist())
    assert {3.0} == set(weights[:, 7:].sum(axis=1).tolist())


def test_bootstrap_weights_draw_each_row_like_a_multinomial():
    """Mean 1 and variance (1 - 1/n) per row, as drawing with replacement has."""
    weights = np.concatenate(list(bootstrap_weights(20, 20_000, np.random.default_rng(1))))

    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=0.05)
    assert weights.var(axis=0) == pytest.approx(np.full(20, 0.95), abs=0.08)


def test_bca_interval_equals_scipys_on_the_same_resamples():
    """Bias correction and acceleration agree with scipy's own BCa interval."""
    rng = np.random.default_rng(5)
    x = rng.exponential(size=60)
    weights = np.concatenate(list(bootstrap_weights(60, 4000, rng)))
    samples = weights @ x / 60
    blocks = jackknife_weights(60, 60, rng)
    found = bca_interval(float(x.mean()), samples, blocks @ x / blocks.sum(axis=1))
    expected = oracle.bootstrap((x,), np.mean, n_resamples=4000, method="BCa", rng=1).confidence_interval

    assert found == pytest.approx((expected.low, expected.high), abs=0.03)
    assert found[0] > percentile_interval(samples)[0]


@pytest.mark.parametrize(
    "groups", [pytest.param(None, id="rows alone"), pytest.param(np.arange(100) // 3, id="rows of one customer stay together")]
)
def test_folds_test_every_row_once_and_spread_the_classes(groups):
    """Folds part the rows, keep groups whole and hold each class in proportion."""
    strata = np.r_[np.zeros(60, dtype=np.int64), np.ones(40, dtype=np.int64)]
    folds = stratified_folds(strata, 5, np.random.default_rng(0), groups=groups)

    assert list(range(100)) == sorted(int(i) for _, test in folds for i in test)
    assert all(abs(strata[test].mean() - 0.4) < 0.12 for _, test in folds)
    if groups is not None:
        assert all(not set(groups[train]) & set(groups[test]) for train, test in folds)


def test_folds_refuse_more_parts_than_rows():
    """Six folds of five rows cannot be."""
    with pytest.raises(SpecError, match="cannot be parted"):
        stratified_folds(np.zeros(5, dtype=np.int64), 6, np.random.default_rng(0))


def test_calibration_bins_hold_equal_mass_and_never_part_ties():
    """Ten bins of 1,000 distinct scores hold 100 each; three distinct scores fill three bins."""
    distinct = equal_mass_bins(np.random.default_rng(0).random(1000))
    tied = equal_mass_bins(np.repeat([0.1, 0.5, 0.9], 50))

    assert 10 == len(np.unique(distinct))
    assert np.bincount(distinct).max() <= 102
    assert [50, 50, 50] == np.bincount(tied).tolist()


def test_calibration_error_is_zero_for_honest_bins_and_the_gap_otherwise():
    """Promised .2 and happened .2 is 0; promised .2 and happened .6 is .4."""
    p = np.full(10, 0.2)

    assert 0.0 == pytest.approx(float(calibration_error(p, np.r_[np.ones(2), np.zeros(8)])[0]))
    assert 0.4 == pytest.approx(float(calibration_error(p, np.r_[np.ones(6), np.zeros(4)])[0]))
    assert 0.6 == pytest.approx(reliability(p, np.r_[np.ones(6), np.zeros(4)])[0].observed_share)


def test_delong_has_scikit_learns_areas_and_the_bootstraps_standard_error():
    """The areas are exact with ties, and se agrees with the paired bootstrap within a tenth."""
    rng = np.random.default_rng(3)
    y = (rng.random(600) < 0.3).astype(np.int64)
    a = np.round(rng.normal(size=600) + y, 1)
    b = np.round(a + rng.normal(scale=0.7, size=600), 1)
    found = delong(y, a, b)

    def squash(s):
        p = 1 / (1 + np.exp(-s))
        return np.c_[1 - p, p]

    weights = list(bootstrap_weights(600, 2000, rng, strata=y))
    pair = paired_bootstrap(
        *(lambda w, s=s: measure_resamples(y, squash(s), Problem("binary"), [w])["roc_auc"] for s in (a, b)), 600, weights
    )

    assert (roc_auc_score(y, a), roc_auc_score(y, b)) == pytest.approx((found.challenger, found.champion))
    assert found.se == pytest.approx(pair.se, rel=0.1)
    assert found.difference == pytest.approx(pair.difference)
    assert pair.se < pair.se_unpaired


def test_delong_of_a_model_with_itself_shows_nothing():
    """The same scores twice: difference 0, p = 1."""
    y = np.array([0, 1, 0, 1, 1])
    s = np.array([0.1, 0.4, 0.4, 0.9, 0.3])

    assert (0.0, 1.0) == (delong(y, s, s).difference, delong(y, s, s).p_value)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 9), (10, 10), (1, 40), (0, 6)])
def test_mcnemar_equals_the_exact_binomial_test(a, b):
    """The p-value is that of scipy's binomial test over the rows only one model gets right."""
    right_a = np.r_[np.ones(a), np.zeros(b), np.ones(5)].astype(bool)
    right_b = np.r_[np.zeros(a), np.ones(b), np.ones(5)].astype(bool)
    expected = oracle.binomtest(a, a + b).pvalue if a + b else 1.0

    assert expected == pytest.approx(mcnemar_exact(right_a, right_b).p_value)


def test_midranks_equal_scipys():
    """Ties share their mean rank."""
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0])

    assert oracle.rankdata(values).tolist() == midranks(values).tolist()


@pytest.mark.simulation
def test_percentile_intervals_cover_the_true_area():
    """95 % intervals of ROC-AUC on 300 rows hold the true value in 95 % of 300 samples, give or take 4 points."""
    rng = np.random.default_rng(11)
    truth = oracle.norm.cdf(1 / np.sqrt(2))
    hits = 0
    for _ in range(300):
        y = np.r_[np.zeros(200, dtype=np.int64), np.ones(100, dtype=np.int64)]
        p = 1 / (1 + np.exp(-(rng.normal(size=300) + y)))
        samples = measure_resamples(y, np.c_[1 - p, p], Problem("binary"), bootstrap_weights(300, 200, rng, strata=y))["roc_auc"]
        low, high = percentile_interval(samples)
        hits += low <= truth <= high

    assert 0.95 == pytest.approx(hits / 300, abs=0.04)
