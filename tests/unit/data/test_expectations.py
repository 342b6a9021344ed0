"""What makes a table unsound, with and without the user's rules."""

from datetime import date, datetime

import pandera.polars as pandera
import polars as pl
import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.core.expect import Expect
from mulle.data.expectations import MAX_EXAMPLES, MAX_VALUE_CHARS, check_expectations, require_sound

N = 100


def table(**columns):
    """Return a sound table of 100 rows with some columns replaced or added."""
    base = {"id": [f"C-{i}" for i in range(N)], "x": [float(i) for i in range(N)], "y": ["yes", "no", "no", "no"] * (N // 4)}
    return pl.DataFrame(base | columns, strict=False)


def check(frame, record=lambda t: None, **options):
    """Return the report of a binary project."""
    t = Expect()
    record(t)
    return check_expectations(frame, t.rules, **({"target": "y", "task": "binary", "positive": "yes"} | options))


def test_a_sound_table_passes_and_says_what_was_looked_at():
    """The report has totals and label counts."""
    report = check(table(), lambda t: t.column("id").unique().not_null(), entity="id")

    assert report.ok
    assert report.warnings == ()
    assert report.label_counts == {"no": 75, "yes": 25}
    assert report.render_text().startswith("sound: 100 rows, 3 columns")
    require_sound(report)


@pytest.mark.parametrize(
    ("frame", "options", "rule"),
    [
        pytest.param(table().head(49), {}, "at least 50 rows", id="too few rows"),
        pytest.param(table().head(1), {}, "two classes", id="one row"),
        pytest.param(table().head(0), {}, "at least 50 rows", id="no rows"),
        pytest.param(table().drop("y"), {}, "target present", id="no target"),
        pytest.param(table(y=["yes", "no", None, "no"] * 25), {}, "target not missing", id="labels missing"),
        pytest.param(table(y=["no"] * N), {}, "two classes", id="one class"),
        pytest.param(table(y=["a", "b", "c", "d"] * 25), {}, "two classes", id="four classes in a binary project"),
        pytest.param(table(), {"positive": "Yes"}, "positive class", id="a positive value that never occurs"),
        pytest.param(
            pl.concat([table()] * 2)[:101].with_columns(y=pl.Series(["yes"] + ["no"] * 100)), {}, "label share", id="a class below 1 %"
        ),
        pytest.param(table(id=["a", "a", *map(str, range(98))]), {"entity": "id"}, "one row per entity", id="an entity twice"),
        pytest.param(table(id=[None, *map(str, range(99))]), {"entity": "id"}, "entity not missing", id="a row about nobody"),
        pytest.param(table(), {"entity": "ids"}, "entity present", id="no entity column"),
        pytest.param(table(), {"time": "x"}, "time is a datetime", id="a time column of numbers"),
        pytest.param(table(x=[None] * N), {}, "has values", id="an all-null column"),
        pytest.param(table(x=[1.0] * 49 + [None] * 51), {}, "mostly present", id="more than half missing"),
        pytest.param(table(x=[1.0] * 49 + [float("nan")] * 51), {}, "mostly present", id="NaN is missing, too"),
        pytest.param(table(), {"task": "regression", "positive": None}, "number target", id="regression on text"),
        pytest.param(table(), {"task": "regression", "target": "c"}, "target present", id="a target that is not there"),
        pytest.param(table(), {"task": "multiclass", "target": "id", "positive": None}, "classes repeat", id="names as classes"),
    ],
)
def test_always_on_rules_fail(frame, options, rule):
    """They hold without being asked; the failure says what to do."""
    report = check(frame, **options)

    assert rule in [failure.rule for failure in report.failures]
    assert all(failure.fix for failure in report.failures)
    with pytest.raises(CheckError) as caught:
        require_sound(report)
    assert caught.value.code == "data-unsound"


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        pytest.param(table(c=[1] * N), "varies", id="a constant column"),
        pytest.param(table(x=[float("inf")] + [float(i) for i in range(N - 1)]), "finite numbers", id="an infinite number"),
        pytest.param(pl.concat([table(), table()[:3]]), "no duplicate rows", id="rows twice"),
    ],
)
def test_always_on_rules_warn(frame, rule):
    """A warning is told and stops nothing."""
    report = check(frame)

    assert report.ok
    assert rule in [warning.rule for warning in report.warnings]


DATES = [datetime(2020, 1, 1 + i % 28) for i in range(N)]  # noqa: DTZ001 - naive is UTC in tables


@pytest.mark.parametrize(
    ("frame", "record", "n", "rows"),
    [
        pytest.param(table(), lambda t: t.column("x").between(0, 97), 2, (99, 100), id="numbers above"),
        pytest.param(table(), lambda t: t.column("x").between(2, None), 2, (1, 2), id="an open end"),
        pytest.param(table(t=DATES), lambda t: t.column("t").between(date(2020, 1, 3), None), 8, (1, 2, 29, 30, 57), id="dates before"),
        pytest.param(table(), lambda t: t.column("y").isin(["no"]), 25, (1, 5, 9, 13, 17), id="texts outside a list"),
        pytest.param(
            table(k=[2**60, 2**60 + 1] * 50), lambda t: t.column("k").isin([2**60]), 50, (2, 4, 6, 8, 10), id="large numbers, exactly"
        ),
        pytest.param(table(b=[True] * 99 + [False]), lambda t: t.column("b").isin([True]), 1, (100,), id="booleans"),
        pytest.param(table(), lambda t: t.column("id").matches(r"C-\d"), 90, (11, 12, 13, 14, 15), id="a pattern matches from end to end"),
        pytest.param(
            table(x=[1.0, 1.0, None, None, *range(10, 106)]),
            lambda t: t.column("x").unique(),
            2,
            (1, 2),
            id="missing is not a repeated value",
        ),
        pytest.param(table(x=[None, *range(99)]), lambda t: t.column("x").not_null(), 1, (1,), id="a missing value"),
        pytest.param(table(x=[None, *range(99)]), lambda t: t.column("x").between(1, 200), 1, (2,), id="missing passes a range"),
        pytest.param(
            table(**{"^.*$": [1, 2] * 50}),
            lambda t: t.column("^.*$").between(1, 1),
            50,
            (2, 4, 6, 8, 10),
            id="a name that looks like a pattern",
        ),
    ],
)
def test_the_users_rules_count_every_row(frame, record, n, rows):
    """Counts are exact, examples are few, the place is the user's line."""
    (failure,) = check(frame, record).failures

    assert (n, rows) == (failure.n_failed, failure.rows)
    assert failure.where.startswith(__file__)
    assert failure.share == n / N


@pytest.mark.parametrize(
    ("record", "said"),
    [
        pytest.param(lambda t: t.column("X").not_null(), "there is no column 'X'", id="a column that is not there"),
        pytest.param(lambda t: t.column("y").between(0, 1), "is a text, not a number", id="a range on text"),
        pytest.param(lambda t: t.column("x").isin(["a"]), "is a number, not a text", id="texts on numbers"),
        pytest.param(lambda t: t.column("x").matches("a"), "is a number, not a text", id="a pattern on numbers"),
        pytest.param(lambda t: t.column("x").type("text"), "is a number, not a text", id="another type"),
        pytest.param(lambda t: t.min_rows(1000), "at least 1,000", id="more rows wanted"),
        pytest.param(lambda t: t.label_share(0.4, 0.6), "share of 0.2500", id="another balance wanted"),
        pytest.param(lambda t: t.column("z").allow_missing(), "there is no column 'z'", id="missing values of a missing column"),
    ],
)
def test_rules_about_the_whole_column_or_table(record, said):
    """They fail with a sentence, not with an exception of the table engine."""
    (failure,) = check(table(), record).failures

    assert said in failure.message


@pytest.mark.parametrize(
    ("frame", "record"),
    [
        pytest.param(table().head(20), lambda t: t.min_rows(10), id="fewer rows allowed"),
        pytest.param(table(x=[1.0] * 20 + [None] * 80), lambda t: t.column("x").allow_missing(0.9), id="more missing allowed"),
        pytest.param(table(x=[None] * N), lambda t: t.column("x").allow_missing(), id="an empty column allowed"),
        pytest.param(table(y=["yes"] * 1 + ["no"] * 99), lambda t: t.label_share(0.005, 0.1), id="a rare class is normal"),
    ],
)
def test_defaults_can_be_replaced(frame, record):
    """What the user says is normal, is."""
    assert check(frame, record).ok


def test_duplicate_rows_fail_when_asked():
    """A warning becomes a failure by one call."""
    report = check(pl.concat([table(), table()[:3]]), lambda t: t.no_duplicate_rows())

    assert [failure.rule for failure in report.failures] == ["no duplicate rows"]


def test_the_report_is_bounded():
    """A hundred thousand huge values give five short examples."""
    n = 100_000
    frame = pl.DataFrame({"x": ["가" * 1000] * n, "y": ["yes", "no"] * (n // 2)})
    (failure,) = check(frame, lambda t: t.column("x").matches("a")).failures

    assert len(failure.examples) == MAX_EXAMPLES
    assert all(len(example) <= MAX_VALUE_CHARS for example in failure.examples)
    assert failure.n_failed == n
    assert len(check(frame, lambda t: t.column("x").matches("a")).render_text()) < 2000


def test_a_pattern_only_python_knows_is_refused_with_its_line():
    """The table engine has no look-around."""
    with pytest.raises(SpecError) as caught:
        check(table(), lambda t: t.column("id").matches("(?<=C)-.*"))

    assert caught.value.code == "expect-rule"
    assert caught.value.where.startswith(__file__)


def test_a_pandera_model_runs_as_it_is():
    """Its failures are ours, with counts, rows and the user's line."""

    class Model(pandera.DataFrameModel):
        x: float = pandera.Field(ge=3)
        z: str

    report = check(table(), lambda t: t.pandera(Model))

    assert ("x", 3, (1, 2, 3)) in [(f.column, f.n_failed, f.rows) for f in report.failures]
    assert any("'z'" in failure.message or failure.column == "z" for failure in report.failures)
    assert all(failure.where.startswith(__file__) for failure in report.failures)


def test_an_entity_may_return_at_another_moment():
    """With a time column, one row per entity and moment."""
    frame = table(id=["a", "b"] * 50, t=[DATES[i // 10] for i in range(N)])
    once = frame.unique(["id", "t"], maintain_order=True)

    assert "one row per entity" in [f.rule for f in check(frame, entity="id", time="t").failures]
    assert check(once, lambda t: t.min_rows(2), entity="id", time="t").ok
