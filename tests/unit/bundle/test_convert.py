"""Every family of estimators as a graph with one input and one output, saying what Python says."""

import warnings

import lightgbm
import numpy as np
import onnx
import pytest
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import Lasso, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mulle.bundle.boosters import floor_float32
from mulle.bundle.convert import estimator_to_onnx
from mulle.bundle.onnx_file import quiet_session
from mulle.core.errors import SpecError

D = 5
PAIR = [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3))]


def _data(k=2, n=300):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, (n, D)).astype(np.float32)
    score = x[:, 0] * 2 + x[:, 1] ** 2 + rng.normal(0, 0.5, n)
    return x, np.digitize(score, np.quantile(score, np.arange(1, k) / k)), score - score.min() + 0.1


def _run(model, x):
    return quiet_session(model).run(None, {"features": x})


CLASSIFIERS = [
    pytest.param(LogisticRegression(), id="logistic regression"),
    pytest.param(SGDClassifier(loss="log_loss"), id="SGD"),
    pytest.param(DecisionTreeClassifier(), id="a tree"),
    pytest.param(RandomForestClassifier(10), id="a forest"),
    pytest.param(ExtraTreesClassifier(10), id="extra trees"),
    pytest.param(GradientBoostingClassifier(n_estimators=10), id="gradient boosting"),
    pytest.param(HistGradientBoostingClassifier(max_iter=10), id="histogram boosting"),
    pytest.param(AdaBoostClassifier(n_estimators=10), id="AdaBoost"),
    pytest.param(KNeighborsClassifier(), id="neighbours"),
    pytest.param(GaussianNB(), id="naive Bayes"),
    pytest.param(MLPClassifier((6,), max_iter=30, tol=10.0), id="a perceptron"),
    pytest.param(CalibratedClassifierCV(LinearSVC()), id="a calibrated SVM"),
    pytest.param(StackingClassifier(PAIR), id="a stack"),
    pytest.param(VotingClassifier(PAIR, voting="soft"), id="a vote, laid out flat"),
    pytest.param(make_pipeline(StandardScaler(), PCA(3), LogisticRegression()), id="a pipeline"),
    pytest.param(Pipeline([("none", "passthrough"), ("model", LogisticRegression())]), id="an idle step"),
    pytest.param(lightgbm.LGBMClassifier(n_estimators=10, verbosity=-1), id="LightGBM"),
    pytest.param(xgboost.XGBClassifier(n_estimators=10), id="XGBoost"),
    pytest.param(VotingClassifier([*PAIR, ("c", xgboost.XGBClassifier(n_estimators=5))], voting="soft"), id="XGBoost in a vote"),
]


@pytest.mark.parametrize("k", [pytest.param(2, id="two classes"), pytest.param(3, id="three classes")])
@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_classifiers_export_their_probabilities(estimator, k):
    """One output `probabilities`, float32 (n, k), within 1e-4 of predict_proba."""
    x, y, _ = _data(k)
    estimator.fit(x, y)
    (scores,) = _run(estimator_to_onnx(estimator, D, "binary" if k == 2 else "multiclass"), x)

    assert (scores.shape, scores.dtype) == ((300, k), np.float32)
    # A row that sits on a scaled split may change sides; fitting in the graph's precision is train/fit.py's task.
    assert (np.abs(scores - estimator.predict_proba(x)).max(axis=1) > 1e-4).mean() <= 0.01


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(Ridge(), id="ridge"),
        pytest.param(Lasso(), id="lasso"),
        pytest.param(RandomForestRegressor(10), id="a forest"),
        pytest.param(GradientBoostingRegressor(n_estimators=10), id="gradient boosting"),
        pytest.param(HistGradientBoostingRegressor(max_iter=10), id="histogram boosting"),
        pytest.param(HistGradientBoostingRegressor(loss="poisson", max_iter=10), id="a log link the converter forgets"),
        pytest.param(HistGradientBoostingRegressor(loss="gamma", max_iter=10), id="another one"),
        pytest.param(lightgbm.LGBMRegressor(n_estimators=10, verbosity=-1), id="LightGBM"),
        pytest.param(lightgbm.LGBMRegressor(n_estimators=10, verbosity=-1, objective="poisson"), id="LightGBM with a log link"),
        pytest.param(xgboost.XGBRegressor(n_estimators=10), id="XGBoost"),
    ],
)
def test_regressors_export_their_prediction(estimator):
    """One output `prediction`, float32 (n, 1)."""
    x, _, target = _data()
    estimator.fit(x, target)
    (scores,) = _run(estimator_to_onnx(estimator, D, "regression"), x)

    assert (scores.shape, scores.dtype) == ((300, 1), np.float32)
    np.testing.assert_allclose(scores[:, 0], estimator.predict(x), rtol=1e-4, atol=1e-4)


def test_the_graph_has_one_input_and_one_output_and_standard_operators():
    """What the next station joins to the preprocessing."""
    x, y, _ = _data()
    model = onnx.load_model_from_string(estimator_to_onnx(RandomForestClassifier(3).fit(x, y), D, "binary"))

    assert [i.name for i in model.graph.input] == ["features"]
    assert [o.name for o in model.graph.output] == ["probabilities"]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx.ml"}


def test_the_same_estimator_gives_the_same_bytes():
    """An export is reproducible: its digest is the model's."""
    x, y, _ = _data()
    estimator = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x, y)

    assert estimator_to_onnx(estimator, D, "binary") == estimator_to_onnx(estimator, D, "binary")


def test_missing_numbers_go_where_boosters_send_them():
    """NaN is answered as in Python, also where training saw none."""
    x, y, _ = _data()
    holes = x.copy()
    holes[::3, 0] = np.nan
    dense = x.copy()
    for estimator in (
        HistGradientBoostingClassifier(max_iter=20),
        lightgbm.LGBMClassifier(n_estimators=20, verbosity=-1),
        xgboost.XGBClassifier(n_estimators=20),
    ):
        for training in (holes, dense):
            estimator.fit(training, y)
            (scores,) = _run(estimator_to_onnx(estimator, D, "binary"), holes)

            np.testing.assert_allclose(scores, estimator.predict_proba(holes), atol=1e-4)


def test_lightgbm_splits_between_neighbouring_floats_are_exact():
    """Prices that differ in the last bit only stay on their own side."""
    low = np.float32(30.449999)
    high = np.nextafter(low, np.float32(np.inf))
    x = np.tile(np.array([[low], [high]], np.float32), (200, 1))
    y = np.tile([0, 1], 200)
    estimator = lightgbm.LGBMClassifier(n_estimators=5, verbosity=-1).fit(x, y)
    (scores,) = _run(estimator_to_onnx(estimator, 1, "binary"), x)

    assert estimator.predict_proba(x)[0, 1] < estimator.predict_proba(x)[1, 1]
    np.testing.assert_allclose(scores, estimator.predict_proba(x), atol=1e-5)


def test_floor_float32_never_rounds_up():
    """The largest float32 that is not above."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1e3, 2000)
    floors = np.array([floor_float32(v) for v in values])

    assert (floors <= values).all()
    assert (np.nextafter(floors.astype(np.float32), np.float32(np.inf)).astype(float) > values).all()


@pytest.mark.parametrize(
    ("estimator", "code", "named"),
    [
        pytest.param(
            make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()), "export-unsupported", "FunctionTransformer", id="a function"
        ),
        pytest.param(make_pipeline(SplineTransformer(), LogisticRegression()), "export-unsupported", "SplineTransformer", id="splines"),
        pytest.param("no estimator", "export-unsupported", "no estimator", id="not an estimator"),
    ],
)
def test_what_cannot_be_exported_is_named(estimator, code, named):
    """The offending step, and the way out."""
    x, y, _ = _data()
    if hasattr(estimator, "fit"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(np.abs(x), y)
    with pytest.raises(SpecError) as caught:
        estimator_to_onnx(estimator, D, "binary")

    assert (caught.value.code, named in caught.value.what) == (code, True)


def test_an_unfitted_estimator_is_refused():
    """Export before fit is an error with that word in it."""
    with pytest.raises(SpecError) as caught:
        estimator_to_onnx(LogisticRegression(), D, "binary")

    assert caught.value.code == "export-not-fitted"
