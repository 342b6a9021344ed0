"""The model behind the preprocessing: one graph from raw columns to the answer, whatever versions the parts came in."""

import lightgbm
import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier

from mulle.bundle.convert import estimator_to_onnx
from mulle.bundle.graph import attach_model, build_preprocessing, output_name, run_graph
from mulle.core.errors import SpecError
from mulle.core.expr import col
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess
from mulle.core.schema import Column, ColumnType, Schema
from mulle.data.arrays import to_arrays

SCHEMA = Schema((Column("나이", ColumnType.NUMBER), Column("계약", ColumnType.TEXT)))
FEATURES = {"age": (col("나이") + 1).log(), "contract": col("계약").squeeze().category()}
PREPROCESS = Preprocess((NumericFeature("age", 0.0), CategoryFeature("contract", ("월", "두 해"), missing_level=True)))


def _data():
    rng = np.random.default_rng(5)
    frame = pl.DataFrame({"나이": rng.uniform(0, 90, 300), "계약": rng.choice(["월", " 두  해 "], 300).tolist()})
    frame = frame.with_columns(pl.when(pl.col("나이") < 5).then(None).otherwise(pl.col("계약")).alias("계약"))
    y = ((frame["나이"].to_numpy() > 40) ^ (rng.random(300) < 0.1)).astype(int)
    return to_arrays(frame, SCHEMA), y


def _named(model, source, wanted):
    """The exported model with one output, called as ours are."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.node.append(helper.make_node("Identity", [source], [wanted]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(wanted, TensorProto.FLOAT, ["n", None]))
    return model.SerializeToString()


@pytest.mark.parametrize("opset", [15, 18, 21], ids=["an older opset is converted", "one in between", "a newer one is joined"])
@pytest.mark.parametrize("estimator", [LogisticRegression(), MLPClassifier((4,), max_iter=20)], ids=["linear", "a small network"])
@pytest.mark.filterwarnings("ignore:.*converge")
def test_sklearn_classifiers_answer_from_raw_columns(estimator, opset):
    """The joined graph gives what preprocessing and estimator give one after the other."""
    arrays, y = _data()
    front = build_preprocessing(FEATURES, SCHEMA, PREPROCESS)
    matrix = run_graph(front, arrays, output="features")
    fitted = estimator.fit(matrix, y)
    onnx_model = to_onnx(
        fitted,
        initial_types=[("features", FloatTensorType([None, matrix.shape[1]]))],
        target_opset={"": opset, "ai.onnx.ml": 3},
        options={"zipmap": False},
    )
    whole = attach_model(front, onnx_model.SerializeToString(), task="binary", n_classes=2)

    np.testing.assert_allclose(run_graph(whole, arrays, output="probabilities"), fitted.predict_proba(matrix), atol=1e-5)
    assert [value.name for value in onnx.load_from_string(whole).graph.input] == ["나이", "계약"]


@pytest.mark.parametrize(
    "estimator",
    [HistGradientBoostingClassifier(max_iter=10, random_state=0), lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)],
    ids=["sklearn", "lightgbm"],
)
def test_boosted_trees_answer_from_raw_columns(estimator):
    """What our own exporter writes is joined too."""
    arrays, y = _data()
    front = build_preprocessing(FEATURES, SCHEMA, PREPROCESS)
    matrix = run_graph(front, arrays, output="features")
    fitted = estimator.fit(matrix, y)
    whole = attach_model(front, estimator_to_onnx(fitted, matrix.shape[1], "binary"), task="binary", n_classes=2)

    np.testing.assert_allclose(run_graph(whole, arrays, output="probabilities"), fitted.predict_proba(matrix), atol=1e-5)


def _regression(width):
    exported = to_onnx(
        LinearRegression().fit(np.eye(width, dtype=np.float32), np.arange(width)),
        initial_types=[("features", FloatTensorType([None, width]))],
    )
    return _named(exported, "variable", "prediction")


def test_regression_is_one_column_and_a_column_may_have_its_name():
    """`prediction` as a raw column moves the output's name, and `output_name` says where."""
    schema = Schema((Column("prediction", ColumnType.NUMBER),))
    front = build_preprocessing({"f": col("prediction")}, schema, Preprocess((NumericFeature("f"),)))
    whole = attach_model(front, _regression(1), task="regression", n_classes=0)
    name = output_name(whole)

    assert name == "prediction_"
    assert run_graph(whole, {"prediction": np.ones(3)}, output=name).shape == (3, 1)


@pytest.mark.parametrize(
    ("task", "n_classes", "fix"),
    [
        pytest.param("binary", 2, "output 'probabilities'", id="a regression is no classifier"),
        pytest.param("regression", 0, "train and export", id="another number of features"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(task, n_classes, fix):
    """Names and widths are compared before anything is joined."""
    front = build_preprocessing(FEATURES, SCHEMA, PREPROCESS)
    with pytest.raises(SpecError) as caught:
        attach_model(front, _regression(7), task=task, n_classes=n_classes)

    assert caught.value.code == "graph-model"
    assert fix in caught.value.fix


def test_the_same_inputs_give_the_same_bytes():
    """Bundles are named by their bytes: building twice must not move them."""
    front = build_preprocessing(FEATURES, SCHEMA, PREPROCESS)
    again = build_preprocessing(FEATURES, SCHEMA, PREPROCESS)

    assert front == again
    assert attach_model(front, _regression(4), task="regression", n_classes=0) == attach_model(
        again, _regression(4), task="regression", n_classes=0
    )
