"""Holm and Benjamini-Hochberg: by hand, against scipy, and their promises by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mulle.core.errors import SpecError
from mulle.stats.multiplicity import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0, 1), max_size=20)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        pytest.param([], [], id="no tests, no values"),
        pytest.param([0.04], [0.04], id="one test stays as it is"),
        pytest.param([0.01, 0.04, 0.03], [0.03, 0.06, 0.06], id="the step that would fall is held at the one before"),
        pytest.param([0.5, 0.9], [1.0, 1.0], id="never above one"),
        pytest.param([0.0, 1.0], [0.0, 1.0], id="the ends stay"),
    ],
)
def test_holm_by_hand(p_values, expected):
    """Adjusted values are the sorted ones times what is left of the family, never falling."""
    assert holm(p_values).tolist() == pytest.approx(expected)


@given(P_VALUES)
def test_benjamini_hochberg_is_scipys(p_values):
    """The adjusted values are those of scipy."""
    expected = stats.false_discovery_control(p_values) if p_values else []

    assert benjamini_hochberg(p_values).tolist() == pytest.approx(list(expected))


@given(P_VALUES, st.randoms())
def test_adjusting_keeps_order_bounds_and_does_not_see_the_arrangement(p_values, random):
    """P <= BH <= Holm <= min(1, k p); sorting the input sorts the output."""
    p = np.array(p_values)
    adjusted, rate = holm(p), benjamini_hochberg(p)
    order = list(range(len(p)))
    random.shuffle(order)

    assert (p <= rate + 1e-12).all()
    assert (rate <= adjusted + 1e-12).all()
    assert (adjusted <= np.minimum(1, p * max(len(p), 1)) + 1e-12).all()
    assert holm(p[order]).tolist() == pytest.approx(adjusted[order].tolist())


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_what_is_no_p_value_is_refused(adjust, bad):
    """NaN and numbers outside [0, 1] are an error, not a silent alarm."""
    with pytest.raises(SpecError) as caught:
        adjust([0.5, bad])

    assert caught.value.code == "p-value-range"


@pytest.mark.simulation
def test_holm_keeps_the_family_wise_rate_among_dependent_tests():
    """Twenty equally correlated tests without effect: any rejection in at most 5 % of families."""
    rng = np.random.default_rng(3)
    z = np.sqrt(0.4) * rng.normal(size=(4000, 1)) + np.sqrt(0.6) * rng.normal(size=(4000, 20))
    p = 2 * stats.norm.sf(np.abs(z))
    any_rejected = np.mean([holm(row).min() <= 0.05 for row in p])

    assert any_rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert any_rejected >= 0.02
