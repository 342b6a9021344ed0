"""The door of a queue, and the cost of a batch: pure, so the tables below are all there is to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.serve.plane.admission import LONG_PERIODS, Admission, AdmissionPolicy
from mulle.serve.plane.costs import CostCurve

POLICY = AdmissionPolicy(burst_ns=100, tight_ns=10, calm_ns=1_000, n_requests=5, n_bytes=50)


@pytest.mark.parametrize(
    ("wait_ns", "n_requests", "n_bytes", "expected"),
    [
        pytest.param(0, 0, 10, None, id="an empty queue: come in"),
        pytest.param(10**9, 0, 10**9, None, id="nothing waits: even a huge request may try"),
        pytest.param(100, 4, 50, None, id="just within every limit"),
        pytest.param(101, 1, 1, "wait", id="it would wait too long"),
        pytest.param(1, 5, 1, "count", id="too many wait"),
        pytest.param(1, 1, 51, "bytes", id="they take too much memory"),
    ],
)
def test_a_request_is_let_in_or_told_why_not(wait_ns, n_requests, n_bytes, expected):
    """Each limit refuses by itself, and says which one it was."""
    assert expected == Admission(POLICY).refusal(1, wait_ns=wait_ns, n_requests=n_requests, n_bytes=n_bytes)


def test_an_overloaded_door_is_tight_until_nothing_was_refused_for_a_while():
    """A burst is let in; once its limit is met only what can be answered soon is, until it is calm again."""
    door = Admission(POLICY)

    def ask(now, wait):
        return door.refusal(now, wait_ns=wait, n_requests=1, n_bytes=1)

    assert [None, "wait", "wait", None] == [ask(1, 90), ask(2, 101), ask(3, 90), ask(4, 9)]
    assert ["wait", None] == [ask(500, 11), ask(1_502, 90)]


def test_long_turns_in_a_row_mean_overload_and_a_single_one_does_not():
    """What waits in the kernel shows only in how long everything takes; a hiccup of the machine is no overload."""
    door = Admission(POLICY)
    for turn in range(LONG_PERIODS - 1):
        door.note_period(turn, 101)
    door.note_period(50, 5)
    assert not door.overloaded
    for turn in range(LONG_PERIODS):
        door.note_period(100 + turn, 101)

    assert door.overloaded


COSTS = st.dictionaries(st.sampled_from([1, 2, 8, 32, 64, 256]), st.floats(1, 1e9), min_size=1)


@given(COSTS, st.integers(1, 10_000), st.integers(1, 512))
def test_an_estimate_is_positive_and_the_best_batch_is_one_that_may_run(measured, n_rows, max_rows):
    """Whatever was measured, even nonsense, the batch stays within its limit."""
    curve = CostCurve(measured)

    assert curve.estimate_ns(n_rows) > 0
    assert 1 <= curve.best_batch(max_rows) <= max_rows
    assert curve.row_ns(max_rows) > 0


@given(COSTS, st.lists(st.tuples(st.integers(1, 300), st.floats(1, 1e9)), max_size=30))
def test_learning_keeps_longer_batches_at_least_as_dear(measured, seen):
    """After any batches the curve never says that more rows take less time."""
    curve = CostCurve({n: ns * n for n, ns in measured.items()})
    for n_rows, ns in seen:
        curve.observe(n_rows, ns)

    levels = [curve.estimate_ns(1 << level) for level in range(12)]

    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        pytest.param({1: 5_000, 8: 12_000, 64: 80_000}, 32, id="trees: cheaper by the row, up to where it no longer matters"),
        pytest.param(
            {1: 270_000, 8: 2_100_000, 64: 16_800_000}, 1, id="a network on a processor: batching gains 3 %, so nobody waits for it"
        ),
        pytest.param({1: 100.0}, 1, id="one size was measured: no other is recommended"),
    ],
)
def test_a_batch_is_as_large_as_it_pays(measured, expected):
    """Growing stops where a row would get less than 5 % cheaper."""
    assert expected == CostCurve(measured).best_batch(64)


def test_a_single_slow_batch_moves_the_estimate_little():
    """A page fault is no reason to refuse anybody."""
    curve = CostCurve({1: 1_000})
    curve.observe(1, 1_000_000)

    assert 1_000 < curve.estimate_ns(1) <= 1_101
