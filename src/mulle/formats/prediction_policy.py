"""What of the predictions is kept: every row or a sample, every column or some, and what happens when nothing can be kept."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_block import ID_DIGITS, PREFIX_DIGITS, PredictionBatch, Source

_SPAN = 1 << 64
_MASK = _SPAN - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPolicy:
    """How a deployment's predictions are logged.

    Attributes:
        durability: `process`: an answer waits for the kernel; a killed server loses nothing, a crashed host at most a second.
            `sync`: an answer waits for the disk.
        on_full: What happens while the log cannot be written. `block`: predictions are refused, nothing unlogged is ever
            answered. `drop`: they are answered, and their loss is counted.
        max_backlog_bytes: Raw bytes the keeper has not encoded yet from which the log counts as full; 0: no limit.
        sample: Share of the rows that is kept, 0 to 1. Which ones is a function of the prediction id alone.
        sample_key: Keys that function; 0: derived from the deployment's name.
        redact: Columns that are logged as missing; the name of the entity's column keeps the entity out.
    """

    durability: Literal["process", "sync"] = "process"
    on_full: Literal["block", "drop"] = "block"
    max_backlog_bytes: int = 0
    sample: float = 1.0
    sample_key: int = 0
    redact: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample <= 1.0:
            raise SpecError("log-sample", f"a sample of {self.sample!r}", fix="give a share between 0 and 1; 1 keeps every row")

    def key_for(self, deployment: str) -> int:
        """Return the 64 bits that key the choice of rows; equal for every process of a deployment."""
        return self.sample_key or int.from_bytes(hashlib.blake2b(deployment.encode(), digest_size=8).digest(), "little")


def is_sampled(prediction_id: str, *, sample: float, key: int) -> bool:
    """Return whether the row of a prediction id is logged: for every reader and writer the same answer."""
    if sample >= 1.0:
        return True
    prefix, number = _parts(prediction_id)
    if number < 0:
        digest = hashlib.blake2b(prediction_id.encode(), digest_size=8, key=key.to_bytes(8, "little")).digest()
        return int.from_bytes(digest, "little") < int(sample * _SPAN)
    return bool(_mixed(prefix, np.array([number], dtype=np.uint64), key)[0] < sample * _SPAN)


def kept_rows(batch: PredictionBatch, *, prefix: int, sample: float, key: int) -> NDArray[np.bool_]:
    """Return which rows of a batch are logged, shape (n,)."""
    n_rows = int(batch.outputs.shape[0])
    numbers = np.arange(batch.first, batch.first + n_rows, dtype=np.uint64)
    kept = _mixed(prefix, numbers, key) < sample * _SPAN
    if batch.ids is not None:
        for i, chosen in enumerate(batch.ids):
            if chosen is not None:
                kept[i] = is_sampled(chosen, sample=sample, key=key)
    return kept


def redacted_source(source: Source, redact: frozenset[str]) -> Source:
    """Return a source that says which of its columns are kept out."""
    names = [column.name for column in source.columns if column.name in redact]
    if source.entity is not None and source.entity in redact:
        names.append(source.entity)
    return msgspec.structs.replace(source, redacted=tuple(names)) if names else source


def redacted_batch(batch: PredictionBatch, source: Source) -> PredictionBatch:
    """Return the batch of a redacted source without the values that are kept out."""
    hidden = frozenset(source.redacted)
    matrix = batch.matrix()
    texts = batch.words()
    if matrix is not None:
        numeric = [column.name for column in source.columns if column.type is not ColumnType.TEXT]
        matrix = matrix.copy()
        matrix[:, [j for j, name in enumerate(numeric) if name in hidden]] = np.nan
    n_rows = int(batch.outputs.shape[0])
    return msgspec.structs.replace(
        batch,
        source=source,
        arrays=None,
        numbers=matrix,
        texts={name: np.full(n_rows, MISSING_TEXT, dtype=object) if name in hidden else values for name, values in texts.items()},
        entity=None if source.entity in hidden else batch.entity,
    )


def _parts(prediction_id: str) -> tuple[int, int]:
    """Return prefix and number of an id that looks like ours; number -1 for any other."""
    if len(prediction_id) != ID_DIGITS or not all(c in "0123456789abcdef" for c in prediction_id):
        return 0, -1
    return int(prediction_id[:PREFIX_DIGITS], 16), int(prediction_id[PREFIX_DIGITS:], 16)


def _mixed(prefix: int, numbers: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits per number: the finisher of SplitMix64 over (key, prefix, number)."""
    start = np.uint64((key ^ (prefix * 0x9E3779B97F4A7C15)) & _MASK)
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ start
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z
