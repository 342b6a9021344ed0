"""The preprocessing graph: its inputs, its columns, its missing values, and the traps of the two engines one by one."""

import numpy as np
import onnx
import onnxruntime as ort
import polars as pl
import pytest

from mulle.bundle.expr_onnx import _RULES as ONNX_RULES
from mulle.bundle.graph import build_preprocessing, output_name, run_graph
from mulle.core.errors import SpecError
from mulle.core.expr import col, lit, when
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.data.expr_polars import _RULES as POLARS_RULES
from mulle.data.expr_polars import compute_features
from mulle.formats.bundle import Graph, GraphInput

NAN = float("nan")
SCHEMA = Schema(
    (
        Column("a", ColumnType.NUMBER),
        Column("b", ColumnType.NUMBER),
        Column("계약", ColumnType.TEXT),
        Column("partner", ColumnType.BOOLEAN),
        Column("t", ColumnType.DATETIME),
    )
)


def _numbers(features, schema=SCHEMA):
    return build_preprocessing(features, schema, Preprocess(tuple(NumericFeature(name) for name in features)))


def _texts(*values):
    return np.array([MISSING_TEXT if value is None else value for value in values], dtype=object)


def _on_both(expression, values):
    """One number feature of the column `a`, from the table engine and from the graph."""
    frame = pl.DataFrame({"a": values}, schema={"a": pl.Float64})
    table = compute_features(frame, {"f": expression}, SCHEMA)["f"].to_numpy()
    return table, run_graph(_numbers({"f": expression}), {"a": np.array(values, dtype=np.float64)}, output="features")[:, 0]


def test_both_compilers_know_every_operator():
    """The table engine leaves out only columns and literals, which it handles itself."""
    assert set(ONNX_RULES) - {"column", "literal"} == set(POLARS_RULES)


def test_inputs_are_the_columns_that_features_read_in_the_order_of_the_schema():
    """A column nobody reads is no input; types are double and string, shape (n, 1)."""
    preprocess = Preprocess((CategoryFeature("c", ("월",)), NumericFeature("p"), NumericFeature("a")))
    model = build_preprocessing({"c": col("계약").category(), "p": col("partner"), "a": col("a") + 1}, SCHEMA, preprocess)
    inputs = ort.InferenceSession(model).get_inputs()

    assert [(i.name, i.type, i.shape) for i in inputs] == [
        ("a", "tensor(double)", ["n", 1]),
        ("계약", "tensor(string)", ["n", 1]),
        ("partner", "tensor(double)", ["n", 1]),
    ]
    assert onnx.load_from_string(model).producer_name == "mulle"


def test_matrix_follows_the_preprocessing_and_not_the_features():
    """Numbers, texts, booleans and number categories stand where `Preprocess` puts them; unknown values are all zeros."""
    features = {
        "n": col("a"),
        "c": col("계약").category(),
        "p": col("partner").category(),
        "k": col("b").category(),
        "unused": col("t").year(),
    }
    preprocess = Preprocess(
        (
            CategoryFeature("k", ("1", "2.5"), missing_level=True),
            NumericFeature("n", 9.0),
            CategoryFeature("c", ("월", "년"), missing_level=True),
            CategoryFeature("p", ("false", "true"), missing_level=True),
        )
    )
    arrays = {
        "a": np.array([1.0, NAN, np.inf, 1e300]),
        "b": np.array([2.5, NAN, -np.inf, 7.0]),
        "계약": _texts("년", None, "", "월"),
        "partner": np.array([1.0, NAN, 0.0, 1.0]),
    }
    matrix = run_graph(build_preprocessing(features, SCHEMA, preprocess), arrays, output="features")

    assert matrix.dtype == np.float32
    assert matrix.tolist() == [
        [0, 1, 0, 1, 0, 1, 0, 0, 1, 0],
        [0, 0, 1, 9, 0, 0, 1, 0, 0, 1],
        [0, 0, 1, 9, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 9, 1, 0, 0, 0, 1, 0],
    ]


def test_many_levels_give_the_same_columns_as_few():
    """Beyond 128 columns texts are encoded feature by feature: nothing but the speed may change."""
    levels = tuple(f"수준 {i}" for i in range(200))
    features = {"c": col("계약").category(), "d": col("계약").lower().category()}
    preprocess = Preprocess((CategoryFeature("c", levels, missing_level=True), CategoryFeature("d", ("x", "수준 7"))))
    matrix = run_graph(build_preprocessing(features, SCHEMA, preprocess), {"계약": _texts("수준 7", None, "X")}, output="features")
    ones = [[preprocess.output_names[i] for i in np.flatnonzero(row)] for row in matrix]

    assert ones == [["c=수준 7", "d=수준 7"], ["c is missing"], ["d=x"]]


@pytest.mark.parametrize(
    "name",
    [
        "월 요금",
        "a/b",
        "it's",
        'say "x"',
        "v1",
        "v",
        "features",
        "^a$",
        "model/x",
        "raw/",
        "x\n",
        " ",
        "😀",
        "é",
        "Where:v3",
        "..",
        "a" * 300,
    ],
)
def test_any_column_name_is_an_input_name(name):
    """Spaces, quotes, slashes, patterns, Korean, and names the graph would have used itself."""
    schema = Schema((Column(name, ColumnType.NUMBER),))
    model = _numbers({"f": col(name) * 2 + 1}, schema)
    table = compute_features(pl.DataFrame({name: [1.0, None]}), {"f": col(name) * 2 + 1}, schema)["f"].to_list()
    matrix = run_graph(model, {name: np.array([1.0, NAN])}, output=output_name(model))

    assert table[0] == matrix[0, 0] == 3
    assert np.isnan([table[1], matrix[1, 0]]).all()


def test_equal_expressions_are_emitted_once():
    """`log(a + 1)` written in three features is one Log in the graph."""
    features = {"x": (col("a") + 1).log(), "y": (col("a") + 1).log() * 2, "z": -((col("a") + 1).log())}
    operators = [node.op_type for node in onnx.load_from_string(_numbers(features)).graph.node]

    assert operators.count("Log") == 1


def test_long_chains_and_doublings_compile_on_both_sides():
    """500 additions and 40 doublings are neither deep recursion nor 2^40 operators."""
    chain, double = col("a"), col("a")
    for _ in range(500):
        chain = chain + 1.0
    for _ in range(40):
        double = double + double
    for expression, expected in ((chain, 502.0), (double, 2.0**41)):
        table, graph = _on_both(expression, [2.0, NAN])

        assert (table[0], graph[0]) == (expected, expected)
        assert np.isnan([table[1], graph[1]]).all()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        pytest.param((col("a") * 1.0000000001 - col("a")) * 1e12, 3.0, id="a factor that is 1 in float32 is left out by the optimiser"),
        pytest.param((1e-50 + col("a") * 0) * 1e50, 3.0, id="so is a summand that is 0 in float32"),
        pytest.param((col("a").abs() / 1.0000000001 - col("a")) * 1e12, 3.0, id="and a divisor"),
        pytest.param(((lit(1e-30) * 1e-30) + col("a").abs() * 0) * 1e60, 3.0, id="and a constant expression that folds to one"),
        pytest.param(((1 / col("a")) * 10.0 - 10.0 / col("a")) * 1e18, 3.1, id="1 / x * y is rewritten to y / x, which rounds differently"),
        pytest.param((col("a") / 86400 - 0.5) * 1e20, 43199.999999, id="the table engine multiplies by the reciprocal of a literal"),
        pytest.param(1 / (col("a") + 0.0).abs().clip(-0.0, 1), -0.0, id="minus zero plus zero"),
        pytest.param(col("a").log(), 1e-320, id="vectorised logarithms take subnormal numbers for zero"),
        pytest.param(col("a") ** 0, NAN, id="IEEE says NaN ** 0 is 1"),
        pytest.param(1 ** col("a"), NAN, id="and 1 ** NaN too"),
        pytest.param(col("a").max(0), NAN, id="the larger of missing and a number"),
        pytest.param((col("a") == col("a")).fill_null(True), NAN, id="missing is not equal to itself, nor different"),
        pytest.param(col("a") > 5, NAN, id="Polars sorts NaN above every number"),
        pytest.param(when(~(col("a") > 5)).then(1).otherwise(2), NAN, id="not missing is missing, and takes otherwise"),
        pytest.param(col("a").round(), 2.5, id="halves round to the even neighbour"),
        pytest.param(col("a").round(2), 1e308, id="rounding must not overflow"),
        pytest.param(col("a") % 3, -1.0, id="the sign of a remainder is the divisor's"),
        pytest.param(col("a"), 3.4028235677973366e38, id="float32 overflow is missing"),
        pytest.param(col("a").isin([0.0]), -0.0, id="minus zero is zero"),
    ],
)
@pytest.mark.parametrize("rows", [1, 5], ids=["one row", "five rows"])
def test_traps_of_either_engine(expression, value, rows):
    """One row or many, each known difference between the engines is levelled."""
    table, graph = _on_both(expression, [value] * rows)

    np.testing.assert_array_equal(table, graph)


@pytest.mark.parametrize(
    ("expression", "value", "expected"),
    [
        pytest.param(col("a") / 0, 1.0, NAN, id="1 / 0 is infinite, and missing at the end"),
        pytest.param(when(col("a") / 0 > 5).then(1).otherwise(0), 1.0, 1.0, id="but inside it is +inf"),
        pytest.param((col("a") > 5) | True, NAN, 1.0, id="missing or true is true"),
        pytest.param((col("a") > 5) & False, NAN, 0.0, id="missing and false is false"),
        pytest.param((col("a") > 5) & True, NAN, NAN, id="missing and true is missing"),
        pytest.param(col("a").bucket([10, 20]), 10.0, 1.0, id="an edge belongs to the bucket above"),
        pytest.param(col("a").bucket([10, 20]), 9.9, 0.0, id="below the first edge is 0"),
        pytest.param(col("a").bucket([10, 20]), NAN, NAN, id="missing has no bucket"),
        pytest.param(col("a") // 2, -3.0, -2.0, id="floor division rounds down"),
        pytest.param(col("a").log1p(), 1e-18, 1e-18, id="log1p keeps tiny numbers"),
        pytest.param(col("a").clip(None, 3), 7.0, 3.0, id="clip on one side"),
        pytest.param(col("a").is_null(), NAN, 1.0, id="is_null is never missing"),
        pytest.param(col("a").fill_null(4), NAN, 4.0, id="fill_null"),
    ],
)
def test_meaning_on_both_engines(expression, value, expected):
    """The semantics of `core/expr.py`, by example."""
    table, graph = _on_both(expression, [value])

    np.testing.assert_array_equal(table, np.float32([expected]))
    np.testing.assert_array_equal(graph, np.float32([expected]))


@pytest.mark.parametrize(
    ("expression", "value", "expected"),
    [
        pytest.param(col("계약").lower(), "ABC ÀÉ İ 한글", "abc ÀÉ İ 한글", id="lower knows A to Z only"),
        pytest.param(col("계약").squeeze(), "  두   단어 ", "두 단어", id="squeeze joins words by one space"),
        pytest.param(col("계약").squeeze(), "   ", "", id="nothing but spaces is empty"),
        pytest.param(col("계약").squeeze(), "a\tb", "a\tb", id="a tab is no space"),
        pytest.param(col("계약").squeeze().lower(), None, None, id="missing stays missing"),
        pytest.param(col("계약").map_values({"월": "m"}), "년", None, id="an unmapped text is missing"),
        pytest.param(col("계약").map_values({"월": "m"}).fill_null(col("계약")), "년", "년", id="or kept by fill_null"),
        pytest.param(col("계약").map_values({"월": "m"}, default="?"), None, None, id="the default is not for missing"),
    ],
)
def test_texts_on_both_engines(expression, value, expected):
    """Text operators give the same text, seen through the category they become."""
    feature = {"f": expression.category()}
    table = compute_features(pl.DataFrame({"계약": [value]}, schema={"계약": pl.String}), feature, SCHEMA)["f"].to_list()
    levels = () if expected is None else (expected,)
    model = build_preprocessing(feature, SCHEMA, Preprocess((CategoryFeature("f", levels, missing_level=True),)))

    assert [expected] == table
    assert run_graph(model, {"계약": _texts(value)}, output="features").sum() == 1


def test_one_row_is_answered_as_in_a_batch():
    """A row's features do not depend on its neighbours, nor on the size of the batch."""
    rng = np.random.default_rng(3)
    features = {"x": (col("a") * col("b")).log1p(), "y": (col("a") / col("b")).exp(), "c": col("계약").squeeze().category()}
    preprocess = Preprocess((NumericFeature("x"), NumericFeature("y", 0.0), CategoryFeature("c", ("a b", "b"))))
    model = build_preprocessing(features, SCHEMA, preprocess)
    arrays = {"a": rng.normal(size=50), "b": rng.normal(size=50), "계약": _texts(*rng.choice(["a  b", "b", ""], 50))}
    whole = run_graph(model, arrays, output="features")

    np.testing.assert_array_equal(whole, run_graph(model, arrays, output="features", batch=1))
    np.testing.assert_array_equal(whole, run_graph(model, arrays, output="features", batch=7))


def test_no_rows_give_no_rows():
    """An empty table is answered, with the right width."""
    assert run_graph(_numbers({"f": col("a"), "g": col("b")}), {"a": np.empty(0), "b": np.empty(0)}, output="features").shape == (0, 2)


def test_run_graph_stacks_columns_where_the_manifest_says_so():
    """An adopted graph may take several columns in one tensor, of its own type."""
    x = onnx.helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, ["n", 2])
    y = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["X"], ["Y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    info = Graph(inputs=(GraphInput("X", "float", ("나이", "키")),), output="Y")

    assert run_graph(model, {"나이": np.array([1.0]), "키": np.array([2.0])}, info, output="Y").tolist() == [[-1.0, -2.0]]


@pytest.mark.parametrize(
    ("run", "code"),
    [
        pytest.param(lambda m: run_graph(m, {"a": np.ones(1)}, output="nope"), "graph-output", id="an output that is not there"),
        pytest.param(lambda m: run_graph(m, {"b": np.ones(1)}, output="features"), "graph-column", id="a column that is not given"),
        pytest.param(lambda m: run_graph(m[:-20], {"a": np.ones(1)}, output="features"), "graph-unreadable", id="a truncated file"),
        pytest.param(
            lambda _: run_graph(b"\x80\x04pickle", {}, output="features"), "graph-unreadable", id="a pickle that calls itself a graph"
        ),
        pytest.param(
            lambda _: run_graph(_numbers({"f": col("a") + col("b")}), {"a": np.ones(1), "b": np.ones(2)}, output="features"),
            "graph-rows",
            id="columns of different lengths",
        ),
        pytest.param(
            lambda _: build_preprocessing({"f": col("a")}, SCHEMA, Preprocess((NumericFeature("g"),))),
            "preprocess-features",
            id="a preprocessing of other features",
        ),
        pytest.param(
            lambda _: build_preprocessing({"f": col("a")}, SCHEMA, Preprocess((CategoryFeature("f", ("1",)),))),
            "preprocess-features",
            id="a feature that changed its kind",
        ),
        pytest.param(
            lambda _: compute_features(pl.DataFrame({"b": [1]}), {"f": col("a")}, SCHEMA),
            "features-column",
            id="a table that lacks the column",
        ),
    ],
)
def test_what_cannot_run_is_refused(run, code):
    """Errors of our own, with a code, instead of the engine's."""
    with pytest.raises(SpecError) as caught:
        run(_numbers({"f": col("a")}))

    assert code == caught.value.code
