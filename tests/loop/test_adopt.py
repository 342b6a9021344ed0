"""Adoption end to end: a file or a fitted pipeline becomes a sealed bundle that verifies and reproduces its golden requests."""

import pickle

import numpy as np
import onnx
import pandas as pd
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mulle.apps.cli.main import main
from mulle.bundle.adopt import adopt_estimator, adopt_onnx
from mulle.bundle.onnx_file import load_onnx
from mulle.core.errors import CheckError, SpecError
from mulle.formats.bundle import verify_bundle
from mulle.formats.golden import read_golden
from mulle.loop.adopt import seal_adopted
from mulle.serve.runtimes.onnx import OnnxRuntime


@pytest.fixture(scope="module")
def customers():
    """Return 300 rows with Korean names, a category and a label."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"요금 제": rng.choice(["기본", "고급"], 300), "월 요금": rng.normal(50, 10, 300), "기간": rng.integers(0, 70, 300).astype(float)}
    )
    return frame.assign(이탈=np.where(frame["월 요금"] + 5 * (frame["요금 제"] == "고급") > 52, "예", "아니오"))


@pytest.fixture(scope="module")
def pipeline(customers):
    """Return a fitted pipeline over columns by name."""
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["요금 제"]), (StandardScaler(), ["월 요금", "기간"]))
    return make_pipeline(columns, LogisticRegression()).fit(customers.drop(columns="이탈"), customers["이탈"])


def _linear(path, *, inputs=(("x", TensorProto.FLOAT, [None, 3]),), nodes=None, outputs=None, initializers=()):
    """Write a small graph: by default softmax(x W) with three columns and two classes."""
    weights = numpy_helper.from_array(np.array([[1, -1], [0.5, 0], [0, 0.5]], np.float32), "w")
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["probabilities"], axis=1)]
    outputs = outputs or [("probabilities", TensorProto.FLOAT, [None, 2])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [weights, *initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return model


def _sample(columns="abc", n=50):
    rng = np.random.default_rng(1)
    return pl.DataFrame({name: rng.normal(size=n) for name in columns})


def test_a_fitted_pipeline_becomes_a_bundle_that_serves_what_it_said(customers, pipeline, tmp_path):
    """Sealed, verified, and the golden requests reproduce in the server's own runtime."""
    adopted = adopt_estimator(pipeline, customers, target="이탈", positive="예")
    sealed = seal_adopted(adopted, name="이탈", output=tmp_path)
    manifest = verify_bundle(sealed.path, digest=sealed.digest)
    golden = read_golden(sealed.path / "golden.json")
    runtime = OnnxRuntime(sealed.path, manifest)
    from mulle.formats.rows import encode_rows

    answers = runtime.run(encode_rows(golden.rows, manifest.columns))

    assert (manifest.classes, manifest.positive, manifest.target) == (("아니오", "예"), "예", "이탈")
    np.testing.assert_allclose(answers, golden.outputs, atol=golden.tolerance)
    assert sealed.digest == seal_adopted(adopted, name="이탈", output=tmp_path).digest


def test_an_estimator_on_a_plain_matrix_is_adopted():
    """No names were learnt: the sample's columns in order."""
    sample = _sample()
    y = sample["a"].to_numpy() > 0
    adopted = adopt_estimator(HistGradientBoostingClassifier(max_iter=5).fit(sample.to_numpy(), y), sample)

    assert (adopted.info.inputs[0].columns, adopted.classes, adopted.parity.n_disagreeing) == (("a", "b", "c"), ("False", "True"), 0)


def test_a_regressor_is_adopted():
    """One number per row, no classes."""
    sample = _sample()
    adopted = adopt_estimator(LinearRegression().fit(sample.to_numpy(), sample["a"].to_numpy()), sample)

    assert (adopted.task, adopted.classes, adopted.scores.shape) == ("regression", (), (50, 1))


def test_an_export_with_zipmap_and_label_is_adopted(customers, pipeline, tmp_path):
    """skl2onnx's default output, a list of dictionaries, becomes a tensor; its class names are kept."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    from mulle.bundle.boosters import quiet_converters

    types = [("요금 제", StringTensorType([None, 1])), ("월 요금", FloatTensorType([None, 1])), ("기간", FloatTensorType([None, 1]))]
    with quiet_converters():
        (tmp_path / "m.onnx").write_bytes(to_onnx(pipeline, initial_types=types, target_opset=18).SerializeToString())
    adopted = adopt_onnx(tmp_path / "m.onnx", customers, target="이탈")

    assert (adopted.classes, adopted.schema.names) == (("아니오", "예"), ("요금 제", "월 요금", "기간"))
    np.testing.assert_allclose(adopted.scores, pipeline.predict_proba(customers.drop(columns="이탈")), atol=1e-5)


def test_one_positive_probability_becomes_two(tmp_path):
    """A sigmoid output (n, 1) is the probability of the second class."""
    _linear(
        tmp_path / "m.onnx",
        nodes=[helper.make_node("Slice", ["x", "s0", "s1", "ax"], ["z"]), helper.make_node("Sigmoid", ["z"], ["prob"])],
        outputs=[("prob", TensorProto.FLOAT, [None, 1])],
        initializers=[numpy_helper.from_array(np.array([v], np.int64), k) for k, v in (("s0", 0), ("s1", 1), ("ax", 1))],
    )
    adopted = adopt_onnx(tmp_path / "m.onnx", _sample(), task="binary")

    np.testing.assert_allclose(adopted.scores[:, 1], 1 / (1 + np.exp(-_sample()["a"].to_numpy())), atol=1e-5)


def test_logits_are_refused_and_then_accepted_with_the_flag(tmp_path):
    """Numbers that are no probabilities are never served as such."""
    _linear(tmp_path / "m.onnx", nodes=[helper.make_node("MatMul", ["x", "w"], ["z"])], outputs=[("z", TensorProto.FLOAT, [None, 2])])
    with pytest.raises(SpecError) as caught:
        adopt_onnx(tmp_path / "m.onnx", _sample())

    assert (caught.value.code, "--logits" in caught.value.fix) == ("adopt-answers", True)
    assert np.allclose(adopt_onnx(tmp_path / "m.onnx", _sample(), logits=True).scores.sum(axis=1), 1)


def test_inputs_of_small_integers_and_one_dimension_are_adapted(tmp_path):
    """int32 of shape (n,) is fed as int64 of shape (n, 1)."""
    _linear(
        tmp_path / "m.onnx",
        inputs=[("k", TensorProto.INT32, [None]), ("f", TensorProto.FLOAT, [None, 1])],
        nodes=[
            helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kf", "one"], ["kc"]),
            helper.make_node("Add", ["kc", "f"], ["sum"]),
        ],
        outputs=[("sum", TensorProto.FLOAT, [None, 1])],
        initializers=[numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    sample = pl.DataFrame({"k": [1, 2, 3], "f": [0.5, 0.25, 0.125]})
    adopted = adopt_onnx(tmp_path / "m.onnx", sample, task="regression")

    assert adopted.scores[:, 0].tolist() == [1.5, 2.25, 3.125]
    assert {i.name: i.dtype for i in adopted.info.inputs} == {"k": "int64", "f": "float"}


def _external(folder, location, **extra):
    model = _linear(folder / "m.onnx")
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(len(data)), **extra}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return data


def test_external_data_beside_the_model_is_brought_inside(tmp_path):
    """One file comes out, with the same answers."""
    _linear(tmp_path / "whole.onnx")
    (tmp_path / "w.bin").write_bytes(_external(tmp_path, "w.bin"))
    inlined = load_onnx(tmp_path / "m.onnx")

    assert inlined.graph.initializer[0].raw_data == onnx.load(tmp_path / "whole.onnx").graph.initializer[0].raw_data
    assert adopt_onnx(tmp_path / "m.onnx", _sample()).task == "binary"


@pytest.mark.parametrize(
    ("location", "extra"),
    [
        pytest.param("../secret.bin", {}, id="above the folder"),
        pytest.param("sub/../../secret.bin", {}, id="above the folder, by a detour"),
        pytest.param("/etc/hostname", {}, id="an absolute path"),
        pytest.param("link.bin", {}, id="a link out"),
        pytest.param("linked/w.bin", {}, id="a linked folder on the way"),
        pytest.param("", {}, id="an empty location"),
        pytest.param("C:\\w.bin", {}, id="a drive"),
        pytest.param("missing.bin", {}, id="a file that is not there"),
        pytest.param("w.bin", {"offset": "8"}, id="a range beyond the end"),
        pytest.param("w.bin", {"offset": "-4"}, id="a negative offset"),
        pytest.param("w.bin", {"offset": "many"}, id="an offset that is no number"),
        pytest.param("hard.bin", {}, id="a hard link to a file elsewhere"),
    ],
)
def test_external_data_that_leaves_the_folder_is_refused(tmp_path, location, extra):
    """The shapes of CVE-2022-25882, CVE-2024-27318 and CVE-2026-27489."""
    outside, folder = tmp_path / "secret.bin", tmp_path / "model"
    folder.mkdir()
    data = _external(folder, location, **extra)
    outside.write_bytes(data)
    (folder / "w.bin").write_bytes(data)
    (folder / "link.bin").symlink_to(outside)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(data)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "hard.bin").hardlink_to(outside)
    with pytest.raises(SpecError) as caught:
        load_onnx(folder / "m.onnx")

    assert caught.value.code == "onnx-external-data"


class _Bomb:
    """Would write a file if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_renamed_onnx_is_not_loaded(tmp_path, capsys):
    """Nothing inside runs; the error says what it is and what to paste."""
    (tmp_path / "model.onnx").write_bytes(pickle.dumps(_Bomb(tmp_path / "bang")))
    _sample().write_csv(tmp_path / "s.csv")
    code = main(["adopt", str(tmp_path / "model.onnx"), "--sample", str(tmp_path / "s.csv")])

    assert (code, (tmp_path / "bang").exists()) == (2, False)
    assert "onnx-is-pickle" in (shown := capsys.readouterr().err)
    assert "adopt_estimator" in shown


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "onnx-unreadable", id="an empty file"),
        pytest.param(b"PK\x03\x04rest", "onnx-unreadable", id="a PyTorch archive"),
        pytest.param(b"<html>", "onnx-unreadable", id="a web page"),
        pytest.param(b"\xff" * 64, "onnx-unreadable", id="noise"),
    ],
)
def test_other_files_are_refused(tmp_path, data, code):
    """What it is instead is said where it can be told."""
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(SpecError) as caught:
        load_onnx(tmp_path / "m.onnx")

    assert caught.value.code == code


def test_a_truncated_or_flipped_file_never_ends_in_a_traceback(tmp_path):
    """Any cut and any flipped byte is a SpecError or still a model."""
    _linear(tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    for i in range(0, len(data), 3):
        for bad in (data[:i], data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]):
            (tmp_path / "bad.onnx").write_bytes(bad)
            try:
                adopt_onnx(tmp_path / "bad.onnx", _sample())
            except SpecError as error:
                assert error.fix  # noqa: PT017  (both outcomes are right: an error that helps, or a model that works)


def test_custom_operators_are_refused(tmp_path):
    """An operator outside standard ONNX would need a library to be loaded."""
    _linear(
        tmp_path / "m.onnx",
        nodes=[helper.make_node("Evil", ["x"], ["probabilities"], domain="com.example")],
    )
    with pytest.raises(SpecError) as caught:
        load_onnx(tmp_path / "m.onnx")

    assert caught.value.code == "onnx-custom-op"


@pytest.mark.parametrize(
    ("sample", "options", "code"),
    [
        pytest.param(_sample("abcd"), {}, "adopt-column-count", id="one column too many"),
        pytest.param(_sample(), {"columns": ["a", "b", "z"]}, "adopt-column", id="a column that is not there"),
        pytest.param(_sample(), {"target": "z"}, "adopt-target", id="a target that is not there"),
        pytest.param(_sample(n=0), {}, "adopt-sample-empty", id="no rows"),
        pytest.param(_sample().with_columns(a=pl.lit("x")), {}, "adopt-column-type", id="text for numbers"),
        pytest.param(_sample(), {"classes": ["only"]}, "adopt-classes", id="too few classes"),
        pytest.param(_sample(), {"positive": "maybe"}, "adopt-positive", id="a positive class nobody knows"),
        pytest.param(_sample(), {"task": "regression"}, "adopt-answers", id="two numbers for a regression"),
        pytest.param(_sample(), {"task": "ranking"}, "project-task", id="a task nobody knows"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path, sample, options, code):
    """Each with its code and a fix."""
    _linear(tmp_path / "m.onnx")
    with pytest.raises(SpecError) as caught:
        adopt_onnx(tmp_path / "m.onnx", sample, **options)

    assert caught.value.code == code


def test_a_fixed_batch_size_is_noticed(tmp_path):
    """A graph that only answers three rows at once cannot be served."""
    _linear(
        tmp_path / "m.onnx",
        nodes=[
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Reshape", ["z", "fixed"], ["r"]),
            helper.make_node("Softmax", ["r"], ["probabilities"], axis=1),
        ],
        initializers=[numpy_helper.from_array(np.array([50, 2], np.int64), "fixed")],
    )
    with pytest.raises(SpecError) as caught:
        adopt_onnx(tmp_path / "m.onnx", _sample())

    assert caught.value.code in {"adopt-run", "adopt-batch"}


def test_a_graph_that_says_something_else_than_the_estimator_is_refused(customers, pipeline, monkeypatch):
    """Parity is checked before anything is sealed: an estimator changed after the fact is caught."""

    class Other(LogisticRegression):
        def predict_proba(self, x):
            return super().predict_proba(x)[:, ::-1]

    sample = _sample()
    other = Other().fit(sample.to_numpy(), sample["a"].to_numpy() > 0)
    with pytest.raises((CheckError, SpecError)) as caught:
        adopt_estimator(other, sample)

    assert caught.value.code in {"export-parity", "export-unsupported"}


@pytest.mark.parametrize(
    ("mlmodel", "code"),
    [
        pytest.param(
            "flavors:\n  sklearn:\n    pickled_model: model.pkl\n    serialization_format: cloudpickle\n",
            "adopt-mlflow-pickle",
            id="a pickle",
        ),
        pytest.param("flavors:\n  python_function:\n    loader_module: x\n", "adopt-mlflow-pickle", id="only code"),
        pytest.param("flavors:\n  onnx:\n    data: ../../m.onnx\n", "adopt-mlflow-path", id="a path that leaves the folder"),
        pytest.param("a: !!python/object/apply:os.system ['true']\n", "adopt-mlflow-unreadable", id="a tag that would run code"),
        pytest.param("x", "adopt-mlflow-unreadable", id="no flavours"),
    ],
)
def test_mlflow_models_that_need_code_are_refused(tmp_path, mlmodel, code):
    """Nothing is unpickled, no path leaves, no tag is obeyed."""
    from mulle.bundle.adopt_mlflow import adopt_mlflow

    (tmp_path / "MLmodel").write_text(mlmodel, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        adopt_mlflow(str(tmp_path), _sample())

    assert caught.value.code == code


def test_mlflow_onnx_models_are_taken_as_they_are(tmp_path):
    """The ONNX flavour's own file."""
    from mulle.bundle.adopt_mlflow import adopt_mlflow

    _linear(tmp_path / "model.onnx")
    (tmp_path / "MLmodel").write_text("flavors:\n  onnx:\n    data: model.onnx\n", encoding="utf-8")

    assert adopt_mlflow(str(tmp_path), _sample()).info.inputs[0].columns == ("a", "b", "c")


def test_mlflow_skops_models_are_loaded_with_trusted_types_only(tmp_path):
    """Skops' own list and no other; a function inside is refused."""
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    from mulle.bundle.adopt_mlflow import adopt_mlflow

    sample = _sample()
    y = sample["a"].to_numpy() > 0
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  sklearn:\n    pickled_model: m.skops\n    serialization_format: skops\n", encoding="utf-8"
    )
    skops.io.dump(LogisticRegression().fit(sample.to_numpy(), y), tmp_path / "m.skops")
    plain = adopt_mlflow(str(tmp_path), sample)
    skops.io.dump(make_pipeline(FunctionTransformer(_a_function), LogisticRegression()).fit(sample.to_numpy(), y), tmp_path / "m.skops")
    with pytest.raises(SpecError) as caught:
        adopt_mlflow(str(tmp_path), sample)

    assert (plain.task, caught.value.code) == ("binary", "adopt-skops-untrusted")


def _a_function(x):
    return x


def test_the_command_seals_and_says_what_to_type(tmp_path, capsys):
    """Digest, folder and the command to serve; JSON for machines."""
    import json

    _linear(tmp_path / "m.onnx")
    _sample().write_parquet(tmp_path / "s.parquet")
    arguments = [
        "adopt",
        str(tmp_path / "m.onnx"),
        "-s",
        str(tmp_path / "s.parquet"),
        "--name",
        "작은",
        "--classes",
        "아니오,예",
        "-o",
        str(tmp_path / "b"),
    ]
    code = main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)

    assert (code, document["classes"], document["serve"]) == (0, ["아니오", "예"], f"mulle serve --bundle {document['path']}")
    assert verify_bundle(tmp_path / "b" / document["digest"]).model == "작은"
