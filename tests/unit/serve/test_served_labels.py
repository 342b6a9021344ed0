"""Which class a row is given: the same for few rows, worked out in Python, as for many, worked out in arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.serve.plane.served import Served


def labels(positive, threshold, scores):
    """Return both ways' answers."""
    served = SimpleNamespace(_positive=positive, _threshold=np.float64(threshold))
    return Served.few_labels(served, scores.tolist()), Served.label_indices(served, scores).tolist()


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_most_probable_class_wins_and_of_equals_the_first(rows):
    """Three classes, ties among them."""
    few, many = labels(-1, 0.5, np.array(rows, dtype=np.float32))

    assert many == few


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.30000001192092896, 0.7], ids=repr)
@given(p=st.floats(0, 1, width=32))
def test_the_threshold_decides_in_double_precision(threshold, p):
    """A score that lies on the threshold belongs to the positive class, whichever way it is compared."""
    few, many = labels(1, threshold, np.array([[1 - p, p]], dtype=np.float32))

    assert many == few
    assert [int(float(np.float32(p)) >= threshold)] == few
