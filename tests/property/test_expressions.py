"""The two compilers agree: whatever expression, whatever table, the features of the table engine are those of the graph."""

import math
import operator
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mulle.bundle.expr_onnx import compile_expressions
from mulle.bundle.graph import build_preprocessing, output_name, run_graph
from mulle.bundle.graph_builder import GraphBuilder
from mulle.core.expr import Expr, check_features, col, lit, resolve_features, when
from mulle.core.expr_typed import Typed
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess
from mulle.core.schema import Column, ColumnType, Schema
from mulle.data.arrays import to_arrays
from mulle.data.expr_polars import compute_features

EXAMPLES = 200
"""Drawn tables and expressions per test; 6,000 were tried when the compilers were written."""

SCHEMA = Schema(
    (
        Column("x", ColumnType.NUMBER),
        Column('월 요금/"a\' b"', ColumnType.NUMBER),
        Column("^n.*$", ColumnType.NUMBER),
        Column("v1", ColumnType.BOOLEAN),
        Column("features", ColumnType.BOOLEAN),
        Column("가입일", ColumnType.DATETIME),
        Column("until", ColumnType.DATETIME),
        Column("계약", ColumnType.TEXT),
        Column("😀 name", ColumnType.TEXT),
    )
)
NUMBERS = [c.name for c in SCHEMA if c.type is ColumnType.NUMBER]
BOOLEANS = [c.name for c in SCHEMA if c.type is ColumnType.BOOLEAN]
DATES = [c.name for c in SCHEMA if c.type is ColumnType.DATETIME]
TEXTS = [c.name for c in SCHEMA if c.type is ColumnType.TEXT]

_SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 10.0, 1e-320, 5e-324, 1e308, -1e308, 3.5e38, 1e-46, 1e15, 2.0**52, 2.0**53 + 2]
_EDGE = [*_SPECIAL, math.inf, -math.inf, math.nan]
_WORDS = [
    "",
    " ",
    "a",
    "A",
    "Month-to-month",
    "ÀÉ",
    "계약",
    "월 납  입",
    "e\u0301",
    "é",
    "😀",
    "ǅ İ ß",
    "  two  words ",
    "\tt\u00a0ab\n",
    "\ufffd",
    "\u2028",
]

numbers_drawn = st.one_of(st.sampled_from(_EDGE), st.integers(-20, 20).map(float), st.floats())
finite_drawn = st.one_of(st.sampled_from(_SPECIAL), st.integers(-5, 5).map(float), st.floats(allow_nan=False, allow_infinity=False))
texts_drawn = st.one_of(
    st.sampled_from(_WORDS), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufdd0"), max_size=6)
)
moments_drawn = st.one_of(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),  # noqa: DTZ001 - a table's datetimes are naive UTC
    st.sampled_from([datetime(2024, 2, 29, 23, 59, 59, 999999), datetime(1900, 3, 1), datetime(1969, 12, 31, 23, 59, 59)]),  # noqa: DTZ001
)


@st.composite
def tables(draw):
    """A table of the schema with every kind of value a source can hold."""
    n = draw(st.integers(1, 6))

    def column(values):
        return draw(st.lists(st.one_of(st.none(), values), min_size=n, max_size=n))

    data = {}
    for c in SCHEMA:
        values, dtype = {
            ColumnType.NUMBER: (numbers_drawn, pl.Float64),
            ColumnType.BOOLEAN: (st.booleans(), pl.Boolean),
            ColumnType.DATETIME: (moments_drawn, pl.Datetime("us")),
            ColumnType.TEXT: (texts_drawn, pl.String),
        }[c.type]
        data[c.name] = pl.Series(c.name, column(values), dtype=dtype)
    return pl.DataFrame(data)


def _pick(draw, *options):
    return draw(st.sampled_from(options))


def _leaf(draw):
    return col(_pick(draw, *NUMBERS)) if draw(st.integers(0, 3)) else lit(draw(finite_drawn))


NUMBER_RULES = [
    lambda draw, d: _pick(draw, *ARITHMETIC)(_number(draw, d), _number(draw, d)),
    lambda draw, d: _pick(draw, *ARITHMETIC)(_number(draw, d), _number(draw, d)),
    lambda draw, d: _pick(draw, *ARITHMETIC)(_number(draw, d), draw(finite_drawn)),
    lambda draw, d: _pick(draw, *ARITHMETIC)(draw(finite_drawn), _number(draw, d)),
    lambda draw, d: _pick(draw, operator.neg, abs, Expr.sqrt, Expr.floor, Expr.ceil, Expr.round)(_number(draw, d)),
    lambda draw, d: _number(draw, d).round(draw(st.integers(-3, 6))),
    lambda draw, d: _number(draw, d).clip(_pick(draw, None, -2.0, -0.0, 0.0), _pick(draw, None, 0.0, 1.0, 1e300)),
    lambda draw, d: _pick(draw, Expr.min, Expr.max, Expr.fill_null)(_number(draw, d), _number(draw, d)),
    lambda draw, d: _number(draw, d).bucket(sorted(draw(st.sets(finite_drawn.map(lambda v: v + 0.0), min_size=1, max_size=4)))),
    lambda draw, d: when(_boolean(draw, d)).then(_number(draw, d)).otherwise(_pick(draw, None, 1, _number(draw, d))),
    lambda draw, d: _text(draw, d).map_values({draw(texts_drawn): draw(finite_drawn), "a": 0.1}, default=_pick(draw, None, -3.25)),
    lambda draw, d: _pick(draw, Expr.year, Expr.month, Expr.day, Expr.weekday, Expr.hour, Expr.minute)(_date(draw, d)),
    lambda draw, d: _date(draw, d).days_since(_pick(draw, "2020-02-29T12:00:00", col(DATES[1]))),
    lambda draw, d: _date(draw, d) - _date(draw, d),
    lambda draw, d: _boolean(draw, d) + _number(draw, d),
    lambda draw, d: _number(draw, d) ** _pick(draw, 2, 3, 0.5, -1, 1, 0),
]
ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod]
BOOLEAN_RULES = [
    lambda draw, d: _pick(draw, *ORDER, operator.eq, operator.ne)(_number(draw, d), _number(draw, d)),
    lambda draw, d: _pick(draw, operator.and_, operator.or_, operator.eq, operator.ne, Expr.fill_null)(
        _boolean(draw, d), _boolean(draw, d)
    ),
    lambda draw, d: ~_boolean(draw, d),
    lambda draw, d: when(_boolean(draw, d)).then(_boolean(draw, d)).otherwise(_pick(draw, None, False, _boolean(draw, d))),
    lambda draw, d: _pick(draw, operator.eq, operator.ne)(_text(draw, d), _pick(draw, "a", _text(draw, d))),
    lambda draw, d: _text(draw, d).isin(draw(st.lists(texts_drawn, min_size=1, max_size=4))),
    lambda draw, d: _number(draw, d).isin(draw(st.lists(finite_drawn, min_size=1, max_size=4))),
    lambda draw, d: _pick(draw, _number, _boolean, _date, _text)(draw, d).is_null(),
    lambda draw, d: _pick(draw, *ORDER, operator.eq, operator.ne)(_date(draw, d), _pick(draw, "2000-01-01", _date(draw, d))),
]
ORDER = [operator.lt, operator.le, operator.gt, operator.ge]
DATE_RULES = [
    lambda draw, d: _pick(draw, Expr.min, Expr.max, Expr.fill_null)(_date(draw, d), _pick(draw, "2024-02-29", _date(draw, d))),
    lambda draw, d: when(_boolean(draw, d)).then(_date(draw, d)).otherwise(_date(draw, d)),
]
TEXT_RULES = [
    lambda draw, d: _text(draw, d).lower(),
    lambda draw, d: _text(draw, d).squeeze(),
    lambda draw, d: _text(draw, d).map_values({draw(texts_drawn): draw(texts_drawn), "a": "하나"}, default=_pick(draw, None, "rest")),
    lambda draw, d: _text(draw, d).fill_null(_pick(draw, "none", _text(draw, d))),
    lambda draw, d: when(_boolean(draw, d)).then(_text(draw, d)).otherwise(_pick(draw, None, "x", _text(draw, d))),
]


def _number(draw, depth):
    return _pick(draw, *NUMBER_RULES)(draw, depth - 1) if depth else _leaf(draw)


def _boolean(draw, depth):
    return _pick(draw, *BOOLEAN_RULES)(draw, depth - 1) if depth else col(_pick(draw, *BOOLEANS))


def _date(draw, depth):
    return _pick(draw, *DATE_RULES)(draw, depth - 1) if depth and draw(st.booleans()) else col(_pick(draw, *DATES))


def _text(draw, depth):
    return _pick(draw, *TEXT_RULES)(draw, depth - 1) if depth else col(_pick(draw, *TEXTS))


@st.composite
def features_drawn(draw):
    """One to four features, each a random expression that reads at least one column."""
    features = {}
    for i in range(draw(st.integers(1, 4))):
        depth = draw(st.integers(0, 4))
        expression = draw(st.sampled_from([_number, _number, _boolean, _text]))(draw, depth)
        if not expression.columns():
            expression = expression + col("x")
        features[f"특징 {i}"] = expression
    return {name: _ended(draw, expression) for name, expression in features.items()}


def _ended(draw, expression):
    try:
        check_features({"f": expression}, SCHEMA)
    except Exception:  # noqa: BLE001 - a text: it has to be a category
        return expression.category()
    return expression.category() if draw(st.booleans()) else expression


def _fitted(table):
    """A preprocessing with every value of the table as a level, and missing kept visible."""
    kinds = [
        NumericFeature(name)
        if table[name].dtype == pl.Float32
        else CategoryFeature(name, tuple(table[name].drop_nulls().unique().sort()), missing_level=True)
        for name in table.columns
    ]
    return Preprocess(tuple(kinds))


def _expected(table, preprocess):
    """The matrix the table engine's features amount to."""
    columns = []
    for feature in preprocess.features:
        values = table[feature.name]
        if isinstance(feature, NumericFeature):
            columns.append(values.to_numpy())
        else:
            columns += [(values == level).fill_null(value=False).to_numpy().astype(np.float32) for level in feature.levels]
            columns.append(values.is_null().to_numpy().astype(np.float32))
    return np.column_stack(columns)


def _arrays(frame):
    """The columns as arrays; they travel under plain names, so that only the two compilers meet the strange ones."""
    plain = {name: f"k{i}" for i, name in enumerate(SCHEMA.names)}
    schema = Schema(tuple(Column(plain[c.name], c.type) for c in SCHEMA))
    arrays = to_arrays(frame.rename(plain), schema)
    return {name: arrays[plain[name]] for name in SCHEMA.names}


def _both(frame, features):
    table = compute_features(frame, features, SCHEMA)
    preprocess = _fitted(table)
    graph = build_preprocessing(features, SCHEMA, preprocess)
    output = output_name(graph)
    return _expected(table, preprocess), run_graph(graph, _arrays(frame), output=output)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(frame=tables(), features=features_drawn())
def test_table_and_graph_agree_exactly(frame, features):
    """Arithmetic, comparison, logic, rounding, dates and text give the same bits in Polars and in ONNX Runtime."""
    expected, actual = _both(frame, features)

    np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize(
    "zero", [lit(-0.0).round(1), -lit(0.0), lit(-0.3).ceil(), col("x") * -0.0], ids=["rounded", "negated", "ceiled", "computed"]
)
def test_a_zero_has_no_sign(zero):
    """Dividing by a negative zero gives +inf in both compilers, however the zero came about."""
    frame = pl.DataFrame({"x": [1.0, 0.0]})
    schema = Schema((Column("x", ColumnType.NUMBER),))
    features = {"a": (1.0 / zero).clip(None, 0.0) + col("x"), "b": (zero**-1).clip(None, 0.0) + col("x")}
    preprocess = Preprocess((NumericFeature("a"), NumericFeature("b")))
    actual = run_graph(build_preprocessing(features, schema, preprocess), to_arrays(frame, schema), output="features")

    np.testing.assert_array_equal([[1.0, 1.0], [0.0, 0.0]], actual)
    np.testing.assert_array_equal(actual, compute_features(frame, features, schema).to_numpy())


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(frame=tables(), data=st.data())
def test_logarithms_and_powers_agree_to_rounding(frame, data):
    """After float32, log, log1p, exp and general powers differ by at most one part in a million, and are missing together."""
    x = _number(data.draw, data.draw(st.integers(0, 2))) + col("x") * 0
    exponent = data.draw(st.sampled_from([1.5, -2, 0.1, 7, col("^n.*$")]))
    expected, actual = _both(frame, {"log": x.log(), "log1p": x.log1p(), "exp": x.exp(), "pow": x**exponent, "base": 2**x})

    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-44)


def _doubles(expression, frame):
    """One number expression on both engines, before it is rounded to float32."""
    typed: Typed = resolve_features({"f": expression}, SCHEMA)["f"]
    g = GraphBuilder(reserved=["x"])
    result = compile_expressions(g, [typed])[typed.key]
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 1])
    graph = g.finish([x], result, helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 1]))
    from mulle.data import expr_polars

    order = expr_polars.walk_typed([typed])
    compiled, table = expr_polars._compile(order, pl.DataFrame({"c0": frame["x"].fill_nan(None)}), {"x": "c0"})
    expected = table.select(compiled[typed.key].fill_null(math.nan).alias("y"))["y"].to_numpy()
    return expected, run_graph(graph, {"x": frame["x"].to_numpy()}, output="y")[:, 0]


def test_transcendental_functions_agree_within_four_units_in_the_last_place():
    """Before float32, log, log1p, exp and powers of the two engines differ by at most 4 ulp of float64."""
    rng = np.random.default_rng(7)
    x = np.concatenate(
        [rng.uniform(-3, 3, 4000), rng.lognormal(0, 30, 4000), rng.uniform(-700, 700, 4000), 10.0 ** rng.uniform(-17, 2, 4000)]
    )
    frame = pl.DataFrame({"x": x})
    worst = 0.0
    for f in (col("x").log(), col("x").log1p(), col("x").exp(), abs(col("x")) ** 1.7, abs(col("x")) ** -0.3, 2 ** col("x")):
        expected, actual = _doubles(f, frame)
        np.testing.assert_array_equal(np.isnan(expected), np.isnan(actual))
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(expected[~finite], actual[~finite])
        worst = max(worst, float(np.max(np.abs(expected[finite] - actual[finite]) / np.spacing(np.abs(expected[finite])))))

    assert worst <= 4


@settings(max_examples=20, deadline=None)
@given(moments=st.lists(moments_drawn, min_size=1, max_size=60))
def test_calendar_parts_are_those_of_the_standard_library(moments):
    """Year to minute of the lowered arithmetic equal Python's datetime, for every moment from year 1 to 9999."""
    d = col("가입일")
    features = {"y": d.year(), "m": d.month(), "d": d.day(), "w": d.weekday(), "h": d.hour(), "min": d.minute()}
    whole = [moment.replace(microsecond=0) for moment in moments]
    frame = pl.DataFrame({"가입일": whole}, schema={"가입일": pl.Datetime("us")})
    expected = [(m.year, m.month, m.day, m.isoweekday(), m.hour, m.minute) for m in whole]

    assert expected == compute_features(frame, features, SCHEMA).rows()
