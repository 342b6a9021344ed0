"""Manifests of pictures and tensors, and that those of columns keep their digests."""

import msgspec
import numpy as np
import pytest

from mulle.bundle.seal import BundleContent
from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, FileInfo, Graph, GraphInput, GraphOutput, Manifest, read_manifest, verify_bundle
from mulle.formats.golden_tensors import GoldenTensor, GoldenTensors, golden_case, read_golden_tensors
from mulle.formats.image_spec import ImageInput
from support.bundles import COLUMNS, GRAPH
from support.tensors import IMAGE, TENSOR_GRAPH, seal_image, seal_tensors, tensor_graph

FILES = {"model.onnx": FileInfo("0" * 64, 1)}
PLAIN = Graph((GraphInput("x", "float", ("a",)),), "probabilities")
PICTURE = Graph((GraphInput("image", "float", shape=IMAGE.shape),), "probabilities")
COLUMN = (ColumnInfo("a", ColumnType.NUMBER),)


def test_digests_of_column_bundles_do_not_move():
    """The digest of a bundle sealed before there were pictures and tensors is the same now."""
    content = BundleContent(
        model_name="churn",
        task="binary",
        graph=b"g",
        graph_info=GRAPH,
        columns=COLUMNS,
        baseline=b"{}",
        golden=b"{}",
        classes=("No", "Yes"),
        positive="Yes",
        target="churn",
        entity="customer_id",
    )

    assert "635ec1fe68a8df0b347d358020068af24c0769176908803a3a8639c80afcdee9" == content.manifest().digest()


@pytest.mark.parametrize(
    ("seal", "kind", "golden", "files"),
    [
        pytest.param(seal_tensors, "tensors", "golden.bin", ["golden.bin", "model.onnx"], id="tensors have no baseline"),
        pytest.param(seal_image, "image", "golden.bin", ["baseline.json", "golden.bin", "model.onnx"], id="pictures have one"),
    ],
)
def test_a_sealed_bundle_reads_back_as_its_kind(tmp_path, seal, kind, golden, files):
    """Digest, kind and file names survive the way over the disk."""
    sealed = seal(tmp_path)
    manifest = verify_bundle(sealed.path, digest=sealed.digest)

    assert sealed.manifest == manifest
    assert (kind, golden, files) == (manifest.kind, manifest.golden_file, sorted(manifest.files))


def manifest(**changes):
    """Return a manifest of columns with some fields changed."""
    fields = {"model": "m", "task": "binary", "graph": PLAIN, "columns": COLUMN, "files": FILES, "classes": ("a", "b")}
    return Manifest(**(fields | changes))


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        pytest.param({"graph": Graph((GraphInput("x", "float", shape=(3,)),), "p")}, "mixed", id="columns with a tensor"),
        pytest.param({"graph": Graph((GraphInput("x", "float", ("b",)),), "p")}, "not there", id="a column that is not there"),
        pytest.param({"graph": Graph((GraphInput("x", "string", ("a",)),), "p")}, "mixed", id="a number in a tensor of texts"),
        pytest.param({"graph": Graph((GraphInput("x", "uint8", ("a",)),), "p")}, "mixed", id="a column in bytes"),
        pytest.param({"task": "tensor", "graph": TENSOR_GRAPH, "classes": ()}, "columns", id="tensors with columns"),
        pytest.param({"task": "tensor", "graph": TENSOR_GRAPH, "columns": ()}, "classes", id="tensors with classes"),
        pytest.param(
            {
                "task": "tensor",
                "graph": Graph((GraphInput("x", "float", shape=(3,)),), "y", outputs=(GraphOutput("z", "float", ()),)),
                "columns": (),
                "classes": (),
            },
            "not the first",
            id="another output than the first",
        ),
        pytest.param({"image": IMAGE, "columns": (), "graph": PLAIN}, "without a shape", id="a picture into columns"),
        pytest.param({"image": ImageInput(size=(9, 9)), "columns": (), "graph": PICTURE}, "its own shape", id="a picture of another shape"),
        pytest.param({"image": IMAGE, "columns": (), "graph": PICTURE, "classes": ("a",)}, "two classes", id="a picture with one class"),
        pytest.param({"image": IMAGE, "columns": (), "graph": PICTURE, "task": "regression"}, "two classes", id="a picture to a number"),
        pytest.param(
            {"image": ImageInput(size=(8, 12), std=(0.0,)), "columns": (), "graph": PICTURE}, "must not be 0", id="a division by nothing"
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, changed, fragment):
    """Nothing later has to ask what an impossible mixture means."""
    (tmp_path / "bundle.json").write_bytes(manifest(**changed).to_bytes())
    with pytest.raises(CheckError) as caught:
        read_manifest(tmp_path)

    assert "bundle-inconsistent" == caught.value.code
    assert fragment in caught.value.what


def test_a_default_spelt_out_is_not_canonical(tmp_path):
    """Two spellings of one bundle would be two digests."""
    document = msgspec.json.decode(manifest().to_bytes()) | {"image": None}
    (tmp_path / "bundle.json").write_bytes(msgspec.json.encode(document, order="sorted"))
    with pytest.raises(CheckError) as caught:
        read_manifest(tmp_path)

    assert "bundle-tampered" == caught.value.code


def test_a_tensor_bundle_has_no_answer_to_monitor():
    """Stations that need classes or numbers are told so; a picture's class is one."""
    tensors = manifest(task="tensor", graph=TENSOR_GRAPH, columns=(), classes=())
    with pytest.raises(SpecError) as caught:
        tensors.require_answer()

    assert "bundle-tensor" == caught.value.code
    assert "binary" == manifest(image=IMAGE, columns=(), graph=PICTURE).require_answer()


@pytest.mark.parametrize(
    "value",
    [pytest.param(np.array([[1.5, np.nan], [np.inf, -0.0]], dtype), id=f"{dtype}") for dtype in ("float64", "float32", "float16")]
    + [pytest.param(np.array([[1, 0], [0, 1]], dtype), id=dtype) for dtype in ("int64", "int32", "int8", "uint8", "bool")]
    + [
        pytest.param(np.array(["물레", ""], dtype=object), id="texts"),
        pytest.param(np.zeros((0, 3), np.float32), id="no rows"),
        pytest.param(np.arange(12.0).reshape(3, 4).T, id="not in C order"),
        pytest.param(np.array([1, 2], dtype=">i4"), id="big-endian"),
    ],
)
def test_golden_tensors_keep_every_bit(value):
    """What goes in comes out, whatever its type and order."""
    back = GoldenTensor.of(value).to_array()

    assert value.shape == back.shape
    assert value.dtype.newbyteorder("=") == back.dtype
    assert value.dtype.kind == "O" or value.astype(back.dtype).tobytes() == back.tobytes()
    assert value.dtype.kind != "O" or value.tolist() == back.tolist()


def encoded(**changes):
    """Return the bytes of a golden document with some fields changed."""
    case = golden_case({"x": np.ones((1, 2), np.float32)}, {"y": np.ones((1,), np.float32)})
    document = msgspec.to_builtins(GoldenTensors(cases=(case,)), builtin_types=(bytes,)) | changes
    return msgspec.msgpack.encode({name: value for name, value in document.items() if value is not None})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "format-unreadable", id="empty"),
        pytest.param(encoded()[:-3], "format-unreadable", id="cut off"),
        pytest.param(encoded(extra=1), "format-unreadable", id="an unknown field"),
        pytest.param(encoded(format="mulle.golden"), "format-unreadable", id="another format"),
        pytest.param(encoded(version=2), "format-unknown", id="a newer version"),
        pytest.param(encoded(cases=None), "format-unreadable", id="no cases"),
        pytest.param(encoded(cases=[{"outputs": {}}] * 65), "format-unreadable", id="too many cases"),
        pytest.param(b"\x91" * 100_000, "format-unreadable", id="nested deeply"),
        pytest.param(tensor_graph(), "format-unreadable", id="a graph"),
    ],
)
def test_golden_documents_that_do_not_fit_are_refused(tmp_path, data, code):
    """The reader runs nothing and believes nothing."""
    (tmp_path / "golden.bin").write_bytes(data)
    with pytest.raises(CheckError) as caught:
        read_golden_tensors(tmp_path / "golden.bin")

    assert code == caught.value.code


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(GoldenTensor("float", (2,), b"1234"), id="too few bytes"),
        pytest.param(GoldenTensor("float", (-1,), b"1234"), id="a free dimension"),
        pytest.param(GoldenTensor("string", (2,), texts=("a",)), id="too few texts"),
    ],
)
def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused(tensor):
    """A shape is not believed."""
    with pytest.raises(ValueError, match=r"shape|dimension|size"):
        tensor.to_array()


def test_golden_requests_are_bounded():
    """A bundle does not carry more than its reader takes."""
    large = golden_case({"x": np.zeros((1, 5_000_000), np.float32)}, {})
    with pytest.raises(SpecError) as caught:
        GoldenTensors(cases=(large,)).to_bytes()

    assert "golden-too-large" == caught.value.code
