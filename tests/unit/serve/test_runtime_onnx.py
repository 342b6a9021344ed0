"""Loading graphs: only whole, honest ONNX, and only answers that can be served."""

import json
import pickle

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mulle.core.errors import CheckError, SpecError
from mulle.formats.bundle import read_manifest
from mulle.formats.golden import Golden
from mulle.formats.onnx_scan import require_plain_onnx
from mulle.formats.rows import encode_rows
from mulle.serve.reload import load_bundle
from mulle.serve.runtimes.onnx import OnnxRuntime
from support.bundles import COLUMNS, GOLDEN_ROWS, answers, churn_graph, seal_churn, trusted_key


def test_the_runtime_answers_what_plain_onnx_runtime_answers(tmp_path):
    """Missing numbers, missing texts and Korean categories included."""
    sealed = seal_churn(tmp_path)
    runtime = load_bundle(sealed.path, trusted=[trusted_key()])
    scores = runtime.run(encode_rows(GOLDEN_ROWS, COLUMNS, absent_is_missing=True))

    assert np.array_equal(answers(churn_graph(), GOLDEN_ROWS), scores)
    assert (0, 2) == runtime.run(encode_rows([], COLUMNS)).shape


def external(location):
    """Return a model that keeps a tensor in another file."""
    model = onnx.load_from_string(churn_graph())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return model.SerializeToString()


def external_in_a_branch():
    """Return a model whose external tensor hides in the branch of an If."""
    inner = onnx.load_from_string(external("../../secret")).graph.initializer[0]
    branch = helper.make_graph([helper.make_node("Identity", [inner.name], ["o"])], "b", [], [], [inner])
    node = helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [], [])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("data", "code", "fragment"),
    [
        pytest.param(b"", "model-not-onnx", "empty", id="an empty file"),
        pytest.param(pickle.dumps({"a": 1}), "model-not-onnx", "pickle", id="a pickle renamed .onnx"),
        pytest.param(pickle.dumps([1] * 1000, protocol=0), "model-not-onnx", "damaged", id="a text pickle"),
        pytest.param(b"PK\x03\x04" + b"\x00" * 50, "model-not-onnx", "ZIP", id="a ZIP archive"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + b"\x00" * 20, "model-not-onnx", "HDF5", id="an HDF5 file"),
        pytest.param(churn_graph()[:-7], "model-not-onnx", "damaged", id="cut off"),
        pytest.param(b"\x08" * 9, "model-not-onnx", "damaged", id="protobuf that is no model"),
        pytest.param(external("/etc/passwd"), "model-external-data", "other files", id="an absolute path"),
        pytest.param(external("../x"), "model-external-data", "other files", id="a path out of the folder"),
        pytest.param(external("weights.bin"), "model-external-data", "other files", id="a neighbour"),
        pytest.param(external_in_a_branch(), "model-external-data", "other files", id="hidden in a branch"),
    ],
)
def test_bytes_that_must_not_be_loaded_are_named(data, code, fragment):
    """Nothing but self-contained ONNX comes near the runtime."""
    with pytest.raises(CheckError) as caught:
        require_plain_onnx(data, where="model.onnx")

    assert code == caught.value.code
    assert fragment in caught.value.what


def test_a_flipped_byte_is_found_before_loading(tmp_path):
    """The digest of the graph is compared first, and the file is named."""
    sealed = seal_churn(tmp_path)
    path = sealed.path / "model.onnx"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckError) as caught:
        load_bundle(sealed.path, trusted=[trusted_key()])

    assert "bundle-tampered" == caught.value.code
    assert "'model.onnx'" in caught.value.what


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(lambda path: path.unlink(), "signature-missing", id="removed"),
        pytest.param(lambda path: path.write_bytes(b"{}"), "signature-missing", id="emptied"),
        pytest.param(
            lambda path: path.write_text(json.dumps({"key": "00" * 32, "signature": "00" * 64})), "signature-untrusted", id="foreign"
        ),
        pytest.param(
            lambda path: path.write_text(json.dumps({"key": trusted_key(), "signature": "00" * 64})), "signature-invalid", id="forged"
        ),
    ],
)
def test_a_bundle_without_a_good_signature_is_refused(tmp_path, change, code):
    """Unsigned, foreign and forged bundles do not load."""
    sealed = seal_churn(tmp_path)
    change(sealed.path / "attestations" / "signature.json")
    with pytest.raises(CheckError) as caught:
        load_bundle(sealed.path, trusted=[trusted_key()])

    assert code == caught.value.code


def test_golden_requests_must_reproduce(tmp_path):
    """A graph that answers something else than when it was sealed does not serve, and the worst row is shown."""
    sealed = seal_churn(tmp_path, golden_outputs=[[0.5, 0.5]] * 3)
    with pytest.raises(CheckError) as caught:
        load_bundle(sealed.path, trusted=[trusted_key()])

    assert "golden-differs" == caught.value.code
    assert "[0.5, 0.5]" == caught.value.facts["sealed"]


def test_a_bundle_without_golden_requests_is_refused(tmp_path):
    """Nothing to reproduce proves nothing."""
    sealed = seal_churn(tmp_path, golden_outputs=[])
    with pytest.raises(CheckError) as caught:
        load_bundle(sealed.path, trusted=[trusted_key()])

    assert "golden-empty" == caught.value.code


def graph_answering(kind):
    """Return a graph with the churn inputs that answers nonsense of one kind."""
    model = onnx.load_from_string(churn_graph())
    last = model.graph.node[-1]
    if kind == "nan":
        model.graph.node.append(helper.make_node("Div", ["zero32", "zero32"], ["bad"]))
        model.graph.initializer.append(helper.make_tensor("zero32", TensorProto.FLOAT, [1, 2], [0.0, 0.0]))
        last.output[0] = "inner"
        model.graph.node.append(helper.make_node("Add", ["inner", "bad"], ["probabilities"]))
    elif kind == "sum":
        last.output[0] = "inner"
        model.graph.node.append(helper.make_node("Add", ["inner", "inner"], ["probabilities"]))
    else:
        last.attribute[0].i = 0
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        pytest.param("nan", "row 0", id="not a number"),
        pytest.param("sum", "sum to 2", id="sums to two"),
        pytest.param("shape", "shape", id="another shape"),
    ],
)
def test_nonsense_is_not_served(tmp_path, kind, fragment):
    """An answer that is no probability distribution is the model's failure, said as such."""
    sealed = seal_churn(tmp_path, graph=graph_answering(kind), golden_outputs=[[0.5, 0.5]] * 3)
    runtime = OnnxRuntime(sealed.path, sealed.manifest)
    with pytest.raises(CheckError) as caught:
        runtime.run(encode_rows(GOLDEN_ROWS, COLUMNS, absent_is_missing=True))

    assert "model-output" == caught.value.code
    assert fragment in caught.value.what


def test_a_graph_that_is_not_the_manifests_is_refused(tmp_path):
    """Names and types of the inputs are compared before the first request."""
    sealed = seal_churn(tmp_path)
    other = msgspec.structs.replace(sealed.manifest, graph=msgspec.structs.replace(sealed.manifest.graph, output="scores"))
    with pytest.raises(CheckError) as caught:
        OnnxRuntime(sealed.path, other)

    assert "model-interface" == caught.value.code


def test_a_missing_graph_is_said(tmp_path):
    """A folder without its graph is an error with a path."""
    sealed = seal_churn(tmp_path)
    (sealed.path / "model.onnx").unlink()
    with pytest.raises(SpecError) as caught:
        OnnxRuntime(sealed.path, read_manifest(sealed.path))

    assert "file-missing" == caught.value.code


def test_golden_documents_are_read_strictly():
    """An unknown field in the golden document is refused by its reader."""
    document = json.loads(Golden(rows=(), outputs=()).to_bytes()) | {"extra": 1}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, Golden)
