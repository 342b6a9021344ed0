"""What one window is told: verdict, names, sentences, and what is only odd."""

import json

import numpy as np
import pytest

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.monitor.baseline import AnswerSpec, build_baseline, read_scores
from mulle.monitor.check import check_window
from mulle.monitor.result import DriftSettings, WindowInfo

SCHEMA = Schema(
    (
        Column("요금", ColumnType.NUMBER),
        Column("등급", ColumnType.NUMBER),
        Column("계약", ColumnType.TEXT),
        Column("vip", ColumnType.BOOLEAN),
        Column("가입", ColumnType.DATETIME),
    )
)
ANSWER = AnswerSpec("binary", ("No", "Yes"), "Yes")


def rows(n: int, seed: int) -> dict[str, np.ndarray]:
    """Return n healthy rows of every type, with a few missing values."""
    rng = np.random.default_rng(seed)
    fee = rng.gamma(4.0, 18.0, size=n)
    fee[rng.random(n) < 0.02] = np.nan
    contract = rng.choice(np.array(["월", "1년", "2년"], dtype=object), size=n, p=[0.55, 0.25, 0.2])
    return {
        "요금": fee,
        "등급": rng.integers(1, 6, size=n).astype(np.float64),
        "계약": contract,
        "vip": (rng.random(n) < 0.3).astype(np.float64),
        "가입": 1.6e9 + rng.random(n) * 1e8,
    }


def scores(n: int, seed: int) -> np.ndarray:
    """Return n healthy probabilities."""
    p = np.random.default_rng(seed).beta(2, 5, size=n)
    return np.stack([1 - p, p], axis=1)


BASELINE = build_baseline(rows(4000, 0), SCHEMA, scores(1000, 0), task="binary", classes=("No", "Yes"), positive="Yes")


def check(changes=None, *, n=1000, answers=None, **more):
    """Return the report on a healthy window with some columns replaced."""
    window = rows(n, 1)
    for name, change in (changes or {}).items():
        window[name] = change(window[name].copy())
    return check_window(BASELINE, window, scores(n, 1) if answers is None else answers, answer=ANSWER, **more)


def put(values, share, value):
    """Return `values` with the first share of them replaced."""
    values[: int(share * len(values))] = value
    return values


def test_a_healthy_window_is_ok_and_says_what_was_asked():
    """Nothing alarms, every column is listed, and the summary tells the size of the check."""
    report = check()

    assert report.verdict == "ok"
    assert {column.name for column in report.columns} == {*SCHEMA.names, "score", "predicted class"}
    assert report.summary == f"1,000 rows look like the reference ({report.n_tests} tests, false alarm at most 5% per check)"


@pytest.mark.parametrize(
    ("name", "change", "kind", "said"),
    [
        pytest.param("요금", lambda v: v * 1.2, "distribution", "요금: median ", id="a price rise moves the distribution"),
        pytest.param("요금", lambda v: put(v, 0.01, 1e6), "range", "(largest 1e+06)", id="absurd values, too few for KS, are out of range"),
        pytest.param("요금", lambda v: put(v, 0.02, -np.inf), "range", "smallest -∞", id="infinities are out of range"),
        pytest.param("요금", lambda v: put(v, 0.2, np.nan), "missing", "missing in 2", id="more numbers missing"),
        pytest.param("등급", lambda v: np.where(v == 1, 5, v), "distribution", "등급: 5 in 19 %", id="few different numbers: by value"),
        pytest.param("등급", lambda v: put(v, 0.02, 99), "new values", "99 in 20 rows", id="a code never seen"),
        pytest.param("계약", lambda v: put(v, 0.3, "2년"), "distribution", "'2년' in 20 %", id="a category gains rows"),
        pytest.param("계약", lambda v: put(v, 0.02, "주간"), "new values", "'주간' in 20 rows", id="a category never seen"),
        pytest.param("계약", lambda v: put(v, 0.05, MISSING_TEXT), "missing", "missing in 0 %", id="texts missing where none were"),
        pytest.param("vip", lambda v: put(v, 0.3, 1.0), "distribution", "vip: ", id="a flag set more often"),
        pytest.param("가입", lambda v: put(v, 0.05, np.nan), "missing", "가입: missing", id="missing times"),
    ],
)
def test_drift_is_found_named_and_said(name, change, kind, said):
    """The verdict is drift, the first column is the one that was changed, and its sentence names what and how much."""
    report = check({name: change})
    alarm = next(test for test in report.columns[0].tests if test.alarm and test.kind == kind)

    assert (report.verdict, report.columns[0].name) == ("drift", name)
    assert [column.name for column in report.drifted] == [name]
    assert said in alarm.sentence
    assert alarm.sentence in report.render_text()


def test_predictions_drift_even_when_no_column_does():
    """The scores are watched as a column of their own."""
    moved = np.clip(scores(1000, 1)[:, 1] + 0.15, 0, 1)
    report = check(answers=np.stack([1 - moved, moved], axis=1))

    assert {column.name for column in report.drifted} == {"score", "predicted class"}


def test_times_move_by_their_nature():
    """A window of later times is healthy; earlier ones than ever are said."""
    later, earlier = check({"가입": lambda v: v + 5e8}), check({"가입": lambda v: put(v, 0.01, 0.0)})

    assert (later.verdict, earlier.verdict) == ("ok", "ok")
    assert "10 of 1,000 times before" in next(c for c in earlier.columns if c.name == "가입").anomalies[0]


def test_one_new_value_is_odd_and_no_alarm():
    """A single unseen category, null or extreme is said, and does not decide."""
    one = {"계약": "주간", "vip": np.nan, "요금": 999.0}
    report = check({name: lambda v, value=value: put(v, 0.001, value) for name, value in one.items()})
    odd = {column.name: column.anomalies for column in report.columns if column.anomalies}

    assert report.verdict == "ok"
    assert odd == {
        "계약": ("new value '주간' in 1 row",),
        "vip": ("1 missing where the reference had none",),
        "요금": odd["요금"],
    }
    assert odd["요금"][-1].endswith("(largest 999)")


@pytest.mark.parametrize(
    ("n", "window", "verdict", "said"),
    [
        pytest.param(99, WindowInfo(), "too few rows", "99 rows in the window, 100 are needed", id="one row short"),
        pytest.param(100, WindowInfo(), "drift", "changed in 100 rows", id="just enough"),
        pytest.param(1000, WindowInfo(gaps=("3 missing frames",)), "incomplete", "3 missing frames", id="a log with a gap decides nothing"),
        pytest.param(10, WindowInfo(gaps=("3 missing frames",)), "incomplete", "3 missing frames", id="a gap is said first"),
    ],
)
def test_nothing_is_decided_on_too_little(n, window, verdict, said):
    """Below the minimum, and on an incomplete log, the figures are shown and no test alarms."""
    report = check({"요금": lambda v: v * 3}, n=n, window=window)

    assert report.verdict == verdict
    assert said in report.summary
    assert bool(report.drifted) == (verdict == "drift")


def test_a_certain_but_negligible_change_is_said_and_not_alarmed():
    """With half a million rows everything is certain; below min_effect it is no alarm."""
    rng = np.random.default_rng(0)
    schema = Schema((Column("x", ColumnType.NUMBER),))
    baseline = build_baseline({"x": rng.normal(size=500_000)}, schema)
    window = {"x": rng.normal(size=500_000) * 1.02}
    lenient, strict = check_window(baseline, window), check_window(baseline, window, settings=DriftSettings(min_effect=0.0))

    assert (lenient.verdict, strict.verdict) == ("ok", "drift")
    assert "below min_effect = 0.01: no alarm" in lenient.columns[0].sentence


def test_many_categories_are_compared_by_bucket_and_stay_healthy():
    """A text with 1,000 values: its most frequent 200 do not look changed in a healthy window."""
    rng = np.random.default_rng(5)
    schema = Schema((Column("상품", ColumnType.TEXT),))
    names = np.array([f"상품{i}" for i in range(1000)], dtype=object)
    baseline = build_baseline({"상품": rng.choice(names, 200_000)}, schema)
    healthy = check_window(baseline, {"상품": rng.choice(names, 20_000)})
    moved = check_window(baseline, {"상품": rng.choice(names[:700], 20_000)})

    assert (healthy.verdict, moved.verdict) == ("ok", "drift")


def test_a_column_absent_from_the_log_is_said():
    """What was not logged is not judged, and the report says which."""
    window = rows(500, 1)
    del window["계약"]
    report = check_window(BASELINE, window)

    assert report.verdict == "ok"
    assert report.window.notes == ("not in the log, so not judged: 계약",)


def test_an_empty_window_has_too_few_rows():
    """No row at all is not an error."""
    report = check_window(BASELINE, {name: values[:0] for name, values in rows(5, 1).items()}, scores(0, 0), answer=ANSWER)

    assert (report.verdict, report.n_rows) == ("too few rows", 0)


def test_the_json_is_strict_and_carries_its_format():
    """No NaN or infinity stands in the document, and a machine finds the drifted names."""
    report = check({"요금": lambda v: put(v, 0.05, np.inf)})
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert (document["format"], document["version"], document["drifted"]) == ("mulle.monitor-report", 1, ["요금"])


@pytest.mark.parametrize(
    ("answer", "table", "values", "labels"),
    [
        pytest.param(ANSWER, [[0.8, 0.2], [0.5, 0.5]], [0.2, 0.5], ["No", "Yes"], id="binary: the positive class's probability"),
        pytest.param(AnswerSpec("binary", ("a", "b"), "a", 0.9), [[0.8, 0.2]], [0.8], ["b"], id="binary: positive first, own threshold"),
        pytest.param(AnswerSpec("multiclass", ("a", "b", "c")), [[0.1, 0.2, 0.7]], [0.7], ["c"], id="multiclass: the chosen class"),
        pytest.param(AnswerSpec("regression"), [[3.5]], [3.5], None, id="regression: the value"),
    ],
)
def test_scores_are_read_as_the_manifest_says(answer, table, values, labels):
    """One watched number per row, and the class it stands for."""
    found, names = read_scores(np.array(table), answer)

    assert found.tolist() == pytest.approx(values)
    assert (None if names is None else names.tolist()) == labels


def test_scores_of_another_shape_are_refused():
    """Three columns for two classes are an error by name."""
    with pytest.raises(SpecError) as caught:
        read_scores(np.zeros((2, 3)), ANSWER)
    assert caught.value.code == "scores-shape"
