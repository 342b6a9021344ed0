"""Whatever the rows are: the baseline is sound, comes back equal, and finds nothing wrong with its own rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.formats.baseline import decode_baseline
from mulle.monitor.baseline import build_baseline
from mulle.monitor.check import check_window
from mulle.monitor.report import render_report
from mulle.monitor.result import DriftSettings

NUMBERS = st.floats() | st.integers(-4, 4).map(float) | st.just(float("nan"))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["월", "연", MISSING_TEXT])
SCHEMA = Schema(
    (
        Column("수", ColumnType.NUMBER),
        Column("때", ColumnType.DATETIME),
        Column("참", ColumnType.BOOLEAN),
        Column("글", ColumnType.TEXT),
    )
)


@st.composite
def tables(draw):
    """Return one row or more of every type."""
    n = draw(st.integers(1, 50))

    def column(values, dtype):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype=dtype)

    return {
        "수": column(NUMBERS, np.float64),
        "때": column(NUMBERS, np.float64),
        "참": column(st.sampled_from([0.0, 1.0, float("nan")]), np.float64),
        "글": column(TEXTS, object),
    }


@given(tables())
def test_any_rows_give_a_sound_document(rows):
    """The reader, which checks every count, accepts what the builder writes, and reads it back equal."""
    baseline = build_baseline(rows, SCHEMA)

    assert decode_baseline(baseline.to_bytes()) == baseline
    assert all(p.n + p.n_missing == baseline.n_rows for p in baseline)


@given(tables())
def test_a_baseline_finds_nothing_in_its_own_rows(rows):
    """The rows a baseline was made of never drift from it."""
    report = check_window(build_baseline(rows, SCHEMA), rows, settings=DriftSettings(min_rows=1))

    assert (report.verdict, report.drifted) == ("ok", ())
    assert not any(column.anomalies for column in report.columns)


@given(tables(), tables())
def test_any_window_is_judged_without_a_crash_and_drawn_as_text(reference, window):
    """Every p-value is a probability, every order is by alarm first, and the page and the JSON can be written."""
    report = check_window(build_baseline(reference, SCHEMA), window, settings=DriftSettings(min_rows=1))
    tests = [test for column in report.columns for test in column.tests]

    assert all(0 <= test.p_value <= test.p_adjusted + 1e-12 <= 1 + 1e-9 for test in tests)
    assert [column.drifted for column in report.columns] == sorted((column.drifted for column in report.columns), reverse=True)
    assert render_report(report).encode("utf-8")
