"""The feedback log: kept before it is acknowledged, joined exactly once."""

import os

import numpy as np
import pytest

from mulle.core.errors import SpecError
from mulle.core.schema import ColumnType
from mulle.formats.feedback_log import FeedbackItem, FeedbackWriter, canonical_label, join_feedback, read_feedback, require_prediction_id
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source, read_predictions

SOURCE = Source(
    source=0,
    revision=1,
    model="m",
    model_version=1,
    bundle_digest="d" * 64,
    task="binary",
    classes=("No", "Yes"),
    columns=(LoggedColumn("x", ColumnType.NUMBER),),
)


def predictions(root, ids):
    """Return a logged window whose rows have these ids."""
    writer = LogWriter(root, "churn")
    for i, prediction_id in enumerate(ids):
        writer.append(
            PredictionBatch(
                source=SOURCE,
                time_ns=i,
                latency_us=1,
                arrays={"x": np.array([float(i)])},
                outputs=np.array([[0.5, 0.5]], np.float32),
                first=0,
                ids=[prediction_id],
            )
        )
    writer.close(len(ids))
    return read_predictions(root, "churn")


def keep(root, *items):
    writer = FeedbackWriter(root, "churn")
    for i, item in enumerate(items):
        writer.append([FeedbackItem(*item, time_ns=i)])
    writer.close()
    return read_feedback(root, "churn")


def test_feedback_comes_back_in_order(tmp_path):
    """What was kept is read as it was, across files."""
    writer = FeedbackWriter(tmp_path, "churn", max_segment_bytes=1)
    items = [FeedbackItem(f"p{i}", "label", "네", i, known=i % 2 == 0) for i in range(3)]
    for item in items:
        writer.append([item])
    writer.close()
    table = read_feedback(tmp_path, "churn")

    assert tuple(items) == table.items
    assert (1, 2) == (len(read_feedback(tmp_path, "churn", until_ns=1)), len(read_feedback(tmp_path, "churn", since_ns=1)))


def test_each_prediction_is_joined_once_with_the_last_word(tmp_path):
    """Repetition is harmless, a correction replaces, a stranger waits, another kind does not count."""
    table = predictions(tmp_path, ["a", "b", "c", "a"])
    feedback = keep(tmp_path, ("a", "label", "No"), ("a", "label", "No"), ("a", "label", "Yes"), ("c", "reward", 1.0), ("z", "label", "No"))
    joined = join_feedback(table, feedback)

    assert ([0], ["Yes"]) == (joined.rows.tolist(), joined.values.tolist())
    assert (1, 2, 1) == (joined.n_unmatched, joined.n_superseded, joined.n_duplicate_predictions)


def test_values_and_rewards_are_numbers(tmp_path):
    """Only labels are text."""
    table = predictions(tmp_path, ["a", "b"])
    feedback = keep(tmp_path, ("b", "value", 2.5), ("a", "reward", 1.0))

    assert ([1], [2.5], np.float64) == (
        (found := join_feedback(table, feedback, kind="value")).rows.tolist(),
        found.values.tolist(),
        found.values.dtype,
    )


def test_a_torn_tail_is_counted(tmp_path):
    """Half a frame at the end was never acknowledged: it is left out and said."""
    keep(tmp_path, ("a", "label", "No"), ("b", "label", "No"))
    (path,) = (tmp_path / "churn").glob("feedback-*.mseg")
    os.truncate(path, path.stat().st_size - 3)
    table = read_feedback(tmp_path, "churn")

    assert (1, 1) == (len(table), table.damage.torn_tails)


@pytest.mark.parametrize(
    ("value", "classes", "expected"),
    [
        pytest.param("Yes", ("No", "Yes"), "Yes", id="text as it is"),
        pytest.param(True, ("false", "true"), "true", id="true as polars spells it"),
        pytest.param(True, ("False", "True"), "True", id="true as Python spells it"),
        pytest.param(False, ("0", "1"), "0", id="false among numbers"),
        pytest.param(1, ("0", "1"), "1", id="a whole number"),
        pytest.param(1, ("0.0", "1.0"), "1.0", id="a whole number among floats"),
        pytest.param(2.0, ("1", "2"), "2", id="a float that is whole"),
        pytest.param("anything", (), "anything", id="no classes known: any text"),
    ],
)
def test_a_label_names_its_class(value, classes, expected):
    """JSON has more types than a class list; each finds its spelling."""
    assert expected == canonical_label(value, classes)


@pytest.mark.parametrize("value", ["yes", 3, None, [1], float("nan"), 10**400], ids=repr)
def test_a_label_that_is_no_class_is_refused(value):
    """A typo must not become a new class."""
    with pytest.raises(SpecError) as caught:
        canonical_label(value, ("No", "Yes"))

    assert "feedback-bad-label" == caught.value.code


@pytest.mark.parametrize("text", ["", "a b", "가", "x" * 129, 'a"b', "a,b", "a\nb", 5, None], ids=repr)
def test_an_unusable_id_is_refused(text):
    """Ids go into headers, files and commands: visible ASCII, bounded."""
    with pytest.raises(SpecError) as caught:
        require_prediction_id(text)

    assert "prediction-id-invalid" == caught.value.code
