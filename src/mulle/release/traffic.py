"""Who answers a request: weights over revisions, sticky by unit; pure.

A unit's place is a salted hash in [0, 10,000). Revisions hold stretches of that line as long as their weights, the one that
grows last: raising its weight from 5 to 25 per cent only moves units towards it and swaps none.
"""

import hashlib
from collections.abc import Sequence

PLACES = 10_000
_CYCLE = 100
_STEP = 61
"""Coprime with the cycle and nearest to its golden section: neighbours on the line are far apart in time."""


def place_of(salt: str, unit: str) -> int:
    """Return where a unit stands on the line of a deployment, 0 to 9,999; the same for every worker and restart."""
    digest = hashlib.blake2b(f"{salt}\x00{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * PLACES >> 64


def cycle_of(weights: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the revisions that answer a hundred requests without a unit, in turn.

    Every hundred requests in a row give each revision exactly its weight, and any stretch of them nearly so.

    Args:
        weights: Whole per cent, summing to 100, in the fixed order of the revisions.

    Raises:
        ValueError: the weights do not sum to 100.
    """
    return tuple(choose(weights, i * _STEP % _CYCLE * (PLACES // _CYCLE)) for i in range(_CYCLE))


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
