"""Who answers: shares, stickiness, and that growing a share only moves units towards it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.release.traffic import PLACES, choose, cycle_of, place_of

UNITS = [f"고객-{i}" for i in range(20_000)]


@pytest.mark.parametrize("share", [5, 25, 50, 90], ids=lambda share: f"{share} per cent")
def test_the_share_of_units_is_exact_to_sampling_error(share):
    """Twenty thousand units: within four standard deviations of the weight."""
    n = sum(choose([100 - share, share], place_of("salt", unit)) for unit in UNITS)
    expected, spread = len(UNITS) * share / 100, math.sqrt(len(UNITS) * share / 100 * (1 - share / 100))

    assert abs(n - expected) < 4 * spread


def test_growing_a_share_only_adds_units():
    """5 to 25 to 50 per cent: nobody who had the new revision loses it, and no two are swapped."""
    arms = {share: {u for u in UNITS if choose([100 - share, share], place_of("s", u))} for share in (5, 25, 50)}

    assert arms[5] < arms[25] < arms[50]


def test_another_salt_deals_anew():
    """Two rollouts do not try their luck on the same units."""
    first, second = ({u for u in UNITS if choose([90, 10], place_of(salt, u))} for salt in ("a", "b"))

    assert len(first & second) < 0.2 * len(first)


@given(st.integers(0, 99), st.integers(1, 99), st.integers(1, 400))
def test_requests_without_a_unit_get_their_share_in_any_run(start, share, n):
    """Any hundred requests in a row: exactly the weight; any other stretch: to within a few."""
    cycle = cycle_of([100 - share, share])
    found = sum(cycle[(start + i) % len(cycle)] for i in range(n))

    assert share == sum(cycle)
    assert abs(found - n * share / 100) <= 4


@pytest.mark.parametrize("weights", [[100], [99, 1], [50, 25, 25], [1] * 100], ids=str)
def test_a_cycle_gives_every_revision_exactly_its_weight(weights):
    """Whole per cents come out whole."""
    assert weights == [cycle_of(weights).count(i) for i in range(len(weights))]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(lambda w: sum(w) > 0), st.integers(0, PLACES - 1))
def test_a_place_belongs_to_exactly_one_revision_and_never_to_one_without_weight(weights, place):
    """Weights that do not reach a place are refused rather than guessed."""
    if place < sum(weights) * (PLACES // 100):
        assert weights[choose(weights, place)] > 0
    else:
        with pytest.raises(ValueError, match="do not cover"):
            choose(weights, place)
