"""Graphs asked by blocks, pictures and tensors: the same answers as plain ONNX Runtime, from any thread, and only whole ones."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from mulle.core.errors import CheckError, SpecError, UnavailableError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, FileInfo, Graph, GraphInput, Manifest
from mulle.formats.bundle_trust import load_trusted_bundle
from mulle.formats.golden_tensors import GoldenTensors, golden_case
from mulle.formats.rows import encode_rows, feeds
from mulle.serve.runtimes.onnx import OnnxRuntime, require_golden
from mulle.serve.runtimes.providers import CPU, CUDA, choose_providers
from support.bundles import GOLDEN_ROWS, churn_graph, seal_churn, trusted_key
from support.tensors import (
    IMAGE,
    finish,
    picture,
    plain_answer,
    plain_pixels,
    seal_image,
    seal_tensors,
    tensor_graph,
    tensor_request,
)


def loaded(sealed, **options):
    """Return the runtime of a bundle that was verified and proven."""
    runtime = OnnxRuntime(sealed.path, load_trusted_bundle(sealed.path, trusted=[trusted_key()]), **options)
    require_golden(sealed.path, runtime)
    return runtime


def stacked_graph(dtype, *, columns=4, rank=2):
    """Return a graph that answers [1 - p, p] for p = sigmoid(sum of the columns), over one input of some type."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceSum", ["floats", "axis"], ["total"], keepdims=1),
        node("Sigmoid", ["total"], ["p"]),
        node("Sub", ["one", "p"], ["q"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]
    constants = {"axis": np.array([1], np.int64), "one": np.array([[1.0]], np.float32)}
    shape = [None, columns] if rank == 2 else [None]
    return finish(nodes, [value("x", dtype, shape)], [value("probabilities", TensorProto.FLOAT, [None, 2])], constants)


def matrix_runtime(folder, dtype, *, order=(0, 1, 2, 3)):
    """Return the runtime of `stacked_graph` over columns c0 … c3, stacked in `order`."""
    (folder / "model.onnx").write_bytes(stacked_graph(getattr(TensorProto, dtype.upper()), columns=len(order)))
    manifest = Manifest(
        model="stacked",
        task="binary",
        graph=Graph((GraphInput("x", dtype, tuple(f"c{i}" for i in order)),), "probabilities"),
        columns=tuple(ColumnInfo(f"c{i}", ColumnType.NUMBER) for i in range(4)),
        files={"model.onnx": FileInfo("0" * 64, 1)},
        classes=("a", "b"),
    )
    return OnnxRuntime(folder, manifest)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", ["double", "float", "int64"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2), (3, 0, 2)], ids=["all columns", "two neighbours", "in another order"])
def test_a_block_is_answered_like_plain_onnx_runtime(tmp_path, n, dtype, order):
    """Bound or not, sliced or gathered: bit for bit the answer of a bare session, and of `run`."""
    runtime = matrix_runtime(tmp_path, dtype, order=order)
    numbers = np.random.default_rng(3).integers(-3, 4, size=(n, 4)).astype(np.float64)
    arrays = {f"c{i}": numbers[:, i] for i in range(4)}
    expected = plain_answer((tmp_path / "model.onnx").read_bytes(), feeds(arrays, runtime.manifest.graph))["probabilities"]

    assert np.array_equal(expected, runtime.run_block(numbers))
    assert np.array_equal(expected, runtime.run(arrays))


def test_a_block_with_texts_is_answered_like_rows(tmp_path):
    """Numbers in a matrix and texts beside it give what the same rows by name give; missing ones too."""
    runtime = loaded(seal_churn(tmp_path))
    arrays = encode_rows(GOLDEN_ROWS, runtime.manifest.columns, absent_is_missing=True)
    numbers = np.column_stack([arrays[name] for name in runtime.number_columns])

    assert (("tenure", "monthly"), ("계약",)) == (runtime.number_columns, runtime.text_columns)
    assert np.array_equal(runtime.run(arrays), runtime.run_block(numbers, {"계약": arrays["계약"]}))


def test_an_answer_is_not_overwritten_by_the_next(tmp_path):
    """Bound buffers are used again; what was answered from them is not."""
    runtime = matrix_runtime(tmp_path, "float")
    first = runtime.run_block(np.zeros((3, 4)))
    runtime.run_block(np.ones((3, 4)))

    assert np.array_equal(np.full((3, 2), 0.5, np.float32), first)


@pytest.mark.parametrize(
    ("dtype", "bad", "what"),
    [
        pytest.param("float", 1e39, "outside the range of float32", id="too large for float32"),
        pytest.param("int64", 0.5, "whole number", id="not whole"),
        pytest.param("int64", np.nan, "whole number", id="missing where it cannot be"),
        pytest.param("int64", 1e19, "whole number", id="too large for int64"),
        pytest.param("bool", 2.0, "true or false", id="neither true nor false"),
    ],
)
@pytest.mark.parametrize("n", [2, 100], ids=["bound", "unbound"])
def test_a_value_the_graph_cannot_hold_is_named(tmp_path, n, dtype, bad, what):
    """The row and the column are said, and the buffers answer the next block as if nothing had been."""
    runtime = matrix_runtime(tmp_path, dtype)
    numbers = np.ones((n, 4))
    expected = runtime.run_block(numbers)
    numbers[1, 2] = bad
    with pytest.raises(SpecError) as caught:
        runtime.run_block(numbers)

    assert ("rows-out-of-range", "row 1, column 'c2'") == (caught.value.code, caught.value.where)
    assert what in caught.value.what
    assert np.array_equal(expected, runtime.run_block(np.ones((n, 4))))


def test_missing_numbers_pass_through_a_narrow_block(tmp_path):
    """NaN is no overflow."""
    runtime = matrix_runtime(tmp_path, "float")

    assert np.isnan(runtime.run_block(np.array([[np.nan, 0, 0, 0]]))).all()


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        pytest.param([np.nan, 0.5], "nan", id="not a number"),
        pytest.param([np.inf, 0.0], "inf", id="infinite"),
        pytest.param([0.5, 0.502], "sum to 1.0020", id="sums to more"),
        pytest.param([np.inf, -np.inf], "inf", id="infinities that cancel"),
    ],
)
def test_single_rows_are_found_bad(tmp_path, row, fragment):
    """One bad row does not speak for its neighbours."""
    runtime = matrix_runtime(tmp_path, "float")
    scores = np.full((5, 2), 0.5, np.float32)
    fine = runtime.check_rows(scores)
    scores[3] = row
    with np.errstate(invalid="ignore"):
        good = runtime.check_rows(scores)

    assert fine is None
    assert [True, True, True, False, True] == good.tolist()
    assert fragment in runtime.row_error(scores, 3).what


def test_many_roundings_are_no_bad_row(tmp_path):
    """The sums of many rows, each a little off, are looked at one by one."""
    runtime = matrix_runtime(tmp_path, "float")
    scores = np.full((100, 2), 0.50045, np.float32)

    assert runtime.check_rows(scores) is None


def test_a_predicted_number_must_be_finite(tmp_path):
    """A regression answers any number, but a number."""
    runtime = loaded(seal_churn(tmp_path, regression=True))

    assert runtime.check_rows(np.array([[1e30], [-5.0]], np.float32)) is None
    assert [True, False] == runtime.check_rows(np.array([[1.0], [np.nan]], np.float32)).tolist()


def test_tensors_are_answered_like_plain_onnx_runtime(tmp_path):
    """Every output, every type, texts too."""
    runtime = loaded(seal_tensors(tmp_path))
    request = tensor_request(7, width=3, seed=1)
    expected, found = plain_answer(tensor_graph(), request), runtime.run_tensors(request)

    assert runtime.batchable
    assert list(expected) == list(found)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "code", "fragment"),
    [
        pytest.param({"c": np.ones((2, 1))}, "tensor-unknown", "'c'", id="one too many"),
        pytest.param({"a": None}, "tensor-missing", "'a'", id="one missing"),
        pytest.param({"a": np.ones((2, 5))}, "tensor-dtype", "float64", id="another type"),
        pytest.param({"names": np.array(["a", "b"])}, "tensor-dtype", "str", id="fixed-width texts"),
        pytest.param({"b": np.ones((2, 2), np.int64)}, "tensor-shape", "[-1, 1]", id="another width"),
        pytest.param({"b": np.ones((2,), np.int64)}, "tensor-shape", "[2]", id="no width"),
        pytest.param({"b": np.array(1, np.int64)}, "tensor-shape", "[]", id="no rows at all"),
        pytest.param({"b": np.ones((3, 1), np.int64)}, "tensor-shape", "3 rows", id="other rows"),
        pytest.param({"a": np.ones((0, 5), np.float32)}, "tensor-shape", "[0, 5]", id="zero rows"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, code, fragment):
    """A request that does not fit is refused before it joins a batch."""
    sealed = seal_tensors(tmp_path)
    runtime = OnnxRuntime(sealed.path, sealed.manifest)
    request = {name: value for name, value in (tensor_request(2) | change).items() if value is not None}
    with pytest.raises(SpecError) as caught:
        runtime.check_tensors(request)

    assert code == caught.value.code
    assert fragment in caught.value.what


@pytest.mark.parametrize(
    ("rows", "asked"), [pytest.param(1, 1, id="one"), pytest.param(1, 3, id="several one by one"), pytest.param(4, 4, id="four")]
)
def test_a_graph_of_fixed_rows_is_asked_as_it_wants(tmp_path, rows, asked):
    """A graph exported for one row answers several, one after the other; one exported for four takes four."""
    runtime = loaded(seal_tensors(tmp_path, rows=rows, n=rows))
    request = tensor_request(asked)
    expected, found = plain_answer(tensor_graph(), request), runtime.run_tensors(request)

    assert (False, rows) == (runtime.batchable, runtime.fixed_rows)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_graph_of_four_rows_refuses_three(tmp_path):
    """What is said is the shape it takes."""
    runtime = loaded(seal_tensors(tmp_path, rows=4, n=4))
    with pytest.raises(SpecError) as caught:
        runtime.run_tensors(tensor_request(3))

    assert "tensor-shape" == caught.value.code
    assert "[4, -1]" in caught.value.what


@pytest.mark.parametrize("seal", [seal_tensors, seal_image])
def test_answers_that_depend_on_neighbours_are_not_joined(tmp_path, seal):
    """A free first axis is no promise: the graph is asked beside zeros before anybody believes it."""
    sealed = seal(tmp_path, mixes=True)
    believed = OnnxRuntime(sealed.path, sealed.manifest).batchable

    assert believed
    assert not loaded(sealed).batchable
    assert loaded(seal(tmp_path)).batchable


def test_an_output_that_counts_something_else_is_not_joined(tmp_path):
    """The rows that were found are not the rows that were sent."""
    node, value = helper.make_node, helper.make_tensor_value_info
    graph = finish(
        [node("NonZero", ["x"], ["places"]), node("Transpose", ["places"], ["found"], perm=[1, 0])],
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("found", TensorProto.INT64, ["found_rows", 2])],
    )
    (tmp_path / "model.onnx").write_bytes(graph)
    sealed = seal_tensors(tmp_path / "other")
    info = Graph(
        (GraphInput("x", "float", shape=(2,)),),
        "found",
        outputs=(msgspec.structs.replace(sealed.manifest.graph.outputs[1], name="found", dtype="int64", shape=(2,)),),
    )
    runtime = OnnxRuntime(tmp_path, msgspec.structs.replace(sealed.manifest, graph=info))

    assert not runtime.batchable
    assert (2, 2) == runtime.run_tensors({"x": np.array([[1.0, 1.0]], np.float32)})["found"].shape


@pytest.mark.parametrize("rows", ["n", 1], ids=["free rows", "one row"])
def test_pictures_are_scored_like_plain_onnx_runtime(tmp_path, rows):
    """Pixels in, probabilities out; a graph for one picture answers several."""
    runtime = loaded(seal_image(tmp_path, rows=rows))
    pixels = np.stack([plain_pixels(picture(colour)) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))])
    scores = runtime.run_pixels(pixels)

    assert [0, 1, 2] == scores.argmax(axis=1).tolist()
    assert runtime.check_rows(scores) is None
    assert np.array_equal(scores, runtime.run_tensors({"image": pixels})["probabilities"])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_golden_pictures_prove_the_decoding(tmp_path, layout, dtype):
    """Plain Pillow sealed them; our reader must see the same pixels before the bundle serves."""
    spec = msgspec.structs.replace(IMAGE, layout=layout, dtype=dtype, mean=(), std=())

    assert 2 == require_golden(seal_image(tmp_path, spec=spec).path, loaded(seal_image(tmp_path, spec=spec)))


def doctored(change):
    """Return golden requests of the tensor graph whose answer was changed."""
    request = tensor_request(2)
    answer = plain_answer(tensor_graph(), request)
    change(answer)
    return GoldenTensors(cases=(golden_case(request, answer),)).to_bytes()


@pytest.mark.parametrize(
    ("golden", "code", "fact"),
    [
        pytest.param(doctored(lambda a: a["sums"].__iadd__(1)), "golden-differs", "largest difference", id="another number"),
        pytest.param(doctored(lambda a: a["said"].__setitem__(0, "x")), "golden-differs", "output", id="another text"),
        pytest.param(doctored(lambda a: a.pop("said")), "golden-differs", "sealed", id="an output less"),
        pytest.param(doctored(lambda a: a.update(sums=a["sums"][:1])), "golden-differs", "output", id="another shape"),
        pytest.param(GoldenTensors(cases=()).to_bytes(), "golden-empty", None, id="none"),
        pytest.param(
            GoldenTensors(cases=(golden_case({"a": np.ones(3)}, {}),)).to_bytes(), "golden-differs", None, id="inputs that do not fit"
        ),
    ],
)
def test_golden_tensors_must_reproduce(tmp_path, golden, code, fact):
    """A tensor bundle serves what it answered when it was sealed, or not at all."""
    with pytest.raises(CheckError) as caught:
        loaded(seal_tensors(tmp_path, golden=golden))

    assert code == caught.value.code
    assert fact is None or fact in caught.value.facts


def test_a_golden_picture_that_is_damaged_is_said(tmp_path):
    """A picture of the bundle's own that cannot be decoded is the bundle's fault."""
    with pytest.raises(CheckError) as caught:
        loaded(seal_image(tmp_path, golden=GoldenTensors(cases=(golden_case({}, {}, image=picture()[:60]),)).to_bytes()))

    assert "golden-differs" == caught.value.code


@pytest.mark.parametrize(
    ("seal", "ask"),
    [
        pytest.param(seal_tensors, lambda r: r.run({}), id="rows to a tensor model"),
        pytest.param(seal_image, lambda r: r.run({}), id="rows to a picture model"),
        pytest.param(seal_tensors, lambda r: r.run_pixels(np.ones((1, 3, 8, 12), np.float32)), id="a picture to a tensor model"),
        pytest.param(seal_churn, lambda r: r.run_tensors({}), id="tensors to a model of columns"),
    ],
)
def test_another_kind_of_request_is_refused(tmp_path, seal, ask):
    """A bundle says what it takes."""
    with pytest.raises(SpecError) as caught:
        ask(loaded(seal(tmp_path)))

    assert "bundle-kind" == caught.value.code


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_threads_get_their_own_answers(tmp_path, dtype):
    """Eight threads ask at once, through the same bound buffers' sizes; each gets what it asked for."""
    runtime = matrix_runtime(tmp_path, dtype)
    start = threading.Barrier(8)

    def ask(seed):
        rng = np.random.default_rng(seed)
        start.wait()
        wrong = 0
        for _ in range(300):
            value = rng.uniform(-2, 2)
            answer = runtime.run_block(np.full((2, 4), value))
            wrong += not np.allclose(answer[:, 1], 1 / (1 + np.exp(-4 * value)), atol=1e-5)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))

    assert [0] * 8 == found


def test_the_interpreter_is_free_while_a_graph_computes(tmp_path):
    """A large product keeps no other thread from counting."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [node("MatMul", ["x", "x"], ["y0"])] + [node("MatMul", [f"y{i}", "x"], [f"y{i + 1}"]) for i in range(40)]
    graph = finish(nodes, [value("x", TensorProto.FLOAT, ["n", 600])], [value("y40", TensorProto.FLOAT, ["n", 600])])
    (tmp_path / "model.onnx").write_bytes(graph)
    sealed = seal_tensors(tmp_path / "other")
    output = msgspec.structs.replace(sealed.manifest.graph.outputs[1], name="y40", shape=(600,))
    info = Graph((GraphInput("x", "float", shape=(600,)),), "y40", outputs=(output,))
    runtime = OnnxRuntime(tmp_path, msgspec.structs.replace(sealed.manifest, graph=info))
    spans = []

    def compute():
        begun = time.perf_counter()
        runtime.run_tensors({"x": np.zeros((600, 600), np.float32)})
        spans.append(time.perf_counter() - begun)

    thread = threading.Thread(target=compute)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now

    # Held, the interpreter would be away from this loop for the whole of the computation.
    assert longest < spans[0] / 2


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        pytest.param("cpu", [CUDA, CPU], [CPU], id="the processor although there is more"),
        pytest.param("auto", [CUDA, CPU], [CUDA, CPU], id="what is there"),
        pytest.param("auto", [CPU], [CPU], id="nothing but the processor"),
        pytest.param("cuda", [CUDA, CPU], [CUDA, CPU], id="asked for and there"),
    ],
)
def test_providers_are_chosen(wanted, offered, expected):
    """The processor is always there; the accelerator where the build has one."""
    assert expected == choose_providers(wanted, offered)


@pytest.mark.parametrize(
    ("wanted", "kind", "code"),
    [
        pytest.param("cuda", UnavailableError, "provider-missing", id="not there"),
        pytest.param("tpu", SpecError, "provider-unknown", id="unknown"),
    ],
)
def test_a_provider_that_cannot_be_had_is_said(wanted, kind, code):
    """Asked for by name it is not replaced in silence."""
    with pytest.raises(kind) as caught:
        choose_providers(wanted, [CPU])

    assert code == caught.value.code


def test_the_runtime_says_where_it_computes(tmp_path):
    """`auto` works on every machine."""
    sealed = seal_churn(tmp_path)

    assert OnnxRuntime(sealed.path, sealed.manifest, provider="auto").provider in {"cpu", "cuda"}
    assert "cpu" == OnnxRuntime(sealed.path, sealed.manifest).provider


def test_a_text_column_in_a_tensor_of_numbers_is_refused(tmp_path):
    """A draft that never was a bundle is looked at too."""
    (tmp_path / "model.onnx").write_bytes(churn_graph())
    sealed = seal_churn(tmp_path / "other")
    columns = tuple(msgspec.structs.replace(c, type=ColumnType.NUMBER) for c in sealed.manifest.columns)
    with pytest.raises(CheckError) as caught:
        OnnxRuntime(tmp_path, msgspec.structs.replace(sealed.manifest, columns=columns))

    assert "model-interface" == caught.value.code
