"""Which side a row is on, and what leaks between the sides."""

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.core.errors import CheckError, SpecError
from mulle.data.leaks import check_leaks, require_no_leaks
from mulle.data.split import HOLDOUT, TRAIN, assign_split, hash_unit, row_contents

START = datetime(2024, 1, 1)  # noqa: DTZ001 - naive is UTC in tables


def entities(n):
    """Return a table of `n` customers."""
    return pl.DataFrame({"고객": [f"C-{i:04d}" for i in range(n)], "x": list(range(n))})


@pytest.mark.parametrize(
    ("value", "salt", "expected"),
    [
        pytest.param("C-0001", "mulle", "0.430618246500", id="a text"),
        pytest.param("고객", "mulle", "0.265672156641", id="a Korean text"),
        pytest.param(7, "mulle", "0.816201913204", id="a number"),
        pytest.param("C-0001", "s" * 100, "0.661314746983", id="a salt longer than the hash's key"),
    ],
)
def test_the_hash_is_pinned(value, salt, expected):
    """Another platform or release must not move customers to the other side."""
    (content,) = row_contents(pl.DataFrame({"k": [value]}), ["k"])

    assert expected == f"{hash_unit(content, salt):.12f}"


def test_a_side_depends_on_the_entity_alone():
    """Not on other rows, on their order, on types of storage or on other columns."""
    frame = entities(2000)
    sides = dict(zip(frame["고객"], assign_split(frame, by="hash", entity="고객"), strict=True))
    part = frame.reverse()[::3].with_columns(pl.col("고객").cast(pl.Categorical), z=pl.lit(1))
    again = dict(zip(part["고객"], assign_split(part, by="hash", entity="고객"), strict=True))

    assert {name: sides[name] for name in again} == again


def test_whole_and_real_numbers_are_one_entity():
    """An id column that became float, because one value was missing once, keeps its sides."""
    whole = pl.DataFrame({"id": list(range(500))})

    assert assign_split(whole, by="hash", entity="id").equals(assign_split(whole.cast(pl.Float64), by="hash", entity="id"))


def test_the_share_is_met_on_average_and_the_salt_matters():
    """Over 20,000 customers the share is within four standard errors."""
    frame = entities(20_000)
    first, second = (assign_split(frame, by="hash", entity="고객", holdout_share=0.3, salt=salt) for salt in ("a", "b"))

    assert abs((first == HOLDOUT).mean() - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    assert 0.35 < (first != second).mean() < 0.5


def test_without_an_entity_equal_rows_stay_together_whatever_their_label():
    """The target is left out of what is hashed."""
    frame = pl.DataFrame({"x": [i % 50 for i in range(400)], "이름": ["가"] * 400, "y": [i % 2 for i in range(400)]})
    sides = frame.with_columns(side=assign_split(frame, by="hash", target="y"))

    assert sides.group_by("x").agg(pl.col("side").n_unique())["side"].max() == 1


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.05, 0.95))
@settings(max_examples=150)
def test_by_time_the_past_teaches_and_the_future_judges(days, share):
    """Every training moment is before every held-back one; no other cut comes nearer to the share."""
    frame = pl.DataFrame({"t": [START + timedelta(days=d) for d in days]})
    if len(set(days)) == 1:
        with pytest.raises(SpecError):
            assign_split(frame, by="time", time="t", holdout_share=share)
        return
    sides = assign_split(frame, by="time", time="t", holdout_share=share)
    train, held = frame.filter(sides == TRAIN)["t"], frame.filter(sides == HOLDOUT)["t"]
    possible = [sum(d >= cut for d in days) for cut in set(days) if cut != min(days)]

    assert train.max() < held.min()
    assert abs(len(held) - share * len(days)) == min(abs(n - share * len(days)) for n in possible)


@pytest.mark.parametrize(
    ("frame", "options", "code"),
    [
        pytest.param(entities(9), {"by": "hash", "entity": "id"}, "split-column", id="an entity column that is not there"),
        pytest.param(pl.DataFrame({"id": ["a", None]}), {"by": "hash", "entity": "id"}, "split-column", id="a row about nobody"),
        pytest.param(entities(9), {"by": "time"}, "split-time", id="no time column"),
        pytest.param(entities(9), {"by": "time", "time": "x"}, "split-time", id="a time column of numbers"),
        pytest.param(entities(9), {"by": "hash", "holdout_share": 1.0}, "split-share", id="everything held back"),
        pytest.param(entities(1), {"by": "hash", "entity": "고객"}, "split-side-empty", id="one row"),
        pytest.param(entities(0), {"by": "hash", "entity": "고객"}, "split-side-empty", id="no rows"),
        pytest.param(pl.DataFrame({"t": [START] * 9}), {"by": "time", "time": "t"}, "split-side-empty", id="one moment only"),
    ],
)
def test_a_split_that_cannot_be_is_refused(frame, options, code):
    """Each with its own error; no side is ever silently empty."""
    with pytest.raises(SpecError) as caught:
        assign_split(frame, **options)

    assert code == caught.value.code


def sides_of(n_train, n_holdout):
    """Return a series of sides."""
    return pl.Series([TRAIN] * n_train + [HOLDOUT] * n_holdout)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"by": "hash"}, [("entity", "fail")], id="by hash an entity on both sides is a leak"),
        pytest.param({"by": "time"}, [("entity", "warn")], id="by time it is usual, and told"),
        pytest.param({"by": "time", "entity_policy": "allow"}, [], id="unless it is allowed"),
        pytest.param({"by": "time", "entity_policy": "fail"}, [("entity", "fail")], id="or forbidden"),
    ],
)
def test_an_entity_on_both_sides(options, expected):
    """What it means depends on how the table was split."""
    frame = pl.DataFrame({"id": ["a", "b", "c", "a"], "x": [1, 2, 3, 4]})
    report = check_leaks(frame, sides_of(3, 1), entity="id", **options)

    assert expected == [(leak.kind, leak.severity) for leak in report.leaks]
    assert report.ok == all(severity != "fail" for _, severity in expected)


def test_training_rows_from_the_future_are_a_leak():
    """A row at the holdout's first moment is one already."""
    frame = pl.DataFrame({"t": [START, START + timedelta(2), START + timedelta(2), START + timedelta(3)]})
    report = check_leaks(frame, sides_of(2, 2), by="time", time="t")

    assert [(leak.kind, leak.n) for leak in report.leaks] == [("future", 1)]
    with pytest.raises(CheckError) as caught:
        require_no_leaks(report)
    assert caught.value.code == "split-leak"


def test_equal_features_on_both_sides_are_counted():
    """Missing equals missing here; target, entity and time do not count."""
    frame = pl.DataFrame({"id": ["a", "b", "c", "d"], "x": [1.0, None, None, 2.0], "y": [0, 1, 0, 1]})
    report = check_leaks(frame, sides_of(2, 2), entity="id", target="y")

    assert [(leak.kind, leak.severity, leak.n) for leak in report.leaks] == [("duplicate", "warn", 1)]
    assert report.ok


LABELS = ["yes", "no", "no"] * 40


@pytest.mark.parametrize(
    ("column", "suspected"),
    [
        pytest.param([2.0 if y == "yes" else 1.0 for y in LABELS], True, id="a number that is the label"),
        pytest.param([y.upper() for y in LABELS], True, id="a text that is the label"),
        pytest.param([1.0 if y == "yes" else None for y in LABELS], True, id="only whether it is missing tells"),
        pytest.param([i % 7 for i in range(120)], False, id="a number that has nothing to do with it"),
        pytest.param([f"C-{i}" for i in range(120)], False, id="a name per row"),
        pytest.param(["a", "b"] * 60, False, id="a text that has nothing to do with it"),
    ],
)
def test_a_column_that_knows_the_answer_is_suspected(column, suspected):
    """A warning: it may be known when the prediction is made."""
    report = check_leaks(pl.DataFrame({"c": column, "y": LABELS}), sides_of(100, 20), target="y")

    assert suspected == ("target" in [leak.kind for leak in report.leaks])
    assert report.ok


def test_regression_is_judged_by_rank():
    """The logarithm of the target is the target."""
    y = [float(i) for i in range(1, 121)]
    frame = pl.DataFrame({"log": pl.Series(y).log(), "other": [i * 37 % 120 for i in range(120)], "y": y})
    report = check_leaks(frame, sides_of(100, 20), target="y", task="regression")

    assert [leak.message.split("'")[1] for leak in report.leaks] == ["log"]


def test_the_report_can_be_read():
    """Sizes, shares, warnings and fixes."""
    frame = pl.DataFrame({"c": LABELS, "y": LABELS})
    text = check_leaks(frame, sides_of(90, 30), target="y").render_text()

    assert text.startswith("split: 90 rows to learn from, 30 held back (25.0%)")
    assert "warning: 'c' tells 'y'" in text


def test_sides_must_fit_the_table():
    """A series of another length is a mistake of the caller."""
    with pytest.raises(SpecError) as caught:
        check_leaks(entities(3), sides_of(1, 1))

    assert caught.value.code == "split-sides"
