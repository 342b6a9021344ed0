"""Fitting: deterministic, in the graph's precision, with errors that point at the recipe."""

import random

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mulle.bundle.convert import estimator_to_onnx, export_transform
from mulle.bundle.onnx_file import quiet_session
from mulle.core.errors import SpecError, UserCodeError
from mulle.core.project import ModelRecipe
from mulle.train.fit import build_estimator, fit_estimator, predict_scores

NAMES = ("요금", "기간", "나이")


def _data(n=600, k=2, seed=0):
    rng = np.random.default_rng(seed)
    # Prices in steps of 0.05 sit on splits: what makes scaled forests disagree.
    x = np.column_stack([rng.integers(360, 2400, n) * 0.05, rng.integers(0, 72, n), rng.normal(40, 12, n)]).astype(np.float32)
    score = x[:, 0] / 40 + x[:, 1] / 30 + rng.normal(0, 0.5, n)
    return x, np.array(["가", "나", "다"])[np.digitize(score, np.quantile(score, np.arange(1, k) / k))]


def _graph_scores(fitted, x, task):
    return quiet_session(estimator_to_onnx(fitted.estimator, x.shape[1], task)).run(None, {"features": x})[0]


def test_a_scaled_forest_agrees_with_its_graph_in_every_row():
    """Trees fitted on what the exported scaler puts out never fall to the other side; behind sklearn's own some do."""
    x, y = _data(3000)
    recipe = make_pipeline(StandardScaler(), RandomForestClassifier(50))
    plain = fit_estimator(recipe, x, y, names=NAMES, seed=1)
    exported = fit_estimator(recipe, x, y, names=NAMES, seed=1, export=export_transform)
    held = _data(3000, seed=1)[0]
    differing = [
        int((np.abs(predict_scores(f, held, "binary") - _graph_scores(f, held, "binary")).max(axis=1) > 1e-4).sum())
        for f in (plain, exported)
    ]

    assert (differing[0] > 0, differing[1]) == (True, 0)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(HistGradientBoostingClassifier(max_iter=20), id="histogram boosting"),
        pytest.param(RandomForestClassifier(20), id="a forest"),
        pytest.param(make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=20, tol=1.0)), id="a perceptron behind a scaler"),
        pytest.param(lightgbm.LGBMClassifier(n_estimators=10, subsample=0.5, subsample_freq=1, n_jobs=1), id="LightGBM"),
        pytest.param(xgboost.XGBClassifier(n_estimators=10, subsample=0.5, n_jobs=1), id="XGBoost"),
    ],
)
def test_the_same_seed_gives_the_same_bits(estimator):
    """Two fits under one seed answer bit for bit alike."""
    x, y = _data()
    first, second = (
        predict_scores(fit_estimator(estimator, x, y, names=NAMES, seed=7, export=export_transform), x, "binary") for _ in range(2)
    )

    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        pytest.param(
            HistGradientBoostingClassifier(max_iter=9, early_stopping=True), {"train_score", "validation_score"}, id="histogram boosting"
        ),
        pytest.param(GradientBoostingClassifier(n_estimators=5), {"train_score"}, id="gradient boosting"),
        pytest.param(MLPClassifier((4,), max_iter=30, tol=10.0), {"loss"}, id="a perceptron"),
        pytest.param(lightgbm.LGBMClassifier(n_estimators=5), {"train_binary_logloss"}, id="LightGBM"),
        pytest.param(
            lightgbm.LGBMClassifier(n_estimators=5, early_stopping_round=2),
            {"train_binary_logloss", "validation_binary_logloss"},
            id="early",
        ),
        pytest.param(xgboost.XGBClassifier(n_estimators=5), {"train_logloss"}, id="XGBoost"),
        pytest.param(LogisticRegression(max_iter=2000), set(), id="a model without steps"),
    ],
)
def test_step_curves_are_kept(estimator, names):
    """Whoever learns in steps shows them."""
    x, y = _data()

    assert set(fit_estimator(estimator, x, y, names=NAMES, seed=0).curves) == names


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(LogisticRegression(class_weight={"가": 1, "나": 50}, max_iter=5000), id="sklearn takes the labels"),
        pytest.param(
            lightgbm.LGBMClassifier(n_estimators=5, class_weight={"가": 1, "나": 50}), id="LightGBM gets codes, and so do its weights"
        ),
    ],
)
def test_class_weights_by_label_keep_their_meaning(estimator):
    """A weight on 나 makes 나 likelier, whatever the labels are turned into."""
    x, y = _data()
    unweighted = estimator.__class__(**{**estimator.get_params(), "class_weight": None})
    heavy, light = (predict_scores(fit_estimator(e, x, y, names=NAMES), x, "binary")[:, 1].mean() for e in (estimator, unweighted))

    assert heavy > light + 0.1


def test_classes_are_in_the_order_of_the_probabilities():
    """Three labels, three columns, sorted."""
    x, y = _data(k=3)
    fitted = fit_estimator(RandomForestClassifier(5), x, y, names=NAMES, task="multiclass")

    assert (fitted.classes, predict_scores(fitted, x, "multiclass").shape) == (("가", "나", "다"), (600, 3))


def test_regression_answers_one_column():
    """Predictions have shape (n, 1) and no classes."""
    x, _ = _data()
    fitted = fit_estimator(HistGradientBoostingRegressor(max_iter=5), x, x[:, 0].astype(float), names=NAMES, task="regression")

    assert (fitted.classes, predict_scores(fitted, x, "regression").shape) == ((), (600, 1))


def test_columns_may_be_named():
    """A ColumnTransformer and monotonic constraints speak of names; the matrix has positions."""
    x, y = _data()
    scaled = make_pipeline(
        make_column_transformer((StandardScaler(), ["기간", "나이"]), remainder="passthrough"), LogisticRegression(max_iter=500)
    )
    bound = HistGradientBoostingClassifier(max_iter=5, monotonic_cst={"기간": 1})
    shapes = [predict_scores(fit_estimator(e, x, y, names=NAMES, export=export_transform), x, "binary").shape for e in (scaled, bound)]

    assert shapes == [(600, 2), (600, 2)]


def test_global_generators_are_given_back():
    """Fitting seeds them and restores them."""
    x, y = _data()
    before = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    fit_estimator(HistGradientBoostingClassifier(max_iter=2), x, y, names=NAMES, seed=3)

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@pytest.mark.parametrize(
    ("x", "y", "estimator", "task", "code"),
    [
        pytest.param(_data()[0], ["a"] * 600, LogisticRegression(), "binary", "target-one-class", id="one class only"),
        pytest.param(
            _data()[0], _data(k=3)[1], LogisticRegression(), "binary", "target-many-classes", id="three classes for a binary task"
        ),
        pytest.param(_data()[0], [0.5] * 600, LogisticRegression(), "binary", "target-continuous", id="numbers as classes"),
        pytest.param(_data()[0], [None] + ["a"] * 599, LogisticRegression(), "binary", "target-missing", id="a missing label"),
        pytest.param(_data()[0], _data()[1], SVC(), "binary", "model-no-probabilities", id="no probabilities"),
        pytest.param(_data()[0], _data()[1], SGDClassifier(), "binary", "model-no-probabilities", id="a loss without probabilities"),
        pytest.param(_data()[0], _data()[1], HistGradientBoostingRegressor(), "binary", "model-wrong-task", id="a regressor for classes"),
        pytest.param(_data()[0], _data()[0][:, 0], LogisticRegression(), "regression", "model-wrong-task", id="a classifier for numbers"),
        pytest.param(
            _data()[0], [float("nan")] * 600, HistGradientBoostingRegressor(), "regression", "target-not-number", id="targets that are NaN"
        ),
        pytest.param(
            np.full((600, 3), np.inf, np.float32), _data()[1], HistGradientBoostingClassifier(), "binary", "train-not-finite", id="infinity"
        ),
        pytest.param(
            np.full((600, 3), np.nan, np.float32), _data()[1], LogisticRegression(), "binary", "train-not-finite", id="NaN for who cannot"
        ),
        pytest.param(np.zeros((0, 3), np.float32), [], LogisticRegression(), "binary", "train-empty", id="no rows"),
        pytest.param(np.zeros((2, 2), np.float32), ["a", "b"], LogisticRegression(), "binary", "train-matrix", id="names that do not fit"),
    ],
)
def test_what_cannot_be_learnt_is_refused(x, y, estimator, task, code):
    """Each refusal has its own code and a way out."""
    with pytest.raises(SpecError) as caught:
        fit_estimator(estimator, x, y, names=NAMES, task=task)

    assert caught.value.code == code


def test_a_transformer_without_export_is_named():
    """The step that cannot leave Python is named before any time is spent on the last one."""
    from sklearn.preprocessing import FunctionTransformer

    x, y = _data()
    with pytest.raises(SpecError) as caught:
        fit_estimator(make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()), x, y, names=NAMES, export=export_transform)

    assert (caught.value.code, "FunctionTransformer" in caught.value.what, "expression" in caught.value.fix) == (
        "export-unsupported",
        True,
        True,
    )


def test_what_an_estimator_raises_points_somewhere():
    """An exception inside fit becomes an error, not a traceback."""
    x, y = _data()
    with pytest.raises(UserCodeError) as caught:
        fit_estimator(HistGradientBoostingClassifier(learning_rate=-1), x, y, names=NAMES)

    assert "learning_rate" in caught.value.what


def _recipe(function):
    return ModelRecipe(function.__name__, function)


def test_a_recipe_gets_parameters_and_the_seed():
    """Values replace defaults; an unset random_state inside a pipeline is seeded too."""

    def model(depth=3, seed=0):
        del seed
        return make_pipeline(StandardScaler(), RandomForestClassifier(max_depth=depth))

    made = build_estimator(_recipe(model), {"depth": 5}, seed=11, task="binary")

    assert made[-1].get_params()["max_depth"] == 5
    assert made[-1].random_state == 11


def test_an_unknown_parameter_names_the_nearest():
    """A typo in mulle.toml is answered with what was meant, and where the function stands."""

    def model(learning_rate=0.1):
        return LogisticRegression(C=learning_rate)

    with pytest.raises(SpecError) as caught:
        build_estimator(_recipe(model), {"learning_rat": 1})

    assert (caught.value.code, "'learning_rate'" in caught.value.fix, "test_fit.py:" in caught.value.where) == (
        "model-parameter-unknown",
        True,
        True,
    )


def _needs(depth):
    return RandomForestClassifier(max_depth=depth)


def _a_class():
    return LogisticRegression


def _nothing():
    return None


def _raises():
    raise ValueError("안 됩니다")


@pytest.mark.parametrize(
    ("function", "code"),
    [
        pytest.param(_needs, "model-parameter-missing", id="a parameter without any value"),
        pytest.param(_a_class, "model-not-estimator", id="the class instead of an instance"),
        pytest.param(_nothing, "model-not-estimator", id="no return"),
        pytest.param(_raises, "user-code", id="the function raises"),
    ],
)
def test_unusable_recipes_are_refused(function, code):
    """Each with a code, and with the function's line."""
    with pytest.raises(SpecError) as caught:
        build_estimator(_recipe(function), {})

    assert (caught.value.code, "test_fit.py" in caught.value.where) == (code, True)
