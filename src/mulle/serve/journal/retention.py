"""Which encoded segments are let go: by age, and by what all of them together may take. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_DAY = 86_400_000_000_000


@dataclass(frozen=True, slots=True, order=True)
class KeptSegment:
    """One encoded segment.

    Attributes:
        ends_ns: End of the hour it is named after.
        name: `<deployment>/<file>`.
        n_bytes: Its size.
        may_go: Whether nothing else needs it here: the sink, if there is one, holds it.
    """

    ends_ns: int
    name: str
    n_bytes: int
    may_go: bool


def plan_retention(
    segments: Sequence[KeptSegment], *, now_ns: int, keep_days: float | None, keep_bytes: int | None, other_bytes: int = 0
) -> list[KeptSegment]:
    """Return the segments to delete, the oldest first; only whole ones.

    Args:
        segments: All that are encoded.
        now_ns: Nanoseconds since 1970-01-01 UTC.
        keep_days: Older ones go; None: age alone lets nothing go.
        keep_bytes: The oldest go until all together take no more; None: no limit.
        other_bytes: Raw segments: they count, and never go.
    """
    gone: list[KeptSegment] = []
    total = other_bytes + sum(segment.n_bytes for segment in segments)
    for segment in sorted(segments):
        old = keep_days is not None and segment.ends_ns < now_ns - keep_days * NS_PER_DAY
        large = keep_bytes is not None and total > keep_bytes
        if segment.may_go and (old or large):
            gone.append(segment)
            total -= segment.n_bytes
    return gone
