"""Feature expressions as Polars: the half of the compiler that training uses.

Missing is null in here, and NaN in the middle of arithmetic, through which both propagate. A value that somebody looks at
(compares, counts, asks whether it is missing) is first worked out as a column of its own, with null for NaN: from there on
Polars' null propagation and Kleene logic are the semantics of `core/expr.py`, and its order of NaN never gets a say.
Rejected: `fill_nan` after every operator. Polars writes it out as a choice that names its operand three times, so that an
expression of depth n had 3^n parts.

Columns are renamed before anything is computed (`pl.col("^a$")` would be read as a pattern), and values that are used
twice are computed once, as columns of their own.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import cast

import numpy as np
import polars as pl

from mulle.core.errors import SpecError
from mulle.core.expr import Expr, resolve_features
from mulle.core.expr_nodes import bounded
from mulle.core.expr_typed import Typed, TypedOp, walk_typed
from mulle.core.preprocess import number_level
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema

_DTYPES: dict[str, pl.DataType] = {"number": pl.Float64(), "datetime": pl.Float64(), "boolean": pl.Boolean(), "text": pl.String()}
_MAX_DEPTH = 40
_EXAMINES: frozenset[TypedOp] = frozenset(
    {"lt", "le", "eq", "is_null", "fill_null", "bucket", "isin_number", "pow", "map_text", "map_number"}
)

Args = tuple[pl.Expr, ...]
Rule = Callable[[Typed, Args], pl.Expr]


def compute_features(frame: pl.DataFrame, features: Mapping[str, Expr], schema: Schema) -> pl.DataFrame:
    """Return one column per feature, in order: Float32 with NaN for missing, or String with null for missing.

    Infinities, also those that arise from rounding to float32, are missing. Numbers that are categories are written as
    `number_level` writes them, booleans as `true` and `false`.

    Args:
        frame: A table with the columns the features read.
        features: Feature name to expression.
        schema: What those columns hold.

    Raises:
        SpecError: whatever `check_features` raises, or a column that the table lacks.
    """
    typed = resolve_features(features, schema)
    order = walk_typed(typed.values())
    names = {str(value.params[0]): f"c{i}" for i, value in enumerate(order) if value.op == "column"}
    table = _raw_table(frame, schema, names)
    compiled, table = _compile(order, table, names)
    outputs = [_output(compiled[value.key], value).alias(f"f{i}") for i, value in enumerate(typed.values())]
    computed = table.select(outputs)
    columns = [_levels(computed[f"f{i}"]) if _is_number_category(value) else computed[f"f{i}"] for i, value in enumerate(typed.values())]
    return pl.DataFrame([series.alias(name) for name, series in zip(typed, columns, strict=True)])


def raw_value(series: pl.Series, column: Column) -> pl.Series:
    """Return a raw column as it enters the graph, but with null for missing.

    Number: Float64. Boolean: Boolean. Datetime: Float64, seconds since 1970-01-01 UTC, from whole microseconds. Text: String.
    """
    # A series goes through its own name when it is computed with, and a name such as ^a$ would be taken for a pattern.
    series = series.alias("raw")
    match column.type:
        case ColumnType.NUMBER:
            return series.cast(pl.Float64).fill_nan(None)
        case ColumnType.BOOLEAN:
            return series.cast(pl.Boolean)
        case ColumnType.DATETIME:
            if series.dtype == pl.Null:
                return series.cast(pl.Float64)
            if series.dtype == pl.Date:
                return series.cast(pl.Int64).cast(pl.Float64) * 86_400.0
            # One rounding to a double of microseconds, one by the division: what every other reader of datetimes does too.
            micros = series.dt.cast_time_unit("us").cast(pl.Int64).cast(pl.Float64)
            return _quotient([micros, pl.Series([1e6])]).fill_nan(None)
        case ColumnType.TEXT:
            text = pl.col("text")
            return pl.DataFrame({"text": series.cast(pl.String)}).select(pl.when(text != MISSING_TEXT).then(text))["text"]


def _raw_table(frame: pl.DataFrame, schema: Schema, names: Mapping[str, str]) -> pl.DataFrame:
    columns: list[pl.Series] = []
    for name, alias in names.items():
        column = schema.get(name)
        if column is None or name not in frame.columns:
            raise SpecError("features-column", f"the table has no column {bounded(name)}", fix="read the table the schema was made from")
        columns.append(raw_value(frame.get_column(name), column).alias(alias))
    return pl.DataFrame(columns)


def _compile(order: list[Typed], table: pl.DataFrame, names: Mapping[str, str]) -> tuple[dict[str, pl.Expr], pl.DataFrame]:
    """Return an expression per value; shared, deep and examined ones have become columns of the returned table, stage by stage."""
    uses = Counter(arg.key for value in order for arg in value.args)
    examined = {arg.key for value in order if value.op in _EXAMINES for arg in value.args}
    compiled: dict[str, pl.Expr] = {}
    depth: dict[str, int] = {}
    stage: dict[str, int] = {}
    fixed: set[str] = set()
    stages: list[list[pl.Expr]] = []
    for value in order:
        key = value.key
        depth[key] = 1 + max((depth[arg.key] for arg in value.args), default=0)
        stage[key] = max((stage[arg.key] for arg in value.args), default=0)
        compiled[key] = _expression(value, compiled, names)
        if value.op == "column":
            continue
        if all(arg.key in fixed for arg in value.args):
            # One value for all rows is worked out here: not every operator of Polars would spread it over the rows later.
            fixed.add(key)
            constant = pl.select(compiled[key].alias("v"))["v"].item()
            missing = isinstance(constant, float) and math.isnan(constant)
            compiled[key] = pl.lit(None if missing else constant, dtype=_DTYPES[value.type])
        elif key in examined or uses[key] > 1 or depth[key] > _MAX_DEPTH:
            if stage[key] == len(stages):
                stages.append([])
            clean = compiled[key].fill_nan(None) if key in examined and value.type in ("number", "datetime") else compiled[key]
            stages[stage[key]].append(clean.alias(f"t{len(depth)}"))
            compiled[key], depth[key], stage[key] = pl.col(f"t{len(depth)}"), 0, stage[key] + 1
    for columns in stages:
        table = table.with_columns(columns)
    return compiled, table


def _expression(value: Typed, compiled: Mapping[str, pl.Expr], names: Mapping[str, str]) -> pl.Expr:
    if value.op == "column":
        return pl.col(names[str(value.params[0])])
    if value.op == "literal":
        return _literal(value)
    return _RULES[value.op](value, tuple(compiled[arg.key] for arg in value.args))


def _literal(value: Typed) -> pl.Expr:
    return pl.lit(value.params[0], dtype=_DTYPES[value.type])


def _output(expression: pl.Expr, value: Typed) -> pl.Expr:
    if value.type == "category":
        return expression
    if value.type == "boolean":
        expression = expression.cast(pl.Float64)
    narrow = expression.cast(pl.Float32)
    return pl.when(narrow.is_finite()).then(narrow).otherwise(pl.lit(float("nan"), dtype=pl.Float32))


def _is_number_category(value: Typed) -> bool:
    return value.op == "category" and value.args[0].type == "number"


def _levels(series: pl.Series) -> pl.Series:
    """Return numbers as levels; infinities are missing."""
    # Adding zero makes minus zero zero: the two are one level.
    level = pl.col("level")
    series = pl.DataFrame({"level": series}).select(pl.when(level.is_finite()).then(level + 0.0))["level"]
    known = series.drop_nulls().unique()
    if not len(known):
        return series.cast(pl.String)
    return series.replace_strict(
        known, pl.Series([number_level(number) for number in known.to_list()]), default=None, return_dtype=pl.String
    )


def _category(value: Typed, args: Args) -> pl.Expr:
    (inner,) = args
    if value.args[0].type == "boolean":
        return pl.when(inner).then(pl.lit("true")).when(~inner).then(pl.lit("false")).otherwise(pl.lit(None, dtype=pl.String))
    return inner


def _map(value: Typed, args: Args) -> pl.Expr:
    keys, values, default = value.params
    dtype = _DTYPES[value.type]
    mapped = args[0].replace_strict(list(_items(keys)), list(_items(values)), default=pl.lit(default, dtype=dtype), return_dtype=dtype)
    return pl.when(args[0].is_null()).then(pl.lit(None, dtype=dtype)).otherwise(mapped)


def _items(param: object) -> tuple[str | float, ...]:
    return cast("tuple[str | float, ...]", param)


def _bucket(value: Typed, args: Args) -> pl.Expr:
    (x,) = args
    return pl.sum_horizontal(*[(x >= edge).cast(pl.Float64) for edge in _items(value.params)], ignore_nulls=False)


def _divide(a: pl.Expr, b: pl.Expr) -> pl.Expr:
    # Polars multiplies by the reciprocal where a divisor is one value (a literal, or the only row): off by one unit in the
    # last place in a third of all cases. numpy divides.
    return pl.map_batches([a, b], _quotient, return_dtype=pl.Float64)


def _quotient(pair: Sequence[pl.Series]) -> pl.Series:
    with np.errstate(all="ignore"):
        return pl.Series(np.divide(pair[0].to_numpy(), pair[1].to_numpy()))


def _one(function: Callable[[pl.Expr], pl.Expr]) -> Rule:
    """Return the rule of an operator on one value."""
    return lambda _, args: function(args[0])


def _two(function: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> Rule:
    """Return the rule of an operator on two values."""
    return lambda _, args: function(args[0], args[1])


_RULES: dict[TypedOp, Rule] = {
    "add": _two(lambda a, b: a + b),
    "sub": _two(lambda a, b: a - b),
    "mul": _two(lambda a, b: a * b),
    "div": _two(_divide),
    "pow": _two(lambda a, b: pl.when(a.is_null() | b.is_null()).then(pl.lit(None, dtype=pl.Float64)).otherwise(a.pow(b))),
    "neg": _one(lambda a: -a),
    "abs": _one(lambda a: a.abs()),
    "sqrt": _one(lambda a: a.sqrt()),
    "floor": _one(lambda a: a.floor()),
    "ceil": _one(lambda a: a.ceil()),
    "round": _one(lambda a: a.round(mode="half_to_even")),
    "log": _one(lambda a: a.log()),
    "exp": _one(lambda a: a.exp()),
    "lt": _two(lambda a, b: a < b),
    "le": _two(lambda a, b: a <= b),
    "eq": _two(lambda a, b: a == b),
    "text_eq": _two(lambda a, b: a == b),
    "and": _two(lambda a, b: a & b),
    "or": _two(lambda a, b: a | b),
    "not": _one(lambda a: ~a),
    "to_number": _one(lambda a: a.cast(pl.Float64)),
    "is_null": _one(lambda a: a.is_null()),
    "fill_null": _two(lambda a, b: pl.when(a.is_null()).then(b).otherwise(a)),
    "when": lambda _, args: pl.when(args[0]).then(args[1]).otherwise(args[2]),
    "isin_number": lambda value, args: args[0].is_in(list(_items(value.params))),
    "isin_text": lambda value, args: args[0].is_in(list(_items(value.params))),
    "bucket": _bucket,
    "lower": _one(lambda a: a.str.replace_many(list(ascii_uppercase), list(ascii_lowercase))),
    "squeeze": _one(lambda a: a.str.replace_all(" +", " ").str.strip_chars(" ")),
    "map_text": _map,
    "map_number": _map,
    "category": _category,
}
