"""The drift baseline: what the columns and the scores looked like when the model was made.

It is itself a sample, and says of how many rows, so that its sampling error enters every test. Numbers are kept as exact
counts below and at no more than 2,000 of their own values (all of them, where there are no more); categories by name with
their counts. When a text has more than 200 different values, its counts in 64 hash buckets are kept too: choosing the most
frequent 200 by looking at the reference would make a healthy window look changed, a hash does not look.
"""

import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.canonical import canonical_json
from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import ColumnType
from mulle.formats.envelope import decode_document, read_limited

FORMAT = "mulle.baseline"
VERSION = 1
MAX_BASELINE_BYTES = 64 << 20
MAX_POINTS = 2_000
MAX_CATEGORIES = 200
MAX_CATEGORY_CHARS = 200
N_BUCKETS = 64


class NumberProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="number"):
    """The distribution of one column of numbers (or of timestamps, in seconds since 1970-01-01 UTC).

    Attributes:
        name: The column.
        type: Its type in the schema: `number` or `datetime`.
        n: Values present, infinities included.
        n_missing: Rows without a value.
        n_minus_inf: Values that are -infinity: they count as below every point.
        n_plus_inf: Values that are +infinity.
        n_distinct: Different finite values.
        minimum: Smallest finite value; None when there is none.
        maximum: Largest finite value; None when there is none.
        points: Finite values in rising order: every different one, or about 2,000 evenly spaced order statistics.
        below: For each point, how many of the n values are smaller.
        at_or_below: For each point, how many are smaller or equal.
        edges: Inner edges of the histogram, rising; a value equal to an edge belongs to the bin below.
        counts: Values per bin, len(edges) + 1 of them, n in total.
    """

    name: str
    type: ColumnType
    n: int
    n_missing: int
    n_minus_inf: int = 0
    n_plus_inf: int = 0
    n_distinct: int
    minimum: float | None
    maximum: float | None
    points: tuple[float, ...]
    below: tuple[int, ...]
    at_or_below: tuple[int, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether every different value is among `points`, so that nothing about the distribution was lost."""
        return self.n_distinct == len(self.points)

    def quantile(self, q: float) -> float:
        """Return the value below which about a share `q` in [0, 1] of the reference lies; NaN when it has no value."""
        if not self.points:
            return float("nan")
        wanted = max(1.0, q * self.n)
        return self.points[min(int(np.searchsorted(np.array(self.at_or_below), wanted, side="left")), len(self.points) - 1)]

    def problem(self) -> str | None:
        """Return what does not fit in this profile, or None."""
        sizes = {len(self.points), len(self.below), len(self.at_or_below)}
        if len(sizes) != 1 or len(self.points) > MAX_POINTS or (self.minimum is None) != (not self.points):
            return f"its {len(self.points)} points do not fit their counts"
        if self.type not in {ColumnType.NUMBER, ColumnType.DATETIME} or min(self.n, self.n_missing, self.n_minus_inf, self.n_plus_inf) < 0:
            return "its sizes do not fit a column of numbers"
        if not all(a < b for a, b in pairwise(self.points)) or not all(a < b for a, b in pairwise(self.edges)):
            return "its points are not in rising order"
        order = [
            self.n_minus_inf,
            *(count for pair in zip(self.below, self.at_or_below, strict=True) for count in pair),
            self.n - self.n_plus_inf,
        ]
        if not all(a <= b for a, b in pairwise(order)) or not all(a < b for a, b in zip(self.below, self.at_or_below, strict=True)):
            return "its counts do not rise"
        if len(self.counts) != len(self.edges) + 1 or sum(self.counts) != self.n or min(self.counts) < 0:
            return "its histogram does not add up"
        return None


class CategoryProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="category"):
    """The distribution of one column of texts or booleans (`true`, `false`), or of predicted classes.

    Attributes:
        name: The column.
        type: Its type in the schema: `text` or `boolean`.
        n: Values present.
        n_missing: Rows without a value.
        n_distinct: Different values.
        counts: Value to count, for the 200 most frequent; longer values than 200 characters are cut.
        n_rest: Rows whose value is not among `counts`.
        buckets: Rows by CRC-32 of the value modulo 64, when there are more than 200 values; else empty.
    """

    name: str
    type: ColumnType
    n: int
    n_missing: int
    n_distinct: int
    counts: dict[str, int]
    n_rest: int = 0
    buckets: tuple[int, ...] = ()

    def problem(self) -> str | None:
        """Return what does not fit in this profile, or None."""
        if self.type not in {ColumnType.TEXT, ColumnType.BOOLEAN} or min(self.n, self.n_missing, self.n_rest, self.n_distinct) < 0:
            return "its sizes do not fit a column of categories"
        if len(self.counts) > MAX_CATEGORIES or any(count < 1 for count in self.counts.values()):
            return f"its {len(self.counts)} categories are too many, or have no rows"
        if sum(self.counts.values()) + self.n_rest != self.n:
            return "its counts do not add up"
        if self.buckets and (len(self.buckets) != N_BUCKETS or sum(self.buckets) != self.n or min(self.buckets) < 0):
            return "its buckets do not add up"
        if bool(self.n_rest) != bool(self.buckets):
            return "it has a rest and no buckets, or buckets and no rest"
        return None


Profile = NumberProfile | CategoryProfile


class PredictionProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the model answered on rows it had not learnt from.

    Attributes:
        score: Probability of the positive class (binary), of the chosen class (multiclass), or the value (regression).
        classes: Counts of the chosen classes; None for regression.
    """

    score: NumberProfile
    classes: CategoryProfile | None = None


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What windows are compared with. Part of a bundle's identity: the same rows give the same bytes."""

    format: Literal["mulle.baseline"] = FORMAT
    version: Literal[1] = VERSION
    n_rows: int
    columns: tuple[Profile, ...]
    prediction: PredictionProfile | None = None

    def __iter__(self) -> Iterator[Profile]:
        return iter(self.columns)

    def get(self, name: str) -> Profile | None:
        """Return the profile of the column called `name`, or None."""
        return next((profile for profile in self.columns if profile.name == name), None)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes to write.

        Raises:
            SpecError: more bytes than a reader takes.
        """
        data = canonical_json(msgspec.to_builtins(self, str_keys=True))
        if len(data) > MAX_BASELINE_BYTES:
            raise SpecError(
                "baseline-too-large",
                f"the baseline of {len(self.columns):,} columns has {len(data):,} bytes; the limit is {MAX_BASELINE_BYTES:,}",
                fix="leave out columns the model does not use, long texts first",
            )
        return data


def decode_baseline(data: bytes, *, where: str = "baseline.json") -> Baseline:
    """Return the baseline in `data`, after every profile was found consistent.

    Raises:
        CheckError: not a baseline, a newer version, or a profile whose numbers contradict each other (named).
    """
    baseline = decode_document(data, Baseline, name=FORMAT, version=VERSION, where=where)
    profiles: list[Profile] = list(baseline.columns)
    if baseline.prediction is not None:
        profiles.append(baseline.prediction.score)
        profiles += [baseline.prediction.classes] if baseline.prediction.classes is not None else []
    problems = ((profile.name, profile.problem()) for profile in profiles)
    name, problem = next(((name, problem) for name, problem in problems if problem is not None), ("", None))
    if problem is None and len({profile.name for profile in baseline.columns}) != len(baseline.columns):
        name, problem = baseline.columns[0].name, "a column appears twice"
    if problem is not None:
        raise CheckError(
            "baseline-inconsistent",
            f"the baseline of {name[:80]!r} contradicts itself: {problem}",
            fix="seal the bundle again",
            where=where,
        )
    return baseline


def read_baseline(path: Path) -> Baseline:
    """Return the baseline at `path`.

    Raises:
        SpecError: missing, not a regular file, or larger than 64 MiB.
        CheckError: as `decode_baseline`.
    """
    return decode_baseline(read_limited(path, max_bytes=MAX_BASELINE_BYTES), where=str(path))


def bucket_counts(counts: Mapping[str, int]) -> NDArray[np.int64]:
    """Return rows per hash bucket, shape (64,): CRC-32 of the value's UTF-8 bytes, modulo 64."""
    result = np.zeros(N_BUCKETS, dtype=np.int64)
    for value, count in counts.items():
        result[zlib.crc32(value.encode("utf-8", "surrogatepass")) % N_BUCKETS] += count
    return result
