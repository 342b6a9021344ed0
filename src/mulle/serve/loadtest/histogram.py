"""Latencies by log-linear bucket: any number of them in 60 kB, with quantiles less than one per cent off. Pure.

Every power of two is cut into `SUB` equal buckets, so a bucket is at most 1/128 of its value wide and its middle at most
0.4 % off. Buckets are the same in every process, so histograms are merged by adding.
"""

import math
from collections.abc import Iterable, Mapping

BITS = 7
SUB = 1 << BITS
N_BUCKETS = (64 - BITS) << BITS
"""Enough for every duration a 63-bit clock in nanoseconds can tell, so that nothing has to be cut off."""

_BEYOND = 100.0

RELATIVE_ERROR = 0.5 / SUB
"""The most a quantile differs from the value it stands for, as a share of it."""


def bucket_of(value: int) -> int:
    """Return the bucket of `value`, which is in nanoseconds and >= 0."""
    shift = value.bit_length() - BITS - 1
    return value if shift <= 0 else (shift << BITS) + (value >> shift)


def bucket_range(bucket: int) -> tuple[int, int]:
    """Return the first value of `bucket` and the first value after it."""
    if bucket < 2 * SUB:
        return bucket, bucket + 1
    shift = (bucket >> BITS) - 1
    low = (bucket - (shift << BITS)) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts by bucket.

    Args:
        counts: Shape (`N_BUCKETS`,), taken over, not copied; None: empty. The generator counts into its own list and hands it over.
    """

    __slots__ = ("counts",)

    def __init__(self, counts: list[int] | None = None) -> None:
        self.counts = [0] * N_BUCKETS if counts is None else counts

    @property
    def n(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def record(self, value: int) -> None:
        """Count one value in nanoseconds, >= 0."""
        self.counts[bucket_of(value)] += 1

    def merged(self, *others: "Histogram") -> "Histogram":
        """Return a histogram of everything counted in this one and in `others`."""
        return Histogram([sum(row) for row in zip(self.counts, *(other.counts for other in others), strict=True)])

    def minus(self, earlier: "Histogram") -> "Histogram":
        """Return what was counted since `earlier`, an older copy of this histogram."""
        return Histogram([now - then for now, then in zip(self.counts, earlier.counts, strict=True)])

    def copy(self) -> "Histogram":
        """Return a copy that no longer changes with this one."""
        return Histogram(self.counts.copy())

    def quantile(self, q: float) -> float:
        """Return the value, in nanoseconds, that a share `q` of all values do not exceed; NaN when there are none.

        It is the middle of the bucket that holds the value of rank ceil(q n), so at most `RELATIVE_ERROR` off.

        Args:
            q: In [0, 1].
        """
        return self.quantiles((q,))[0]

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Return `quantile` of each share, in one pass for rising shares."""
        filled = self.filled()
        n = sum(count for _, count in filled)
        found: list[float] = []
        at, below = 0, 0
        last = 0
        for q in shares:
            if n == 0:
                found.append(math.nan)
                continue
            # Without rounding, 0.99 * 100 is a little above 99 and would name the hundredth value.
            rank = max(1, math.ceil(round(q * n, 6)))
            if rank < last:
                at, below = 0, 0
            last = rank
            while below + filled[at][1] < rank:
                below += filled[at][1]
                at += 1
            found.append(_middle(filled[at][0]))
        return found

    def mean(self) -> float:
        """Return the mean in nanoseconds, from the middles of the buckets; NaN when empty."""
        filled = self.filled()
        n = sum(count for _, count in filled)
        return sum(_middle(bucket) * count for bucket, count in filled) / n if n else math.nan

    def largest(self) -> float:
        """Return the largest value in nanoseconds, to the middle of its bucket; NaN when empty."""
        return self.quantile(1.0)

    def share_within(self, value: int) -> float:
        """Return the share of values not above the bucket of `value`; NaN when empty."""
        n = self.n
        return sum(self.counts[: bucket_of(value) + 1]) / n if n else math.nan

    def filled(self) -> list[tuple[int, int]]:
        """Return bucket and count of every bucket that is not empty, rising."""
        return [(bucket, count) for bucket, count in enumerate(self.counts) if count]

    def to_pairs(self) -> dict[int, int]:
        """Return the buckets that are not empty: the form that crosses process borders."""
        return dict(self.filled())

    @classmethod
    def from_pairs(cls, pairs: Mapping[int, int]) -> "Histogram":
        """Return the histogram `to_pairs` described."""
        made = cls()
        for bucket, count in pairs.items():
            made.counts[bucket] = count
        return made


def is_rough(n: int, q: float) -> bool:
    """Return whether `n` samples are too few to rest the quantile `q` on: fewer than 100 beyond it."""
    # With a hundred beyond it the quantile's rank is known to about ten per cent.
    return n * (1.0 - q) < _BEYOND - 1e-6


def _middle(bucket: int) -> float:
    low, high = bucket_range(bucket)
    return (low + high - 1) / 2
