"""Features against a schema: the kinds they become, and every refusal with its line."""

import pytest

from mulle.core.errors import SpecError
from mulle.core.expr import check_features, col, lit, when
from mulle.core.preprocess import CategoryFeature, NumericFeature, Preprocess, level_number, number_level
from mulle.core.schema import Column, ColumnType, Schema

SCHEMA = Schema(
    (
        Column("tenure", ColumnType.NUMBER),
        Column("monthly_charges", ColumnType.NUMBER),
        Column("partner", ColumnType.BOOLEAN),
        Column("joined", ColumnType.DATETIME),
        Column("left", ColumnType.DATETIME),
        Column("계약", ColumnType.TEXT),
        Column("churn", ColumnType.TEXT),
    )
)


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        pytest.param(col("tenure") * col("monthly_charges"), "number", id="a product"),
        pytest.param(col("partner"), "number", id="a boolean is 0 or 1"),
        pytest.param(col("partner") + 1, "number", id="and counts where a number is needed"),
        pytest.param(col("계약").category(), "category", id="a text made a category"),
        pytest.param(col("tenure").bucket([12, 24]).category(), "category", id="so can a number"),
        pytest.param(col("partner").category().category(), "category", id="twice is once"),
        pytest.param(col("joined").days_since("2020-01-01"), "number", id="a date as days"),
        pytest.param(col("left") - col("joined"), "number", id="two dates as seconds"),
        pytest.param(col("joined") > "2020-01-01", "number", id="an ISO text beside a date is a date"),
        pytest.param(col("joined").isin(["2020-01-01"]), "number", id="in lists too"),
        pytest.param(when(col("계약") == "월").then(col("tenure")).otherwise(None), "number", id="None is missing of any type"),
        pytest.param(lit(None) == col("계약"), "number", id="even of text"),
        pytest.param(col("tenure").where(col("partner")), "number", id="where"),
    ],
)
def test_check_features_tells_what_a_feature_becomes(expression, kind):
    """Types are inferred from the schema."""
    assert check_features({"f": expression}, SCHEMA) == {"f": kind}


@pytest.mark.parametrize(
    ("expression", "code", "fix"),
    [
        pytest.param(col("tenur") + 1, "expression-column", "did you mean 'tenure'?", id="a misspelt column names the nearest"),
        pytest.param(col("계악").category(), "expression-column", "use one of 'tenure'", id="with nothing near, what there is"),
        pytest.param(col("TENURE"), "expression-column", "'tenure'", id="only the case is wrong"),
        pytest.param(col("계약") + 1, "expression-type", ".map_values", id="arithmetic on text"),
        pytest.param(col("계약") < "b", "expression-type", "isin", id="texts have no order"),
        pytest.param(col("계약") == 1, "expression-type", "one type", id="text beside number"),
        pytest.param(col("joined") + 1, "expression-type", ".days_since", id="arithmetic on a date"),
        pytest.param(col("joined") > "soon", "expression-date", "2026-01-31", id="a text that is no date"),
        pytest.param(col("tenure").year(), "expression-type", "as a date in the source", id="a part of what is no date"),
        pytest.param(col("tenure") & col("partner"), "expression-type", "> 0", id="logic on a number"),
        pytest.param(~col("계약"), "expression-type", "isin", id="not of a text"),
        pytest.param(col("tenure").lower(), "expression-type", "leave `lower` out", id="text methods on a number"),
        pytest.param(col("계약").category() == "a", "expression-type", ".category() last", id="a category ends an expression"),
        pytest.param(col("tenure").isin(["1"]), "expression-type", "as the column has them", id="a list of another type"),
        pytest.param(when(col("tenure")).then(1).otherwise(0), "expression-type", "> 0", id="a condition that is a number"),
        pytest.param(when(col("partner")).then("a").otherwise(0), "expression-type", "one type", id="branches of two types"),
        pytest.param(col("계약").min("a"), "expression-type", "isin", id="the smaller of two texts"),
        pytest.param(col("joined").category(), "expression-type", ".month()", id="a date as category"),
        pytest.param(col("계약"), "features-type", "add .category()", id="text without category"),
        pytest.param(col("joined"), "features-type", ".year()", id="a date without a part"),
        pytest.param(lit(3) + 4, "features-constant", "leave it out", id="a constant"),
        pytest.param((col("churn") == "Yes") & col("partner"), "features-target", "leave the target out", id="the target"),
    ],
)
def test_check_features_refuses_with_line_and_fix(expression, code, fix):
    """The error stands at the operator that does not fit, and says what does."""
    with pytest.raises(SpecError) as caught:
        check_features({"f": expression}, SCHEMA, target="churn")

    assert code == caught.value.code
    assert fix in caught.value.fix
    assert caught.value.where.startswith(__file__)


@pytest.mark.parametrize(
    ("features", "code"),
    [
        pytest.param({}, "features-empty", id="no features"),
        pytest.param({1: col("tenure")}, "features-name", id="a name that is a number"),
        pytest.param({"": col("tenure")}, "features-name", id="an empty name"),
        pytest.param({"f": "tenure"}, "features-value", id="a column's name instead of the column"),
        pytest.param({"f": 3}, "features-value", id="a number"),
    ],
)
def test_check_features_refuses_what_is_no_feature(features, code):
    """Names are texts and values are expressions."""
    with pytest.raises(SpecError) as caught:
        check_features(features, SCHEMA)

    assert code == caught.value.code


def test_a_plain_function_is_refused_with_its_line():
    """Plain Python cannot be carried into the graph: the function's own line is named."""

    def score(row):
        return row["tenure"]

    with pytest.raises(SpecError) as caught:
        check_features({"f": score}, SCHEMA)

    assert caught.value.where == f"{__file__}:{score.__code__.co_firstlineno}"
    assert "source" in caught.value.fix


def test_preprocess_names_its_columns_and_survives_json():
    """One column per number and level, one for missing; `to_dict` and `from_dict` are inverse."""
    preprocess = Preprocess((NumericFeature("tenure", 1.5), CategoryFeature("계약", ("월", "년"), missing_level=True), NumericFeature("x")))

    assert preprocess.output_names == ("tenure", "계약=월", "계약=년", "계약 is missing", "x")
    assert preprocess == Preprocess.from_dict(preprocess.to_dict())


@pytest.mark.parametrize(
    ("build", "code"),
    [
        pytest.param(lambda: Preprocess(()), "preprocess-features", id="no features"),
        pytest.param(lambda: Preprocess((NumericFeature("a"), NumericFeature("a"))), "preprocess-features", id="a name twice"),
        pytest.param(lambda: CategoryFeature("a", ("x", "x")), "preprocess-levels", id="a level twice"),
        pytest.param(lambda: CategoryFeature("a", ()), "preprocess-levels", id="no levels"),
        pytest.param(lambda: Preprocess((NumericFeature("a", float("nan")),)), "preprocess-fill", id="a fill that is missing"),
        pytest.param(lambda: Preprocess((NumericFeature("a", 1e39),)), "preprocess-fill", id="a fill beyond float32"),
        pytest.param(lambda: Preprocess.from_dict({"version": 2, "features": []}), "preprocess-unreadable", id="another version"),
        pytest.param(lambda: Preprocess.from_dict({"version": 1}), "preprocess-unreadable", id="a field missing"),
        pytest.param(lambda: level_number("a", "월"), "preprocess-levels", id="a level of a number that is none"),
    ],
)
def test_preprocess_refuses_what_cannot_be_a_matrix(build, code):
    """Bad preprocessing never reaches a graph."""
    with pytest.raises(SpecError) as caught:
        build()

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("value", "level"),
    [(3.0, "3"), (-0.0, "0"), (2.5, "2.5"), (1e20, "1e+20"), (0.1, "0.1")],
    ids=["whole", "minus zero is zero", "fraction", "large", "shortest form that reads back"],
)
def test_numbers_as_levels_read_back(value, level):
    """A level of a number category is its shortest exact text."""
    assert level == number_level(value)
    assert value == level_number("f", level)
