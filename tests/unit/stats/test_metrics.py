# pyright: basic
"""Metrics against scikit-learn on the same numbers, with weights as sample weights."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from mulle.core.errors import SpecError
from mulle.stats import metrics
from mulle.stats.measure import Problem, measure, measure_once, predicted_classes
from mulle.stats.metric_names import METRICS, gain, metric_info
from mulle.stats.metrics import MetricUndefinedError


def draw(seed, n=400, k=2, ties=False):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(k), rng.integers(k, size=n - k)]
    raw = rng.random((n, k)) + 0.7 * np.eye(k)[y]
    if ties:
        raw = np.round(raw * 3) + 1
    return y, raw / raw.sum(axis=1, keepdims=True), rng.integers(0, 4, size=n).astype(float)


@pytest.mark.parametrize("ties", [pytest.param(False, id="all scores differ"), pytest.param(True, id="many scores are tied")])
@pytest.mark.parametrize("weighted", [pytest.param(False, id="every row once"), pytest.param(True, id="rows drawn several times or never")])
def test_binary_metrics_equal_scikit_learn(ties, weighted):
    """Every binary metric equals scikit-learn's, also with weights."""
    y, p, w = draw(1, ties=ties)
    sample = w if weighted else None
    found = {k: v[0] for k, v in measure(y, p, Problem("binary", 1, 0.4), w[None, :] if weighted else None).items()}
    answer = (p[:, 1] >= 0.4).astype(int)
    expected = {
        "roc_auc": oracle.roc_auc_score(y, p[:, 1], sample_weight=sample),
        "pr_auc": oracle.average_precision_score(y, p[:, 1], sample_weight=sample),
        "accuracy": oracle.accuracy_score(y, answer, sample_weight=sample),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, answer, sample_weight=sample),
        "precision": oracle.precision_score(y, answer, average="weighted", sample_weight=sample),
        "recall": oracle.recall_score(y, answer, average="weighted", sample_weight=sample),
        "f1": oracle.f1_score(y, answer, average="weighted", sample_weight=sample),
        "positive_precision": oracle.precision_score(y, answer, sample_weight=sample),
        "positive_recall": oracle.recall_score(y, answer, sample_weight=sample),
        "positive_f1": oracle.f1_score(y, answer, sample_weight=sample),
        "log_loss": oracle.log_loss(y, p, sample_weight=sample),
        "brier": oracle.brier_score_loss(y, p[:, 1], sample_weight=sample),
    }

    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_multiclass_metrics_equal_scikit_learn():
    """Three classes: areas one against the rest weighted by support, averages weighted."""
    y, p, w = draw(2, k=3)
    found = {k: v[0] for k, v in measure(y, p, Problem("multiclass"), w[None, :]).items()}
    answer = p.argmax(axis=1)
    expected = {
        "roc_auc": oracle.roc_auc_score(y, p, multi_class="ovr", average="weighted", sample_weight=w),
        "pr_auc": oracle.average_precision_score(np.eye(3)[y], p, average="weighted", sample_weight=w),
        "accuracy": oracle.accuracy_score(y, answer, sample_weight=w),
        "f1": oracle.f1_score(y, answer, average="weighted", sample_weight=w),
        "log_loss": oracle.log_loss(y, p, sample_weight=w),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_regression_metrics_equal_scikit_learn():
    """RMSE, MAE, R² and MAPE with weights."""
    rng = np.random.default_rng(3)
    y, w = rng.normal(50, 10, 300), rng.integers(0, 4, 300).astype(float)
    p = y + rng.normal(0, 4, 300)
    found = {k: v[0] for k, v in measure(y, p[:, None], Problem("regression"), w[None, :]).items()}

    assert found == pytest.approx(
        {
            "rmse": oracle.root_mean_squared_error(y, p, sample_weight=w),
            "mae": oracle.mean_absolute_error(y, p, sample_weight=w),
            "mape": oracle.mean_absolute_percentage_error(y, p, sample_weight=w),
            "r2": oracle.r2_score(y, p, sample_weight=w),
        }
    )


def test_many_weightings_at_once_equal_one_at_a_time():
    """A matrix of weights gives what its rows give one by one."""
    y, p, _ = draw(4, k=3, ties=True)
    weights = np.random.default_rng(0).integers(1, 4, size=(5, len(y))).astype(float)
    together = measure(y, p, Problem("multiclass"), weights)
    apart = [measure(y, p, Problem("multiclass"), row[None, :]) for row in weights]

    assert {name: list(values) for name, values in together.items()} == {
        name: pytest.approx([one[name][0] for one in apart]) for name in together
    }


@pytest.mark.parametrize(
    ("y", "p", "code"),
    [
        pytest.param([], np.zeros((0, 2)), "metric-empty", id="no rows: there is no number to give"),
        pytest.param([0, 1], [[np.nan, 0.5], [0.5, 0.5]], "metric-not-finite", id="a NaN score is not an answer"),
        pytest.param([0, 2], [[0.5, 0.5], [0.5, 0.5]], "metric-label", id="a label beyond the classes"),
        pytest.param([0], [[0.5, 0.5], [0.5, 0.5]], "metric-shape", id="another number of labels than of scores"),
    ],
)
def test_metrics_refuse_what_has_no_value(y, p, code):
    """Bad input raises MetricUndefinedError with a stable code, never a number."""
    with pytest.raises(MetricUndefinedError) as caught:
        measure(np.asarray(y, dtype=np.int64), np.asarray(p, dtype=float), Problem("binary"))

    assert code == caught.value.code


def test_areas_refuse_one_class_and_are_left_out_of_the_battery():
    """One class has no ROC-AUC: asked for alone it raises, among others it is missing."""
    y, p = np.zeros(4, dtype=np.int64), np.full((4, 2), 0.5)

    with pytest.raises(MetricUndefinedError, match="needs two classes"):
        metrics.roc_auc(y, p)
    assert "roc_auc" not in measure_once(y, p, Problem("binary"))


def test_regression_metrics_without_a_value_are_left_out():
    """A constant target has no R², a target of 0 no percentage."""
    y, p = np.zeros(4), np.ones((4, 1))

    assert {"rmse", "mae"} == set(measure_once(y, p, Problem("regression")))


def test_a_certain_and_wrong_answer_costs_a_bounded_log_loss():
    """Probability 0 for the truth costs -log(float32 eps), not infinity."""
    found = measure_once(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), Problem("binary"))["log_loss"]

    assert -np.log(np.finfo(np.float32).eps) / 2 == pytest.approx(found)


def test_the_threshold_counts_from_its_own_value_and_for_either_positive_class():
    """A probability equal to the threshold is positive; the positive class may be the first."""
    scores = np.array([[0.3, 0.7], [0.7, 0.3]])

    assert [1, 0] == predicted_classes(scores, Problem("binary", 1, 0.7)).tolist()
    assert [1, 0] == predicted_classes(scores, Problem("binary", 0, 0.7)).tolist()


def test_unknown_metrics_are_offered_the_nearest_name():
    """`roc_auk` is answered with `roc_auc`; a metric of another task is refused."""
    with pytest.raises(SpecError) as caught:
        metric_info("roc_auk")
    with pytest.raises(SpecError, match="for a regression task"):
        metric_info("roc_auc", task="regression")

    assert "did you mean 'roc_auc'?" == caught.value.fix


def test_gain_is_positive_where_the_metric_got_better():
    """Every metric: moving towards its best value is a gain."""
    assert all(gain(m.name, 0.1 if m.higher_is_better else -0.1) > 0 for m in METRICS.values())
