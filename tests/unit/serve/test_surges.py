"""A burst is no overload: the door while many ask in one instant."""

import pytest

from mulle.serve.plane.admission import Admission, AdmissionPolicy

MS = 1_000_000
POLICY = AdmissionPolicy(burst_ns=100 * MS, tight_ns=5 * MS, surge_ns=50 * MS, surge_wait_ns=1_000 * MS)


def asked(door, *, wait_ms, at_ms, since_ms=0):
    """Return why a request is refused that would wait `wait_ms`."""
    return door.refusal(at_ms * MS, wait_ns=wait_ms * MS, n_requests=9, n_bytes=0, since_ns=since_ms * MS)


@pytest.mark.parametrize(
    ("wait_ms", "at_ms", "expected"),
    [
        pytest.param(90, 400, None, id="within the limit, whenever"),
        pytest.param(900, 49, None, id="far above it in the instant of a burst"),
        pytest.param(900, 51, "wait", id="far above it, and no longer an instant"),
        pytest.param(1_001, 1, "wait", id="more than any burst"),
    ],
)
def test_what_comes_in_one_instant_is_a_burst(wait_ms, at_ms, expected):
    """Above the usual limit a request is let in only soon after the queue was empty."""
    assert expected == asked(Admission(POLICY), wait_ms=wait_ms, at_ms=at_ms)


def test_an_overloaded_door_knows_no_bursts():
    """After one refusal only the tight limit counts, until it has been calm."""
    door = Admission(POLICY)
    refused = asked(door, wait_ms=2_000, at_ms=10)
    within = asked(door, wait_ms=50, at_ms=20, since_ms=19)
    calm = asked(door, wait_ms=900, at_ms=600, since_ms=599)

    assert ["wait", "wait", None] == [refused, within, calm]


def test_without_a_surge_the_limit_is_the_limit():
    """A policy that names none lets nothing more in."""
    assert "wait" == asked(Admission(AdmissionPolicy(burst_ns=100 * MS, tight_ns=5 * MS)), wait_ms=101, at_ms=0)
