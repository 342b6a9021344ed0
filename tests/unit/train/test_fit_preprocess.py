"""What the training table says about its own preprocessing."""

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mulle.core.errors import SpecError
from mulle.core.preprocess import CategoryFeature, NumericFeature
from mulle.train.preprocess import fit_preprocess, needs_fill

NAN = float("nan")


def _numbers(values):
    return pl.DataFrame({"요금": pl.Series(values, dtype=pl.Float32)})


def test_a_number_is_filled_with_the_float32_median():
    """The fill is the median of what is present, as float32 says it."""
    made = fit_preprocess(_numbers([0.1, NAN, 0.3, 0.2]), {"요금": "number"}, allow_nan=False)

    assert made.features == (NumericFeature("요금", fill=float(np.float32(0.2))),)


def test_a_number_keeps_nan_for_who_can_take_it():
    """No fill when the estimator understands missing."""
    assert fit_preprocess(_numbers([1.0, NAN]), {"요금": "number"}, allow_nan=True).features == (NumericFeature("요금", fill=None),)


def test_levels_are_sorted_and_missing_gets_a_column_when_seen():
    """Levels do not depend on the order of rows."""
    table = pl.DataFrame({"계약": ["나", None, "가", "나"]})

    assert fit_preprocess(table, {"계약": "category"}, allow_nan=True).features == (
        CategoryFeature("계약", ("가", "나"), missing_level=True),
    )


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param({"max_levels": 2}, ("a", "b"), id="the rarest level is dropped"),
        pytest.param({"min_frequency": 3}, ("a",), id="a level seen too seldom is like one never seen"),
        pytest.param({"max_levels": 1}, ("a",), id="only the most frequent"),
    ],
)
def test_rare_levels_become_unknown(options, levels):
    """Limits drop the rarer levels first."""
    table = pl.DataFrame({"c": ["a"] * 3 + ["b"] * 2 + ["c"]})

    assert fit_preprocess(table, {"c": "category"}, allow_nan=True, **options).features[0].levels == levels


@pytest.mark.parametrize(
    ("table", "kinds", "code"),
    [
        pytest.param(_numbers([NAN, NAN]), {"요금": "number"}, "train-all-missing", id="a number that is never there"),
        pytest.param(
            pl.DataFrame({"c": pl.Series([None], dtype=pl.String)}), {"c": "category"}, "train-all-missing", id="a category never there"
        ),
        pytest.param(_numbers([]), {"요금": "number"}, "train-empty", id="no rows"),
        pytest.param(_numbers([1.0]), {"요긍": "number"}, "train-feature", id="a feature nobody computed"),
    ],
)
def test_unusable_tables_are_refused(table, kinds, code):
    """Each refusal has its own code."""
    with pytest.raises(SpecError) as caught:
        fit_preprocess(table, kinds, allow_nan=False)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        pytest.param(HistGradientBoostingClassifier(), False, id="histogram boosting takes NaN"),
        pytest.param(LogisticRegression(), True, id="a linear model does not"),
        pytest.param(RandomForestClassifier(), True, id="a forest does, but the branch has no export"),
        pytest.param(make_pipeline(StandardScaler(), LogisticRegression()), True, id="a scaler hands NaN on to who cannot take it"),
        pytest.param(make_pipeline(SimpleImputer(), LogisticRegression()), False, id="an imputer ends the question"),
        pytest.param(make_pipeline(StandardScaler(), HistGradientBoostingClassifier()), False, id="a scaler before one that can"),
        pytest.param(
            make_pipeline(make_column_transformer((SimpleImputer(), [0])), LogisticRegression()),
            False,
            id="an imputer inside a transformer",
        ),
        pytest.param(CalibratedClassifierCV(HistGradientBoostingClassifier()), True, id="a wrapper that does not say so"),
        pytest.param(object(), True, id="something that says nothing"),
    ],
)
def test_who_needs_filled_numbers(estimator, expected):
    """Every step up to an imputer is asked, not only the first."""
    assert needs_fill(estimator) is expected
