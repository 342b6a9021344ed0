"""The baseline document: what it says comes back, and what contradicts itself is refused by name."""

import json

import msgspec
import numpy as np
import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.formats.baseline import MAX_POINTS, Baseline, bucket_counts, decode_baseline, read_baseline
from mulle.monitor.baseline import build_baseline

SCHEMA = Schema((Column("요금", ColumnType.NUMBER), Column("계약", ColumnType.TEXT), Column("vip", ColumnType.BOOLEAN)))
ROWS = {
    "요금": np.array([1.0, 2.0, 2.0, np.nan, -np.inf, np.inf, -0.0]),
    "계약": np.array(["월", "월", "연", MISSING_TEXT, "월", "연", ""], dtype=object),
    "vip": np.array([1.0, 0.0, 0.0, np.nan, 1.0, 1.0, 1.0]),
}


def document() -> dict:
    """Return a sound baseline as JSON."""
    return json.loads(build_baseline(ROWS, SCHEMA).to_bytes())


def test_every_number_of_a_profile_is_what_counting_gives():
    """Counts below and at each value, missing and infinite ones apart; minus zero is zero."""
    number = build_baseline(ROWS, SCHEMA).columns[0]

    assert (number.n, number.n_missing, number.n_minus_inf, number.n_plus_inf, number.n_distinct) == (6, 1, 1, 1, 3)
    assert (number.points, number.below, number.at_or_below) == ((0.0, 1.0, 2.0), (1, 2, 3), (2, 3, 5))
    assert (number.minimum, number.maximum, sum(number.counts)) == (0.0, 2.0, 6)
    assert str(number.points[0]) == "0.0"


def test_categories_are_counted_and_missing_is_no_category():
    """Korean and empty texts are values; the marker of a missing text is not; booleans are false and true."""
    text, boolean = build_baseline(ROWS, SCHEMA).columns[1:]

    assert (text.counts, text.n_missing) == ({"월": 3, "연": 2, "": 1}, 1)
    assert (boolean.counts, boolean.n_missing) == ({"true": 4, "false": 2}, 1)


def test_the_document_comes_back_equal_and_the_same_rows_give_the_same_bytes():
    """Writing and reading loses nothing, and the bytes are a function of the rows."""
    baseline = build_baseline(ROWS, SCHEMA)

    assert decode_baseline(baseline.to_bytes()) == baseline
    assert build_baseline(ROWS, SCHEMA).to_bytes() == baseline.to_bytes()


def test_a_large_column_is_kept_at_bounded_size_with_exact_counts():
    """Of 50,000 values at most 2,000 points are kept, each with its exact counts."""
    values = np.random.default_rng(0).normal(size=50_000)
    profile = build_baseline({"x": values}, Schema((Column("x", ColumnType.NUMBER),))).columns[0]
    at = 1_234

    assert len(profile.points) <= MAX_POINTS
    assert profile.at_or_below[at] == (values <= profile.points[at]).sum()
    assert (profile.points[0], profile.points[-1]) == (values.min(), values.max())
    assert profile.quantile(0.5) == pytest.approx(np.median(values), abs=0.01)


def test_many_categories_keep_names_for_the_eye_and_buckets_for_the_test():
    """With more than 200 values the 200 most frequent are named and all are counted in 64 hash buckets."""
    values = np.array([f"손님{i}" for i in range(500)] * 2 + ["흔함"] * 50, dtype=object)
    profile = build_baseline({"id": values}, Schema((Column("id", ColumnType.TEXT),))).columns[0]

    assert (len(profile.counts), profile.n_distinct, profile.n_rest) == (200, 501, 1050 - 50 - 199 * 2)
    assert sum(profile.buckets) == 1050
    assert decode_baseline(build_baseline({"id": values}, Schema((Column("id", ColumnType.TEXT),))).to_bytes()).columns[0] == profile


def test_long_values_are_cut_and_counted_together():
    """Two values that agree in their first 200 characters are one category, here and in the window."""
    values = np.array(["가" * 200 + "1", "가" * 200 + "2"], dtype=object)
    profile = build_baseline({"t": values}, Schema((Column("t", ColumnType.TEXT),))).columns[0]

    assert profile.counts == {"가" * 200: 2}


def test_buckets_do_not_depend_on_the_counts():
    """A value's bucket is a function of its text alone."""
    assert bucket_counts({"a": 2, "b": 3}).tolist() == (bucket_counts({"a": 2}) + bucket_counts({"b": 3})).tolist()


def change(path: list, value: object):
    """Return a function that sets one field of a document."""

    def apply(fields: dict) -> None:
        inner = fields
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        pytest.param(change(["version"], 2), "format-unknown", id="a newer version"),
        pytest.param(change(["format"], "mulle.golden"), "format-unknown", id="another format"),
        pytest.param(change(["surprise"], 1), "format-unreadable", id="an unknown field"),
        pytest.param(change(["columns", 0, "kind"], "tensor"), "format-unreadable", id="an unknown kind of column"),
        pytest.param(change(["columns", 0, "points"], [0.0, 2.0, 1.0]), "baseline-inconsistent", id="points that do not rise"),
        pytest.param(change(["columns", 0, "points"], [0.0, 1.0]), "baseline-inconsistent", id="fewer points than counts"),
        pytest.param(change(["columns", 0, "at_or_below"], [2, 3, 99]), "baseline-inconsistent", id="more values below than there are"),
        pytest.param(change(["columns", 0, "counts"], [6]), "baseline-inconsistent", id="a histogram without its edges"),
        pytest.param(change(["columns", 0, "n"], 7), "baseline-inconsistent", id="another number of values"),
        pytest.param(change(["columns", 0, "minimum"], None), "baseline-inconsistent", id="points without a minimum"),
        pytest.param(change(["columns", 1, "counts"], {"월": 1}), "baseline-inconsistent", id="categories that do not add up"),
        pytest.param(change(["columns", 1, "buckets"], [6]), "baseline-inconsistent", id="buckets without a rest"),
        pytest.param(change(["columns", 2, "name"], "요금"), "baseline-inconsistent", id="a column twice"),
        pytest.param(change(["columns", 2, "n_missing"], -1), "baseline-inconsistent", id="a negative count"),
    ],
)
def test_what_contradicts_itself_is_refused(edit, code):
    """A document whose numbers do not fit together is refused before anything is compared with it."""
    fields = document()
    edit(fields)

    with pytest.raises(CheckError) as caught:
        decode_baseline(json.dumps(fields).encode(), where="b.json")
    assert (caught.value.code, caught.value.where) == (code, "b.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_what_is_no_document_is_refused(data):
    """Truncated, binary or foreign bytes are one clear error."""
    with pytest.raises(CheckError) as caught:
        decode_baseline(data)
    assert caught.value.code == "format-unreadable"


def test_reading_a_file(tmp_path):
    """A file reads like its bytes; a missing one is named."""
    baseline = build_baseline(ROWS, SCHEMA)
    (tmp_path / "baseline.json").write_bytes(baseline.to_bytes())

    assert read_baseline(tmp_path / "baseline.json") == baseline
    with pytest.raises(SpecError) as caught:
        read_baseline(tmp_path / "none.json")
    assert caught.value.code == "file-missing"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        pytest.param({k: v for k, v in ROWS.items() if k != "vip"}, "baseline-column", id="a column is missing"),
        pytest.param({**ROWS, "vip": np.zeros(3)}, "baseline-length", id="columns of two lengths"),
        pytest.param({k: v[:0] for k, v in ROWS.items()}, "baseline-empty", id="no row"),
    ],
)
def test_rows_that_make_no_baseline_are_refused(rows, code):
    """What cannot be profiled is an error with its own code."""
    with pytest.raises(SpecError) as caught:
        build_baseline(rows, SCHEMA)
    assert caught.value.code == code


def test_a_wide_table_keeps_fewer_points_of_each_column():
    """The document of very many columns stays bounded, and its reader takes it."""
    schema = Schema(tuple(Column(f"c{i}", ColumnType.NUMBER) for i in range(1000)))
    values = np.random.default_rng(0).normal(size=5000)
    baseline = build_baseline(dict.fromkeys(schema.names, values), schema)

    assert {len(profile.points) for profile in baseline} == {800}
    assert len(baseline.to_bytes()) < 64 << 20


def test_a_document_no_reader_would_take_is_not_written():
    """Too many bytes are refused when the bundle is sealed, not when it is to be monitored."""
    profile = msgspec.structs.replace(build_baseline(ROWS, SCHEMA).columns[1], name="가" * (22 << 20))
    huge = Baseline(n_rows=1, columns=(profile,))
    with pytest.raises(SpecError) as caught:
        huge.to_bytes()
    assert caught.value.code == "baseline-too-large"
