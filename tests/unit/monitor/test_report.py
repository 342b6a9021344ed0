"""The page, the wording, and the labels beside them."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mulle.core.schema import Column, ColumnType, Schema
from mulle.monitor.baseline import AnswerSpec, build_baseline
from mulle.monitor.check import check_window
from mulle.monitor.performance import judge_labelled, say_drop
from mulle.monitor.report import render_report
from mulle.monitor.result import Performance, WindowInfo
from mulle.monitor.wording import say_number, say_p, say_share, say_time, say_value

SCHEMA = Schema((Column("<b>요금</b>", ColumnType.NUMBER), Column("계약", ColumnType.TEXT)))


def report_on(factor: float = 1.0, **more):
    """Return a report on 500 rows whose numbers were multiplied by `factor`."""
    rng = np.random.default_rng(0)

    def rows(n):
        return {"<b>요금</b>": rng.normal(100, 10, n), "계약": rng.choice(np.array(["월", "<script>x</script>"], dtype=object), n)}

    baseline = build_baseline(rows(2000), SCHEMA)
    window = rows(500)
    window["<b>요금</b>"] *= factor
    return check_window(baseline, window, window=WindowInfo(deployment="이탈", model="이탈", model_version=2, **more))


def test_the_page_is_whole_and_asks_nobody():
    """Balanced tags, no script, no outside address, values escaped, Korean as it is."""
    page = render_report(report_on(1.3))
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in {"meta", "link", "br", "img", "hr", "input"}:
                open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balance().feed(page)

    assert open_tags == []
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "&lt;b&gt;요금&lt;/b&gt;" in page


@pytest.mark.parametrize(
    ("factor", "more", "badge", "said"),
    [
        pytest.param(1.0, {}, "ok", "Nothing in this window differs", id="healthy"),
        pytest.param(1.3, {}, "drift", "median 99.7 → 131", id="drift: the sentence stands on top"),
        pytest.param(1.3, {"gaps": ("2 torn ends of files",)}, "incomplete", "2 torn ends of files", id="incomplete: the gap"),
    ],
)
def test_the_verdict_and_its_reason_stand_on_top(factor, more, badge, said):
    """Before the first chart a reader knows the verdict and why."""
    page = render_report(report_on(factor, **more))
    top = page[: page.index("All columns</h2>")]

    assert f">{badge}</span>" in top
    assert said in top


def test_labels_stand_beside_what_was_promised():
    """The metric of the window and that of the evaluation are in one row."""
    performance = Performance(200, 500, {"accuracy": 0.7125, "roc_auc": None}, {"accuracy": 0.8})
    report = dataclasses.replace(report_on(), performance=performance)

    assert "accuracy 0.713 (evaluation 0.800), roc_auc undefined" in report.render_text()
    assert "0.7125" in render_report(report)


@pytest.mark.parametrize(
    ("say", "value", "expected"),
    [
        (say_number, 70.3512, "70.4"),
        (say_number, 1840.2, "1,840"),
        (say_number, 3.0, "3"),
        (say_number, 12345678.9, "1.235e+07"),
        (say_number, float("nan"), "none"),
        (say_number, float("-inf"), "-∞"),
        (say_share, 0.0, "0 %"),
        (say_share, 0.0004, "< 0.1 %"),
        (say_share, 0.034, "3.4 %"),
        (say_share, 0.55, "55 %"),
        (say_p, 1e-12, "p < 1e-9"),
        (say_p, 0.00012, "p = 1.2e-04"),
        (say_p, 1.0, "p = 1"),
        (say_value, "월\n", "'월\\n'"),
        (say_value, "가" * 50, f"'{'가' * 39}…'"),
        (say_time, 0.0, "1970-01-01 00:00:00Z"),
        (say_time, 1e20, "1e+20"),
    ],
)
def test_numbers_are_said_in_few_digits(say, value, expected):
    """One way to say a number, a share, a p-value, a value and a time."""
    assert say(value) == expected


CHURN = AnswerSpec("binary", ("No", "Yes"), "Yes")
STAYS = AnswerSpec("binary", ("No", "Yes"), "No")
TWO = [[0.1, 0.9], [0.8, 0.2]]


@pytest.mark.parametrize(
    ("answer", "labels", "scores", "expected"),
    [
        pytest.param(CHURN, ["Yes", "No"], TWO, {"accuracy": 1.0, "roc_auc": 1.0}, id="all right"),
        pytest.param(CHURN, ["No", "No"], TWO, {"accuracy": 0.5, "roc_auc": None}, id="one class only: ROC-AUC is undefined"),
        pytest.param(STAYS, ["Yes", "No"], TWO, {"accuracy": 1.0, "roc_auc": 1.0}, id="the positive class comes first"),
        pytest.param(AnswerSpec("regression"), [1.0, 3.0], [[1.0], [1.0]], {"rmse": 2**0.5, "mae": 1.0}, id="regression"),
    ],
)
def test_labelled_rows_are_judged(answer, labels, scores, expected):
    """The main metrics of the task on the rows with a label; what is undefined is None, not a number."""
    values = np.array(labels, dtype=np.float64 if answer.task == "regression" else object)
    found = judge_labelled(values, np.array(scores), 2, answer=answer)

    assert found.metrics == pytest.approx(expected)
    assert (found.n_labelled, found.note) == (2, "")


def test_labels_the_model_does_not_know_are_left_out_and_said():
    """An unknown class is no wrong answer; that labels are partial is said, too."""
    found = judge_labelled(np.array(["Yes", "No", "?"], dtype=object), np.array([*TWO, [0.5, 0.5]]), 10, answer=CHURN)

    assert (found.n_labelled, found.metrics["accuracy"]) == (2, 1.0)
    assert found.note.startswith("1 labels are no class of this model and were left out; labels often arrive sooner")


def test_no_labels_no_judgement():
    """Without a label there is no performance at all."""
    assert judge_labelled(np.array([], dtype=object), np.zeros((0, 2)), 10, answer=AnswerSpec("binary", ("a", "b"))) is None


@pytest.mark.parametrize(
    ("metric", "now", "promised", "said"),
    [
        pytest.param("roc_auc", 0.70, 0.84, True, id="fell by more than the bound"),
        pytest.param("roc_auc", 0.80, 0.84, False, id="fell by less"),
        pytest.param("rmse", 1.30, 1.00, True, id="an error that rose is a drop, too"),
        pytest.param("rmse", 0.50, 1.00, False, id="an error that fell is a gain"),
        pytest.param("roc_auc", None, 0.84, False, id="undefined is no drop"),
    ],
)
def test_a_drop_in_performance_is_said(metric, now, promised, said):
    """The sentence comes when the metric is worse than promised by more than the bound, whichever way is better."""
    sentence = say_drop(Performance(100, 200, {metric: now}, {metric: promised}), metric, 0.05)

    assert sentence.startswith(metric) == said


def test_more_metrics_can_be_shown():
    """A metric the operator watches stands beside the main ones."""
    found = judge_labelled(np.array(["Yes", "No"], dtype=object), np.array(TWO), 2, answer=CHURN, also=["log_loss"])

    assert list(found.metrics) == ["accuracy", "roc_auc", "log_loss"]
    assert found.metrics["log_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
