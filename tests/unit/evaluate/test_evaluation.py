# pyright: basic
"""The evaluation as a whole: on a small model written by hand, with Korean names, and on everything bad."""

import time

import numpy as np
import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import MISSING_TEXT
from mulle.evaluate.evaluation import ChampionInfo, Options, evaluate_graph
from mulle.evaluate.folds import k_fold, summarise_folds
from mulle.evaluate.report import render_report
from mulle.evaluate.result import evaluation_from_bytes
from mulle.release.gate import decide_gates
from mulle.release.gate_types import BoundGate, ChampionGate, FairnessGate, LatencyGate, SizeGate
from mulle.stats.measure import Problem
from mulle.stats.metrics import MetricUndefinedError

FEW = Options(n_resamples=200, importance_repeats=3, latency_samples=40)


def table(n=400, seed=0):
    """Return raw columns and labels: 나이 decides, 지역 does not, 소득 has gaps."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, n)
    income = rng.normal(300, 50, n)
    income[::17] = np.nan
    region = rng.choice(np.array(["서울", "부산", MISSING_TEXT], dtype=object), n, p=[0.6, 0.35, 0.05])
    y = np.where(age + rng.normal(0, 5, n) > 42, "떠남", "남음").astype(object)
    return {"나이": age, "소득": income, "지역": region}, y


def logistic(slope=0.3, middle=42.0):
    def score(arrays):
        p = 1 / (1 + np.exp(-slope * (arrays["나이"] - middle)))
        return np.c_[1 - p, p].astype(np.float32)

    return score


def evaluate(score=None, arrays=None, y=None, **more):
    known, truth = table()
    options = {"task": "binary", "classes": ("남음", "떠남"), "positive": "떠남", "rng": np.random.default_rng(0), "options": FEW}
    return evaluate_graph(score or logistic(), known if arrays is None else arrays, truth if y is None else y, **{**options, **more})


@pytest.fixture(scope="module")
def full():
    """Return an evaluation with every part: champion, slices, folds, size."""
    told = []
    result = evaluate(
        slices=["지역", "소득"],
        champion_score=logistic(0.1, 45.0),
        champion=ChampionInfo("version 3"),
        folds=[{"roc_auc": 0.8}, {"roc_auc": 0.9}],
        size_bytes=1234,
        progress=told.append,
    )
    assert "scoring" in told
    return result


def test_every_metric_has_an_interval_around_it(full):
    """Low <= value <= high, and the standard error is positive."""
    assert all(m.low <= m.value <= m.high and m.se > 0 for m in full.metrics.values())
    assert {"roc_auc", "pr_auc", "accuracy", "precision", "recall", "f1", "log_loss", "calibration_error"} <= set(full.metrics)


def test_importance_finds_the_column_that_decides(full):
    """Only 나이 is used: it leads, the others lose exactly nothing."""
    assert "나이" == full.importance[0].column
    assert full.importance[0].mean > 0.2
    assert {0.0} == {i.mean for i in full.importance[1:]}


def test_slices_cut_text_by_value_and_numbers_by_quarter(full):
    """Every row is in one slice per column; missing values are a slice of their own; few rows are flagged."""
    by_column = {c: [s for s in full.slices if s.column == c] for c in ("지역", "소득")}

    assert ["서울", "부산", "(missing)"] == [s.value for s in by_column["지역"]]
    assert 5 == len(by_column["소득"])
    assert [400, 400] == [sum(s.n for s in part) for part in by_column.values()]
    assert all(s.small == (s.n < 30) for s in full.slices)


def test_the_champion_is_compared_on_the_same_rows(full):
    """The same ordering of rows has the same area, with no standard error; accuracy differs."""
    d = full.comparison.metrics["roc_auc"]

    assert (0.0, 0.0) == (d.difference, d.se)
    assert full.comparison.metrics["log_loss"].difference < 0
    assert (400, "version 3", 1.0) == (full.comparison.n, full.comparison.champion, full.comparison.delong.p_value)


def test_gates_read_the_evaluation(full):
    """Every kind of gate finds its figures."""
    gates = [
        BoundGate("roc_auc", "min", 0.8),
        ChampionGate("roc_auc"),
        FairnessGate("지역", 0.5, min_rows=5),
        LatencyGate("p99", 1000.0),
        SizeGate(2000),
    ]
    verdict = decide_gates(gates, full.measured(), full.differences(), champion="version 3")

    assert {r.name: "pass" for r in verdict.results} == {r.name: r.outcome for r in verdict.results}


def test_the_document_is_read_back_as_it_was_and_others_are_refused(full):
    """JSON and back is the same; a newer version is refused."""
    data = full.to_bytes()

    assert full == evaluation_from_bytes(data, where="evaluation.json")
    with pytest.raises(CheckError) as caught:
        evaluation_from_bytes(data.replace(b'"version": 1', b'"version": 2', 1), where="evaluation.json")
    assert "format-unknown" == caught.value.code


def test_the_same_seed_gives_the_same_figures(full):
    """Everything but the clock repeats under one seed."""
    again = evaluate(slices=["지역", "소득"])

    assert (full.metrics, full.slices, full.worst) == (again.metrics, again.slices, again.worst)


def test_rows_without_a_target_are_dropped_and_counted():
    """None, the missing marker and NaN are no targets; the others are measured, and worst rows keep their places."""
    arrays, y = table()
    y[:3], y[3] = None, MISSING_TEXT
    found = evaluate(arrays=arrays, y=y)

    assert (396, 4) == (found.n, found.n_missing_target)
    assert all(w.row >= 4 for w in found.worst)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        pytest.param([0.0, 1.0], ("0", "1"), id="numbers as a table holds them"),
        pytest.param([0.0, 1.0], ("false", "true"), id="booleans travel as 0 and 1"),
        pytest.param([0, 1], ("남음", "떠남"), id="integers are class numbers"),
        pytest.param(["No", "Yes"], ("No", "Yes"), id="texts as they stand"),
    ],
)
def test_labels_are_found_among_the_classes(labels, classes):
    """Every usual way to write a label finds its class: the area is the same."""
    arrays, y = table()
    coded = np.array(labels, dtype=object if isinstance(labels[0], str) else None)[(y == "떠남").astype(int)]

    assert (
        evaluate().metrics["roc_auc"].value
        == evaluate(arrays=arrays, y=coded, classes=classes, positive=classes[1]).metrics["roc_auc"].value
    )


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        pytest.param({"y": np.array(["떠남"] * 400, dtype=object)}, MetricUndefinedError, "metric-one-class", id="one class only"),
        pytest.param({"y": np.array([None] * 400, dtype=object)}, MetricUndefinedError, "metric-empty", id="no target at all"),
        pytest.param(
            {"y": np.array(["이사"] * 400, dtype=object)}, SpecError, "evaluate-unknown-class", id="a label the model does not know"
        ),
        pytest.param(
            {"y": np.array(["떠남"] * 3, dtype=object)}, SpecError, "evaluate-shape", id="columns and target of different lengths"
        ),
        pytest.param({"arrays": {}}, SpecError, "evaluate-shape", id="no columns"),
        pytest.param({"slices": ["없음"]}, SpecError, "evaluate-slice", id="a slice column that is not there"),
        pytest.param({"threshold": 1.5}, SpecError, "evaluate-threshold", id="a threshold that is no probability"),
        pytest.param({"classes": ("a", "b", "c")}, SpecError, "evaluate-classes", id="three classes for a binary task"),
        pytest.param({"score": lambda a: np.zeros((len(a["나이"]), 3))}, SpecError, "evaluate-scores", id="an output of another width"),
        pytest.param(
            {"score": lambda a: np.full((len(a["나이"]), 2), 7.0)}, SpecError, "evaluate-scores", id="margins instead of probabilities"
        ),
        pytest.param(
            {"score": lambda a: np.full((len(a["나이"]), 2), np.nan)}, MetricUndefinedError, "metric-not-finite", id="NaN answers"
        ),
        pytest.param(
            {"champion_score": logistic(), "champion": ChampionInfo(classes=("x", "y"))},
            SpecError,
            "evaluate-champion-classes",
            id="a champion of other classes",
        ),
    ],
)
def test_bad_input_is_a_clear_error(change, kind, code):
    """Each bad input has its own code, and no number comes back."""
    with pytest.raises(kind) as caught:
        evaluate(**change)

    assert code == caught.value.code


def test_a_champion_with_its_classes_turned_round_is_compared_by_name():
    """The order of a champion's outputs does not matter, its names do."""

    def turned(arrays):
        return logistic()(arrays)[:, ::-1]

    found = evaluate(champion_score=turned, champion=ChampionInfo(classes=("떠남", "남음")))

    assert {0.0} == {d.difference for d in found.comparison.metrics.values()}


def test_regression_is_evaluated_with_its_own_metrics_and_report():
    """RMSE, MAE and R² with intervals; the report draws errors, not classes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    found = evaluate_graph(
        lambda a: 2 * a["x"][:, None],
        {"x": x, "flag": (x > 0).astype(float)},
        2 * x + rng.normal(size=300),
        task="regression",
        rng=rng,
        slices=["flag"],
        champion_score=lambda a: a["x"][:, None],
        options=FEW,
    )
    page = render_report(found, title="수요", lineage={})

    assert {"rmse", "mae", "mape", "r2"} == set(found.metrics)
    assert found.comparison.metrics["rmse"].difference < 0
    assert "How errors are spread" in page


def test_many_classes_are_evaluated_and_drawn():
    """Five classes: areas one against the rest, a confusion matrix of five, top-label calibration."""
    rng = np.random.default_rng(2)
    labels = np.array([f"종류 {i}" for i in range(5)], dtype=object)
    y = rng.integers(5, size=400)
    signal = np.eye(5)[y] + rng.random((400, 5))

    def score(arrays):
        s = np.stack([arrays[f"s{i}"] for i in range(5)], axis=1)
        return s / s.sum(axis=1, keepdims=True)

    found = evaluate_graph(
        score, {f"s{i}": signal[:, i] for i in range(5)}, labels[y], task="multiclass", classes=tuple(labels), rng=rng, options=FEW
    )

    assert (5, 400) == (len(found.confusion), sum(map(sum, found.confusion)))
    assert "종류 4" in render_report(found, title="종류", lineage={})


def test_folds_are_scored_by_the_callers_own_fitting():
    """Each row is tested once; the summary has mean and standard deviation."""
    _, y = table()
    coded = (y == "떠남").astype(np.int64)
    tested = []

    def fit_and_score(train, test):
        tested.extend(test.tolist())
        return np.full((len(test), 2), 0.5) + np.array([-0.1, 0.1]) * coded[test][:, None]

    folds = k_fold(fit_and_score, coded, 4, np.random.default_rng(0), problem=Problem("binary"))

    assert list(range(400)) == sorted(tested)
    assert (1.0, 0.0) == (summarise_folds(folds)["roc_auc"].mean, summarise_folds(folds)["roc_auc"].sd)


def test_fifteen_hundred_rows_and_twenty_columns_take_seconds():
    """The whole evaluation with its defaults stays under 10 s."""
    rng = np.random.default_rng(0)
    arrays, y = table(1500)
    arrays |= {f"x{i}": rng.normal(size=1500) for i in range(17)}
    start = time.perf_counter()
    evaluate(arrays=arrays, y=y, options=None, slices=["지역", "소득"], champion_score=logistic(0.1))

    assert time.perf_counter() - start < 10


def test_the_report_is_one_safe_small_file(full):
    """No script, no request, hostile names escaped, Korean kept, under 300 KB."""
    verdict = decide_gates([BoundGate("f1", "min", 0.99)], full.measured(), None)
    page = render_report(full, title="<script>alert(1)</script> 이탈", lineage={"run": '"><img src=x>', "\ud800": "\x00"}, verdict=verdict)

    assert "<script" not in page
    assert "<img" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert all(word in page for word in ("이탈", "지역", "서울", "version 3", "f1.min", "Content-Security-Policy"))
    assert len(page.encode("utf-8")) < 300 * 1024
