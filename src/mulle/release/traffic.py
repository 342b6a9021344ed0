"""Who answers a request: weights over revisions, sticky by unit; pure.

A unit's place is a salted hash in [0, 10,000). Revisions hold stretches of that line as long as their weights, the one that
grows last: raising its weight from 5 to 25 per cent only moves units towards it and swaps none.
"""

import hashlib
from collections.abc import Sequence

PLACES = 10_000
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def place_of(salt: str, unit: str) -> int:
    """Return where a unit stands on the line of a deployment, 0 to 9,999; the same for every worker and restart."""
    digest = hashlib.blake2b(f"{salt}\x00{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * PLACES >> 64


def next_place(state: int) -> tuple[int, int]:
    """Return (place, next state) for a request without a unit.

    Places follow the golden ratio: every stretch of the line gets its share of any run of requests to within a few, without
    randomness.
    """
    state = (state + _GOLDEN) & _MASK
    return state * PLACES >> 64, state


def choose(weights: Sequence[int], place: int) -> int:
    """Return the index of the revision whose stretch holds `place`.

    Args:
        weights: Whole per cent, summing to 100, in the fixed order of the revisions.
        place: 0 to 9,999.

    Raises:
        ValueError: the weights do not reach that far.
    """
    edge = 0
    for i, weight in enumerate(weights):
        edge += weight * (PLACES // 100)
        if place < edge:
            return i
    raise ValueError(f"weights {list(weights)} do not cover place {place}")
