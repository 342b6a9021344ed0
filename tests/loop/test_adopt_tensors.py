"""Models of pictures and tensors taken in: a file becomes a bundle that serves, and answers what plain ONNX Runtime answers."""

import io
import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_sample_image

from mulle.apps.cli.main import main
from mulle.bundle.adopt_tensors import adopt_image, adopt_tensors
from mulle.bundle.image_options import parse_image_options
from mulle.core.errors import SpecError
from mulle.formats.baseline import read_baseline
from mulle.formats.bundle_trust import load_trusted_bundle
from mulle.formats.golden_tensors import read_golden_tensors
from mulle.loop.adopt_tensors import read_arrays, read_classes, read_pictures, seal_adopted_tensors
from mulle.monitor.baseline import AnswerSpec
from mulle.monitor.check import check_window
from mulle.serve.runtimes.images import ImageReader
from mulle.serve.runtimes.onnx import OnnxRuntime, require_golden
from support.bundles import trusted_key
from support.tensors import finish, image_graph, picture, plain_answer, plain_pixels, tensor_graph, tensor_request

COLOURS = {"red.png": (220, 20, 20), "green.png": (20, 220, 20), "blue.png": (20, 20, 220)}
SPEC = "size=8x12,mean=0.5,std=0.25"


@pytest.fixture
def pictures(tmp_path):
    """Return a folder with pictures of three colours, two photographs below it, and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "photographs").mkdir(parents=True)
    for name, colour in COLOURS.items():
        (folder / name).write_bytes(picture(colour))
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / "photographs" / f"{name}.JPG", quality=80)
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def model(tmp_path):
    """Return the file of the picture graph."""
    path = tmp_path / "colours.onnx"
    path.write_bytes(image_graph())
    return path


def loaded(sealed):
    """Return the runtime of a bundle after signature, digests and golden requests were looked at."""
    runtime = OnnxRuntime(sealed.path, load_trusted_bundle(sealed.path, trusted=[trusted_key()]))
    require_golden(sealed.path, runtime)
    return runtime


def adopted_by_cli(capsys, *arguments):
    """Return the JSON document `mulle adopt` prints."""
    capsys.readouterr()
    assert 0 == main(["adopt", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def refused_by_cli(capsys, *arguments):
    """Return the error `mulle adopt` prints."""
    capsys.readouterr()
    assert 2 == main(["adopt", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)["error"]


def test_a_classifier_of_pictures_is_adopted_and_served(tmp_path, model, pictures, capsys):
    """The bundle's runtime gives each picture the probabilities of a plain script."""
    result = adopted_by_cli(
        capsys, model, "--image", SPEC, "--classes", "red,green,blue", "--sample", pictures, "--output", tmp_path / "out"
    )
    runtime = OnnxRuntime(
        tmp_path / "out" / result["digest"], load_trusted_bundle(tmp_path / "out" / result["digest"], trusted=[trusted_key()])
    )
    proven = require_golden(runtime.folder, runtime)
    data = list(read_pictures(pictures).values())
    scores = runtime.run_pixels(ImageReader(runtime.manifest.image).read(data))
    expected = plain_answer(model.read_bytes(), {"image": np.stack([plain_pixels(item) for item in data])})["probabilities"]

    assert ("multiclass", ["red", "green", "blue"], 5, 5) == (result["task"], result["classes"], result["samples"], proven)
    assert np.allclose(expected, scores, atol=1e-6)
    assert ["blue", "green", "red"] == [result["classes"][i] for i in scores[[0, 1, 4]].argmax(axis=1)]


def test_the_baseline_of_a_classifier_knows_its_classes(tmp_path, model, pictures):
    """There are no columns to profile, but answers."""
    adopted = adopt_image(model, read_pictures(pictures), image=SPEC, classes=("red", "green", "blue"))
    baseline = read_baseline(seal_adopted_tensors(adopted, name="colours", output=tmp_path / "out").path / "baseline.json")

    assert (5, ()) == (baseline.n_rows, baseline.columns)
    assert baseline.prediction.classes.n == 5

    report = check_window(baseline, {}, np.tile(adopted.scores, (60, 1)), answer=AnswerSpec("multiclass", adopted.classes))

    assert (300, {"score", "predicted class"}) == (report.n_rows, {column.name for column in report.columns})


def test_the_same_model_and_sample_give_the_same_bundle(tmp_path, model, pictures):
    """Adopting twice is one bundle."""
    digests = {
        seal_adopted_tensors(adopt_image(model, read_pictures(pictures), image=SPEC), name="colours", output=tmp_path / place).digest
        for place in ("a", "b")
    }

    assert 1 == len(digests)


def test_a_picture_model_scores_no_table(tmp_path, model, pictures, capsys):
    """`mulle predict` says what the bundle takes instead of looking for columns."""
    sealed = seal_adopted_tensors(adopt_image(model, read_pictures(pictures), image=SPEC), name="colours", output=tmp_path / "out")
    (tmp_path / "rows.csv").write_text("a\n1\n")
    capsys.readouterr()
    code = main(
        ["predict", "--bundle", str(sealed.path), "--input", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "o.csv"), "--json"]
    )

    assert (2, "bundle-kind") == (code, json.loads(capsys.readouterr().out)["error"]["code"])


def small_graph(*, nodes, inputs, outputs, constants=None):
    """Return ONNX bytes of a graph spelt in few words."""
    value = helper.make_tensor_value_info
    return finish(nodes, [value(*item) for item in inputs], [value(*item) for item in outputs], constants)


def means_graph(kind, shape, *, k=3, last="Softmax", axes=(2, 3)):
    """Return a graph from pictures of a type and shape to something of their channels' means."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node(last, ["means"], ["answer"]),
    ]
    return small_graph(
        nodes=nodes,
        inputs=[("image", kind, shape)],
        outputs=[("answer", TensorProto.FLOAT, [shape[0], k])],
        constants={"axes": np.array(axes, np.int64)},
    )


@pytest.mark.parametrize(
    ("kind", "shape", "options", "expected"),
    [
        pytest.param(
            TensorProto.FLOAT, ["n", 3, 16, 20], "auto", {"size": (16, 20), "layout": "NCHW", "colour": "RGB"}, id="all from the graph"
        ),
        pytest.param(TensorProto.FLOAT, ["n", 16, 20, 3], "auto", {"size": (16, 20), "layout": "NHWC"}, id="channels last"),
        pytest.param(TensorProto.FLOAT, ["n", 1, 16, 20], "", {"colour": "L"}, id="one channel"),
        pytest.param(TensorProto.UINT8, ["n", 3, 16, 20], "auto", {"dtype": "uint8"}, id="bytes"),
        pytest.param(TensorProto.FLOAT16, ["n", 3, "h", "w"], "size=9", {"size": (9, 9), "dtype": "float32"}, id="halves, any size"),
        pytest.param(TensorProto.DOUBLE, [1, 3, 16, 20], "color=bgr", {"colour": "BGR"}, id="doubles, one at a time"),
        pytest.param(
            TensorProto.FLOAT,
            ["n", 3, 224, 224],
            "imagenet,filter=bicubic",
            {"shorter": 256, "filter": "bicubic", "resize": "shorter"},
            id="a preset and more",
        ),
    ],
)
def test_what_a_graph_says_completes_the_declaration(tmp_path, kind, shape, options, expected):
    """Size, layout, channels and type are read off the graph; the bundle answers like the graph alone."""
    path = tmp_path / "model.onnx"
    channels_last = shape[3] == 3
    path.write_bytes(
        means_graph(
            kind,
            shape,
            k=1 if shape[1] == 1 else 3,
            last="Sigmoid" if shape[1] == 1 else "Softmax",
            axes=(1, 2) if channels_last else (2, 3),
        )
    )
    sample = {"a.png": picture(size=(40, 40)), "b.png": picture((9, 200, 30), size=(30, 40))}
    runtime = loaded(
        seal_adopted_tensors(
            adopt_image(path, sample, image=options, classes=("a", "b") if shape[1] == 1 else None), name="m", output=tmp_path / "out"
        )
    )
    spec = runtime.manifest.image
    pixels = ImageReader(spec).read(list(sample.values()))
    element = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}.get(kind)
    fed = pixels if element is None else pixels.astype(element)
    plain = np.concatenate([plain_answer(path.read_bytes(), {"image": fed[i : i + 1]})["answer"] for i in range(2)])
    expected_scores = np.concatenate([1 - plain, plain], axis=1) if shape[1] == 1 else plain

    assert expected == {name: getattr(spec, name) for name in expected}
    assert np.allclose(expected_scores, runtime.run_pixels(pixels), atol=1e-6)


def test_softmax_is_added_where_it_is_missing(tmp_path, pictures, capsys):
    """A graph of logits is refused with the option that mends it, and then answers probabilities."""
    path = tmp_path / "logits.onnx"
    path.write_bytes(means_graph(TensorProto.FLOAT, ["n", 3, 8, 8], last="Identity"))
    error = refused_by_cli(capsys, path, "--image", "auto", "--sample", pictures)
    result = adopted_by_cli(capsys, path, "--image", "auto", "--sample", pictures, "--softmax", "--output", tmp_path / "out")

    assert "adopt-answers" == error["code"]
    assert "--logits" in error["fix"]
    assert 3 == len(result["classes"])


def test_tensors_are_adopted_as_they_are(tmp_path, capsys):
    """Every input and output is declared, and answered like plain ONNX Runtime, texts too."""
    path, sample = tmp_path / "sums.onnx", tmp_path / "sample.npz"
    path.write_bytes(tensor_graph())
    request = tensor_request(3)
    np.savez(sample, **(request | {"names": request["names"].astype(str)}))
    result = adopted_by_cli(capsys, path, "--tensors", "--sample", sample, "--output", tmp_path / "out")
    folder = tmp_path / "out" / result["digest"]
    runtime = OnnxRuntime(folder, load_trusted_bundle(folder, trusted=[trusted_key()]))
    golden = read_golden_tensors(folder / "golden.bin")
    asked = tensor_request(4, width=9, seed=5)
    expected, found = plain_answer(path.read_bytes(), asked), runtime.run_tensors(asked)

    assert {"a": ["float", [-1, -1]], "b": ["int64", [-1, 1]], "names": ["string", [-1]]} == result["inputs"]
    assert {"sums": ["float", [-1, 1]], "doubled": ["float", [-1, -1]], "said": ["string", [-1]]} == result["outputs"]
    assert request["names"].tolist() == golden.cases[0].inputs["names"].to_array().tolist()
    assert (2, [], True) == (require_golden(folder, runtime), result["notes"], runtime.batchable)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("rows", ["n", 1, 3])
def test_without_a_sample_tensors_are_made_up(tmp_path, rows):
    """The same tensors every time, of whatever rows the graph takes; the note says what would be better."""
    path = tmp_path / "sums.onnx"
    path.write_bytes(tensor_graph(rows=rows))
    adopted = [adopt_tensors(path) for _ in range(2)]
    runtime = loaded(seal_adopted_tensors(adopted[0], name="sums", output=tmp_path / "out"))

    assert adopted[0].golden.to_bytes() == adopted[1].golden.to_bytes()
    assert "made-up" in adopted[0].notes[0]
    assert (None if rows == "n" else rows) == runtime.fixed_rows


ONE = helper.make_node("Identity", ["x"], ["y"])


@pytest.mark.parametrize(
    ("graph", "arguments", "code", "fragment"),
    [
        pytest.param(image_graph(), ["--image", SPEC], "adopt-sample-needed", "--sample", id="no pictures"),
        pytest.param(image_graph(), ["--image", SPEC, "--sample", "nowhere"], "file-missing", "--sample", id="a folder that is not there"),
        pytest.param(image_graph(), ["--image", SPEC, "--sample", "empty"], "adopt-sample-kind", ".jpg", id="a folder without pictures"),
        pytest.param(image_graph(), ["--image", SPEC, "--sample", "broken.png"], "image-unreadable", "whole", id="a broken picture"),
        pytest.param(image_graph(), ["--image", "size=9x9", "--sample", "a.png"], "adopt-image-shape", "size", id="another size"),
        pytest.param(image_graph(), ["--image", "layout=NHWC", "--sample", "a.png"], "adopt-image-shape", "layout", id="another layout"),
        pytest.param(image_graph(), ["--image", "dtype=uint8", "--sample", "a.png"], "adopt-image", "float32", id="another type"),
        pytest.param(image_graph(), ["--image", "sise=8", "--sample", "a.png"], "adopt-image", "'size'", id="a misspelt key"),
        pytest.param(image_graph(), ["--image", "size=8xy", "--sample", "a.png"], "adopt-image", "size=224x224", id="no number"),
        pytest.param(image_graph(), ["--image", "coco", "--sample", "a.png"], "adopt-image", "imagenet", id="an unknown preset"),
        pytest.param(image_graph(), ["--image", "filter=sharp", "--sample", "a.png"], "adopt-image", "help", id="an unknown filter"),
        pytest.param(image_graph(), ["--image", "std=0", "--sample", "a.png"], "adopt-image", "--image", id="divided by nothing"),
        pytest.param(image_graph(), ["--image", "shorter=5", "--sample", "a.png"], "adopt-image", "--image", id="shorter than the tensor"),
        pytest.param(
            image_graph(), ["--image", SPEC, "--classes", "a,b", "--sample", "a.png"], "adopt-classes", "--classes", id="too few classes"
        ),
        pytest.param(
            image_graph(), ["--image", SPEC, "--classes", "no.txt", "--sample", "a.png"], "file-missing", "path", id="no such file"
        ),
        pytest.param(
            image_graph(), ["--image", SPEC, "--positive", "0", "--sample", "a.png"], "adopt-positive", "'0'", id="a positive of three"
        ),
        pytest.param(
            image_graph(), ["--image", SPEC, "--target", "y", "--sample", "a.png"], "adopt-options", "--target", id="a table's option"
        ),
        pytest.param(image_graph(), ["--image", SPEC, "--tensors"], "adopt-options", "one of them", id="two kinds"),
        pytest.param(image_graph(rows=4), ["--image", SPEC, "--sample", "a.png"], "adopt-batch", "dynamic", id="four at a time"),
        pytest.param(tensor_graph(), ["--image", "auto", "--sample", "a.png"], "adopt-image-shape", "--tensors", id="three inputs"),
        pytest.param(
            small_graph(nodes=[ONE], inputs=[("x", TensorProto.FLOAT, ["n", 4])], outputs=[("y", TensorProto.FLOAT, ["n", 4])]),
            ["--image", "auto", "--sample", "a.png"],
            "adopt-image-shape",
            "--tensors",
            id="two dimensions",
        ),
        pytest.param(
            small_graph(nodes=[ONE], inputs=[("x", TensorProto.INT64, ["n", 3, 4, 4])], outputs=[("y", TensorProto.INT64, ["n", 3, 4, 4])]),
            ["--image", "auto", "--sample", "a.png"],
            "adopt-input-type",
            "float",
            id="pictures of int64",
        ),
        pytest.param(image_graph(), ["--sample", "a.png"], "adopt-sample-kind", ".csv", id="a picture for a table"),
        pytest.param(image_graph(), [], "adopt-sample-needed", "--image auto", id="nothing said at all"),
        pytest.param(tensor_graph(), ["--tensors", "--classes", "a,b"], "adopt-options", "--classes", id="tensors with classes"),
        pytest.param(tensor_graph(), ["--tensors", "--sample", "a.png"], "adopt-sample-kind", "savez", id="a picture for tensors"),
        pytest.param(tensor_graph(), ["--tensors", "--sample", "pickled.npz"], "adopt-sample-kind", "savez", id="pickled objects"),
        pytest.param(tensor_graph(), ["--tensors", "--sample", "other.npz"], "tensor-unknown", "'a'", id="another input"),
        pytest.param(tensor_graph(), ["--tensors", "--sample", "double.npz"], "tensor-dtype", "float", id="another element type"),
        pytest.param(
            small_graph(nodes=[ONE], inputs=[("x", TensorProto.FLOAT, [])], outputs=[("y", TensorProto.FLOAT, [])]),
            ["--tensors"],
            "adopt-input-shape",
            "first dimension",
            id="no rows in",
        ),
        pytest.param(
            small_graph(
                nodes=[helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
                inputs=[("x", TensorProto.FLOAT, ["n", 2])],
                outputs=[("y", TensorProto.FLOAT, [])],
            ),
            ["--tensors"],
            "adopt-output",
            "rows first",
            id="no rows out",
        ),
        pytest.param(
            small_graph(nodes=[ONE], inputs=[("x", TensorProto.UINT32, ["n"])], outputs=[("y", TensorProto.UINT32, ["n"])]),
            ["--tensors"],
            "adopt-input-type",
            "int64",
            id="an element type no bundle carries",
        ),
        pytest.param(
            small_graph(
                nodes=[helper.make_node("Reshape", ["x", "shape"], ["y"])],
                inputs=[("x", TensorProto.FLOAT, ["n", "w"])],
                outputs=[("y", TensorProto.FLOAT, ["n", 7])],
                constants={"shape": np.array([-1, 7], np.int64)},
            ),
            ["--tensors"],
            "adopt-run",
            ".npz",
            id="made-up tensors do not fit",
        ),
    ],
)
def test_mistakes_are_answered_with_what_to_do(tmp_path, monkeypatch, capsys, graph, arguments, code, fragment):
    """Every refusal names the next thing to type."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(graph)
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "broken.png").write_bytes(picture()[:80])
    (tmp_path / "empty").mkdir()
    np.savez("other.npz", aa=np.ones((1, 1), np.float32), b=np.ones((1, 1), np.int64), names=np.array(["x"]))
    np.savez("double.npz", a=np.ones((1, 1)), b=np.ones((1, 1), np.int64), names=np.array(["x"]))
    np.savez("pickled.npz", allow_pickle=True, a=np.array([{"x": 1}], dtype=object))
    error = refused_by_cli(capsys, "model.onnx", *arguments)

    assert code == error["code"]
    assert fragment in error["fix"]


def test_golden_pictures_are_few_and_of_every_kind(tmp_path, model):
    """Of many samples sixteen travel, among them every class that was answered."""
    sample = {f"{i}.png": picture(tuple(COLOURS.values())[i % 3], size=(20 + i, 20)) for i in range(60)}
    adopted = adopt_image(model, sample, image=SPEC)
    answered = {int(case.outputs["probabilities"].to_array().argmax()) for case in adopted.golden.cases}

    assert (16, {0, 1, 2}) == (len(adopted.golden.cases), answered)


def test_options_are_read_as_they_are_written():
    """Presets first, numbers by colons, fractions, and what follows wins."""
    found = parse_image_options("mean=0.1:0.2:0.3, imagenet ,scale=1/127.5,draft=yes,size=10x20,layout=nhwc")

    assert (0.1, 0.2, 0.3) == found["mean"]
    assert ((10, 20), "NHWC", True, 256) == (found["size"], found["layout"], found["draft"], found["shorter"])
    assert math.isclose(1 / 127.5, found["scale"])


def test_classes_are_read_from_a_file_or_a_list(tmp_path):
    """One name per line, or by commas; a byte-order mark is no part of a name."""
    (tmp_path / "names.txt").write_bytes("\ufeff개\n고양이\n\n새\n".encode())

    assert ["개", "고양이", "새"] == read_classes(str(tmp_path / "names.txt"))
    assert ["a", "b"] == read_classes("a, b,")


def test_arrays_are_read_without_pickles(tmp_path):
    """Plain arrays come back; a bomb is seen before it is unpacked."""
    np.savez(tmp_path / "ok.npz", x=np.arange(3))
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1 << 30) + 1, np.uint8))

    assert [0, 1, 2] == read_arrays(tmp_path / "ok.npz")["x"].tolist()
    with pytest.raises(SpecError) as caught:
        read_arrays(tmp_path / "bomb.npz")
    assert "file-too-large" == caught.value.code


def test_a_photograph_is_answered_alike_by_a_plain_script(tmp_path):
    """From the JPEG's bytes to the probabilities: torchvision's recipe in Pillow and numpy, against the served path."""
    path = tmp_path / "model.onnx"
    path.write_bytes(means_graph(TensorProto.FLOAT, ["n", 3, 224, 224]))
    stream = io.BytesIO()
    Image.fromarray(load_sample_image("flower.jpg")).save(stream, "JPEG", quality=88)
    data = stream.getvalue()
    runtime = loaded(seal_adopted_tensors(adopt_image(path, {"flower.jpg": data}, image="imagenet"), name="m", output=tmp_path / "out"))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((int(256 * image.width / image.height), 256), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), 16
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    pixels = ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32).transpose(2, 0, 1)[None]
    plain = onnxruntime.InferenceSession(path.read_bytes()).run(None, {"image": pixels})[0]

    assert np.allclose(plain, runtime.run_pixels(ImageReader(runtime.manifest.image).read([data])), atol=1e-6)
    assert onnx.load_from_string((runtime.folder / "model.onnx").read_bytes()).graph.input[0].name == "image"
