"""Parity: the numbers compared, the rows counted, the limits kept."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.bundle.parity import check_parity, require_parity
from mulle.core.errors import CheckError, SpecError

LABELS = np.array(["No", "Yes"] * 50, dtype=object)


def _scores(seed=0):
    p = np.random.default_rng(seed).uniform(0.05, 0.95, 100)
    return np.column_stack([1 - p, p])


def test_equal_scores_agree_in_everything():
    """Gap 0, no rows, and plain JSON."""
    parity = check_parity(_scores(), _scores(), LABELS, task="binary", classes=("No", "Yes"))

    assert (parity.ok, parity.n_disagreeing, {m.name: m.gap for m in parity.metrics}) == (
        True,
        0,
        {"accuracy": 0.0, "roc_auc": 0.0, "pr_auc": 0.0, "log_loss": 0.0},
    )
    assert json.loads(json.dumps(parity.to_dict(), allow_nan=False))["ok"] is True


def test_rows_are_counted_and_five_are_shown():
    """Seven rows differ: the farthest five are shown, the farthest first."""
    other = _scores()
    other[:7] += np.arange(1, 8)[:, None] * np.array([-1e-3, 1e-3])
    parity = check_parity(_scores(), other, None, task="binary", classes=("No", "Yes"), max_disagreeing_share=0.05)

    assert (parity.n_disagreeing, [e.row for e in parity.examples], parity.ok) == (7, [6, 5, 4, 3, 2], False)


def test_a_metric_gap_fails_although_rows_are_allowed():
    """A share of 1 allows every row, and no metric."""
    parity = check_parity(_scores(), _scores(1), LABELS, task="binary", classes=("No", "Yes"), max_disagreeing_share=1.0)

    assert parity.ok is False
    with pytest.raises(CheckError) as caught:
        require_parity(parity)
    assert caught.value.code == "export-parity"


def test_a_score_that_is_not_finite_disagrees():
    """NaN from the graph is a difference, and JSON can still say it."""
    other = _scores()
    other[3] = np.nan
    parity = check_parity(_scores(), other, LABELS, task="binary", classes=("No", "Yes"))

    assert (parity.n_disagreeing, parity.ok, parity.metrics) == (1, False, ())
    json.dumps(parity.to_dict(), allow_nan=False)


def test_missing_targets_count_as_rows_only():
    """An unlabelled row is compared, and left out of metrics."""
    labels = LABELS.copy()
    labels[:10] = None
    parity = check_parity(_scores(), _scores(), labels, task="binary", classes=("No", "Yes"))

    assert (parity.n_rows, len(parity.metrics)) == (100, 4)


def test_regression_is_relative_to_the_scale():
    """Predictions of millions may differ by more than 1e-4."""
    python = np.linspace(1e6, 2e6, 50)[:, None]
    parity = check_parity(python, python + 10.0, python[:, 0] + 1e5, task="regression")

    assert (parity.ok, [m.name for m in parity.metrics]) == (True, ["rmse", "mae", "r2"])


def test_one_class_skips_the_metrics_without_a_value():
    """ROC-AUC of one class has no value: said, not invented."""
    parity = check_parity(_scores(), _scores(), ["Yes"] * 100, task="binary", classes=("No", "Yes"))

    assert "roc_auc" in parity.skipped
    assert parity.ok


@pytest.mark.parametrize(
    ("graph", "y", "code"),
    [
        pytest.param(np.zeros((100, 3)), LABELS, "parity-shape", id="another number of classes"),
        pytest.param(np.zeros((0, 2)), LABELS, "parity-shape", id="no rows"),
        pytest.param(_scores(), LABELS[:5], "parity-shape", id="too few labels"),
        pytest.param(_scores(), ["아마"] * 100, "parity-label", id="a label nobody knows"),
    ],
)
def test_what_cannot_be_compared_is_refused(graph, y, code):
    """Shapes and labels must fit."""
    with pytest.raises(SpecError) as caught:
        check_parity(_scores(), graph, y, task="binary", classes=("No", "Yes"))

    assert caught.value.code == code


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_the_count_is_that_of_rows_beyond_the_tolerance(values, seed):
    """Counted against a plain loop."""
    python = np.column_stack([1 - np.array(values), values])
    graph = python + np.random.default_rng(seed).choice([0.0, 5e-5, 2e-3], size=len(values))[:, None]
    expected = sum(1 for a, b in zip(python, graph, strict=True) if max(abs(a - b)) > 1e-4)

    assert expected == check_parity(python, graph, None, task="binary").n_disagreeing
