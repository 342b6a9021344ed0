"""Expressions as values: what they read, how they print, what stays equal, and what they refuse with a line and a fix."""

import copy
from datetime import UTC, date, datetime

import numpy as np
import pytest

from mulle.core.errors import SpecError
from mulle.core.expr import Expr, check_features, col, lit, when
from mulle.core.expr_nodes import to_seconds
from mulle.core.schema import Column, ColumnType, Schema

SCHEMA = Schema(
    (
        Column("tenure", ColumnType.NUMBER),
        Column("monthly_charges", ColumnType.NUMBER),
        Column("partner", ColumnType.BOOLEAN),
        Column("joined", ColumnType.DATETIME),
        Column("계약", ColumnType.TEXT),
        Column("churn", ColumnType.TEXT),
    )
)


def _line():
    """The line of the caller, as `Expr.location` would give it."""
    import inspect

    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno}"


def test_an_expression_knows_the_columns_it_reads():
    """`columns` finds every column once, however deep."""
    tenure = col("tenure")

    assert (
        frozenset({"tenure", "monthly_charges", "계약"})
        == (when(col("계약") == "a").then(tenure).otherwise(tenure * col("monthly_charges"))).columns()
    )


def test_an_expression_knows_the_line_it_was_written_on():
    """The place is the first frame outside Mulle, so that errors point into the user's file."""
    expression, line = col("tenure") + 1, _line()

    assert line == expression.location


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param(
            (col("a") - (col("b") - 1)) * -col("c"), "(col('a') - (col('b') - 1.0)) * -col('c')", id="brackets only where they are needed"
        ),
        pytest.param(col("a") ** 2 ** col("b"), "col('a') ** 2.0 ** col('b')", id="powers group to the right"),
        pytest.param((col("a") ** 2) ** 3, "(col('a') ** 2.0) ** 3.0", id="and show it where they do not"),
        pytest.param(~(col("a") & col("b")) | True, "~(col('a') & col('b')) | True", id="logic"),
        pytest.param(when(col("x") > 3).then(1).otherwise(None), "when(col('x') > 3.0).then(1.0).otherwise(None)", id="a choice"),
        pytest.param(col("계약").isin(["월", "년"]), "col('계약').isin(['월', '년'])", id="a list of Korean texts"),
        pytest.param(col("s").map_values({"a": 1}, default=2), "col('s').map_values({'a': 1.0}, default=2.0)", id="a mapping"),
        pytest.param((col("a") + 1).bucket([0, 1]), "(col('a') + 1.0).bucket([0.0, 1.0])", id="a method on a sum"),
    ],
)
def test_repr_reads_as_it_was_written(expression, expected):
    """`repr` is code that would build the same expression."""
    assert expected == repr(expression)
    assert eval(expected, {"col": col, "when": when}).digest == expression.digest  # noqa: S307 - our own text


def test_repr_of_a_large_expression_stays_short():
    """Doubling an expression sixty times prints a few hundred characters."""
    expression = col("x")
    for _ in range(60):
        expression = expression + expression

    assert len(repr(expression)) <= 400


def test_digest_depends_on_what_is_computed_and_not_on_where():
    """Two places, one digest; another constant or the sign of zero, another digest."""
    here = col("a") + 0.5
    there = col("a") + 0.5

    assert here.digest == there.digest
    assert here.to_dict() == there.to_dict()
    assert here.location != there.location
    assert len({here.digest, (col("a") + 1).digest, (0.5 + col("a")).digest, (col("a") * 0.0).digest, (col("a") * -0.0).digest}) == 5


def test_digest_is_stable_across_versions():
    """The digest is part of lineage: it must not move when the code is rearranged."""
    expression = when(col("계약").isin(["월", "년"])).then(col("tenure").clip(0, 72) / 12).otherwise(lit(None))

    assert expression.digest == "a93237719c95cd6c0bff184f79d339b09d832d46971576ef6281640720f8110d"


def test_to_dict_writes_shared_parts_once():
    """Sixty doublings are 61 operators, not 2^60."""
    expression = col("x")
    for _ in range(60):
        expression = expression + expression

    assert len(expression.to_dict()["nodes"]) == 61
    assert check_features({"f": expression}, Schema((Column("x", ColumnType.NUMBER),))) == {"f": "number"}


def test_a_chain_of_ten_thousand_operators_is_long_and_not_an_error():
    """No walk over an expression recurses."""
    expression = col("x")
    for i in range(10_000):
        expression = expression + float(i)

    assert check_features({"f": expression}, Schema((Column("x", ColumnType.NUMBER),))) == {"f": "number"}


def test_numpy_scalars_and_python_functions_work_from_both_sides():
    """`np.float64(2) * col` is our product, not an array of objects; abs, round, math.floor find their methods."""
    assert (np.float64(2) * col("a")).digest == (2 * col("a")).digest
    assert (col("a") * np.int64(2)).digest == (col("a") * 2).digest
    assert round(abs(col("a")), 2).digest == col("a").abs().round(2).digest


def test_expressions_can_be_copied_and_put_in_sets():
    """Protocols that probe for special methods are answered, not refused."""
    expression = col("a") + 1

    assert copy.deepcopy(expression).digest == expression.digest
    assert len({expression, col("b")}) == 2
    assert not hasattr(expression, "mean")


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        pytest.param(date(1970, 1, 2), 86400.0, id="a date is its midnight in UTC"),
        pytest.param(datetime(1970, 1, 1, 0, 0, 0, 500000), 0.5, id="a time without a zone is UTC"),  # noqa: DTZ001 - the point of the row
        pytest.param(datetime.fromisoformat("1970-01-01T09:00:00+09:00"), 0.0, id="a time with a zone is converted"),
        pytest.param(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1.0, id="before 1970 seconds are negative"),
    ],
)
def test_dates_are_seconds_since_1970(moment, seconds):
    """Dates in expressions have the values that date columns have."""
    assert seconds == to_seconds(moment)


@pytest.mark.parametrize(
    ("build", "code", "fix"),
    [
        pytest.param(lambda: bool(col("a") > 1), "expression-truth", "use & | ~", id="`and`, `or`, `not` and `if` ask for a truth value"),
        pytest.param(lambda: 0 < col("a") < 5, "expression-truth", ".between", id="so does a chained comparison"),
        pytest.param(lambda: "x" in col("a"), "expression-value", ".isin", id="membership"),
        pytest.param(lambda: list(col("a")), "expression-value", "each row", id="iteration"),
        pytest.param(lambda: float(col("a")), "expression-value", ".log()", id="math functions"),
        pytest.param(lambda: col("a") * [1], "expression-literal", "use a number", id="a list is no operand"),
        pytest.param(lambda: col("a") + 10**400, "expression-literal", "smaller", id="an integer beyond float64"),
        pytest.param(lambda: col("a").filnull(0), "expression-method", "'fill_null'", id="a misspelt method names the nearest"),
        pytest.param(lambda: col("a").strip(), "expression-method", ".squeeze", id="pandas' name for it"),
        pytest.param(lambda: col("a").mean(), "expression-method", "own row", id="an aggregate"),
        pytest.param(lambda: col("a").str, "expression-method", "source", id="what only a table can do"),
        pytest.param(lambda: col(""), "expression-column", "mulle.col", id="a column without a name"),
        pytest.param(lambda: col("a").isin([]), "expression-isin", "give a list", id="an empty list"),
        pytest.param(lambda: col("a").isin("abc"), "expression-isin", "give a list", id="a text is no list"),
        pytest.param(lambda: col("a").isin([1, None]), "expression-isin", ".is_null()", id="missing in a list"),
        pytest.param(lambda: col("a").bucket([2, 1]), "expression-bucket", "rising", id="edges that fall"),
        pytest.param(lambda: col("a").bucket([]), "expression-bucket", "rising", id="no edges"),
        pytest.param(lambda: col("a").clip(5, 1), "expression-clip", "lower end first", id="an empty range"),
        pytest.param(lambda: col("a").clip(col("b"), 1), "expression-bound", "plain numbers", id="bounds that are expressions"),
        pytest.param(lambda: col("a").round(99), "expression-round", "-15 to 15", id="too many decimals"),
        pytest.param(lambda: col("a").map_values({}), "expression-map", "texts to texts", id="an empty mapping"),
        pytest.param(lambda: col("a").map_values({"x": 1, "y": "z"}), "expression-map", "same kind", id="values of two kinds"),
        pytest.param(lambda: col("a").map_values({1: 2}), "expression-map", "texts as keys", id="keys that are no texts"),
    ],
)
def test_misuse_is_refused_where_it_stands(build, code, fix):
    """Every mistake names its line and what to write instead."""
    with pytest.raises(SpecError) as caught:
        build()

    assert code == caught.value.code
    assert fix in caught.value.fix
    assert caught.value.where.startswith(__file__)


def test_an_unfinished_choice_is_not_an_expression():
    """`.then(…)` alone is told to go on."""
    with pytest.raises(SpecError) as caught:
        check_features({"f": when(col("partner")).then(1)}, SCHEMA)

    assert caught.value.code == "features-value"
    assert ".otherwise" in caught.value.fix


def test_expr_is_immutable():
    """Nothing can be attached to an expression or changed in it."""
    with pytest.raises(AttributeError):
        col("a").node = col("b").node

    assert isinstance(col("a"), Expr)
