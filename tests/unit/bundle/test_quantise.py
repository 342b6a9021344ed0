"""INT8 variants: where there are matrix products, and a reason where there are none."""

import warnings

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier

from mulle.bundle.convert import estimator_to_onnx
from mulle.bundle.onnx_file import quiet_session
from mulle.bundle.quantise import quantise_int8
from mulle.core.errors import SpecError


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 16)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def test_a_perceptron_becomes_smaller_and_says_nearly_the_same():
    """Weights of one byte each, probabilities within a few hundredths."""
    x, y = _data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = estimator_to_onnx(MLPClassifier((128, 64), max_iter=30, random_state=0).fit(x, y), 16, "binary")
    variant = quantise_int8(model)

    assert variant.graph is not None
    assert variant.size_bytes == len(variant.graph) < 0.5 * len(model)
    plain, small = (quiet_session(m).run(None, {"features": x})[0] for m in (model, variant.graph))
    assert np.abs(plain - small).max() < 0.05


def test_trees_have_nothing_to_quantise():
    """A forest multiplies no matrices."""
    x, y = _data()
    variant = quantise_int8(estimator_to_onnx(RandomForestClassifier(3).fit(x, y), 16, "binary"))

    assert (variant.graph, variant.reason, variant.size_bytes) == (None, "no matrix products to quantise", 0)


def test_bytes_that_are_no_model_are_refused():
    """A pickle is called one."""
    with pytest.raises(SpecError) as caught:
        quantise_int8(b"\x80\x04K\x01.")

    assert caught.value.code == "onnx-is-pickle"
