"""What the writer, the keeper and the reader of the prediction log agree on: names of files, kinds of frames, heads, counts."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

SUFFIX = ".mseg"
"""A raw segment: many small blocks, as the server wrote them."""
ENCODED_SUFFIX = ".mcol"
"""The same segment after the keeper: few large blocks, column by column, compressed."""
SHIPPED_SUFFIX = ".shipped"
"""Behind the name of an encoded segment: the sink holds it."""
STEM = "predictions"
FORMAT = "mulle.predictions"
VERSION = 2
KIND_HEADER, KIND_SOURCE, KIND_BLOCK, KIND_OUTCOMES = 1, 2, 3, 4
KIND_COLUMNS, KIND_OUTCOME_LIST, KIND_END = 6, 7, 8
"""Only in encoded segments; 5 belongs to the feedback log."""
NS_PER_HOUR = 3_600_000_000_000

Outcome = Literal["answered", "refused", "failed", "unlogged", "dropped", "shed", "expired", "cancelled"]


class SegmentHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first frame of a segment.

    Attributes:
        format: `mulle.predictions`.
        version: Of the format.
        deployment: Whose predictions.
        prefix: The writer's, 16 hexadecimal digits.
        hour: UTC, as `20261120T05`.
        number: Of this segment among its writer's.
        first_sequence: Number of the first frame that has one.
        sample: Share of the rows that is kept.
        sample_key: What the choice of rows is keyed with.
        redacted: Columns that are never logged, and the entity's name where it is not.
    """

    format: str
    version: int
    deployment: str
    prefix: str
    hour: str
    number: int
    first_sequence: int
    sample: float = 1.0
    sample_key: int = 0
    redacted: tuple[str, ...] = ()


class OutcomeCounts(msgspec.Struct, omit_defaults=True):
    """How requests ended.

    Attributes:
        answered: Requests that were answered and logged; rows that sampling left out included.
        refused: Requests answered 4xx.
        failed: Requests answered 5xx.
        unlogged: Requests refused because the log could not be written.
        dropped: Requests answered although the log could not be written (`on_full = "drop"`): their rows are lost.
        shed: Requests refused because the server was overloaded.
        expired: Requests whose deadline passed before their answer.
        cancelled: Requests whose client left before the answer.
        sampled_out: Rows, not requests, that were answered and that sampling left out of the log.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    unlogged: int = 0
    dropped: int = 0
    shed: int = 0
    expired: int = 0
    cancelled: int = 0
    sampled_out: int = 0

    def add(self, other: "OutcomeCounts") -> None:
        """Add the counts of `other`."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class OutcomesFrame(msgspec.Struct, frozen=True):
    """Outcomes of a stretch of time, by revision; revision 0 stands for requests that reached none."""

    sequence: int
    since_ns: int
    until_ns: int
    counts: dict[int, OutcomeCounts]


def hour_of(time_ns: int) -> str:
    """Return the UTC hour a moment belongs to, as `20261120T05`."""
    return datetime.fromtimestamp(time_ns // NS_PER_HOUR * 3600, UTC).strftime("%Y%m%dT%H")
