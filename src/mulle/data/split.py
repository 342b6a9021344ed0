"""Which rows are learnt from and which are kept back, and whether one side knows something of the other.

By hash: a row's side is decided by keyed BLAKE2b (8 bytes, big-endian, key = the salt) of its entity: when the top 53 bits, as a
fraction of 2^53, are below `holdout_share`, the row is held out. That depends on nothing else: not on other rows, their order, the
run, the platform or a library's version. An entity never changes side while salt and share stay. Without an entity the row's own
content decides, the target left out, so that equal rows stay together.

What is hashed of a value: `t` and UTF-8 for text, `n` and the little-endian float64 for a number (`i` and decimal digits
beyond 2^53), `b` and 0 or 1 for a boolean, `d` and int64 microseconds UTC for a datetime, `-` for missing; each preceded by its
length (8 bytes, little-endian).

By time: the latest rows are held out; equal moments stay on one side, so that the share is met as nearly as they allow.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl

from mulle.core.errors import SpecError
from mulle.core.schema import ColumnType
from mulle.data.dataset import column_type, normalise

TRAIN = "train"
HOLDOUT = "holdout"
_HASH_BYTES = 8
_MAX_KEY_BYTES = 64
_EXACT = 2**53


def assign_split(
    frame: pl.DataFrame,
    *,
    by: Literal["hash", "time"],
    entity: str | None = None,
    time: str | None = None,
    holdout_share: float = 0.2,
    salt: str = "mulle",
    target: str | None = None,
) -> pl.Series:
    """Return the side of each row, `train` or `holdout`, as a series called `side`.

    Args:
        frame: The table.
        by: `hash` or `time`.
        entity: For `hash`: the column whose values stay together; None: each row's content decides.
        time: For `time`: the column of datetimes.
        holdout_share: Share to hold out, strictly between 0 and 1; by hash it is met on average over entities.
        salt: Another salt gives another split.
        target: For `hash` without an entity: left out of the row's content.

    Raises:
        SpecError: a share outside (0, 1), a column that is not there, has missing values or the wrong type, or a side
            that would be empty.
    """
    if not 0.0 < holdout_share < 1.0:
        raise SpecError("split-share", f"holdout_share is {holdout_share!r}", fix="use a share between 0 and 1, for example 0.2")
    table = normalise(frame)
    held = _held_by_time(table, time, holdout_share) if by == "time" else _held_by_hash(table, entity, holdout_share, salt, target)
    n_held = int(held.sum())
    if n_held in (0, table.height):
        side = "holdout" if n_held == 0 else "train"
        raise SpecError(
            "split-side-empty",
            f"the {side} side of the split would be empty: {table.height:,} rows, holdout_share = {holdout_share:g}",
            fix="get more rows (by hash: more entities; by time: more moments), or change holdout_share or salt in [split]",
        )
    return pl.select(pl.when(held).then(pl.lit(HOLDOUT)).otherwise(pl.lit(TRAIN)).alias("side")).to_series()


def hash_unit(content: bytes, salt: str) -> float:
    """Return a number in [0, 1) that depends on `content` and `salt` only."""
    key = salt.encode("utf-8")
    if len(key) > _MAX_KEY_BYTES:
        key = hashlib.blake2b(key, digest_size=_MAX_KEY_BYTES).digest()
    digest = hashlib.blake2b(content, digest_size=_HASH_BYTES, key=key).digest()
    # 53 bits, so that the quotient is exact and 1.0 is never reached
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)


def row_contents(frame: pl.DataFrame, names: Sequence[str]) -> list[bytes]:
    """Return the canonical bytes of each row of a normalised frame over `names` (see the module's text)."""
    columns = [_value_bytes(frame[name]) for name in names]
    return [b"".join(parts) for parts in zip(*columns, strict=True)] if columns else [b""] * frame.height


def _held_by_hash(frame: pl.DataFrame, entity: str | None, share: float, salt: str, target: str | None) -> pl.Series:
    if entity is None:
        contents = row_contents(frame, [name for name in frame.columns if name != target])
        return pl.Series("held", [hash_unit(content, salt) < share for content in contents], dtype=pl.Boolean)
    keys = _require_complete(frame, entity, "entity")
    unique = keys.unique(maintain_order=True)
    sides = [hash_unit(content, salt) < share for content in row_contents(unique.to_frame(), [entity])]
    lookup = pl.DataFrame([unique.alias("key"), pl.Series("held", sides, dtype=pl.Boolean)])
    return keys.alias("key").to_frame().join(lookup, on="key", how="left", maintain_order="left")["held"]


def _held_by_time(frame: pl.DataFrame, time: str | None, share: float) -> pl.Series:
    if time is None:
        raise SpecError("split-time", "a split by time needs a time column", fix='set mulle.Project(time="…"), or by = "hash" in [split]')
    moments = _require_complete(frame, time, "time")
    if column_type(moments.dtype, time) is not ColumnType.DATETIME:
        kind = column_type(moments.dtype, time).value
        raise SpecError("split-time", f"the time column {time!r} is a {kind}, not a datetime", fix="parse it in the source", where=time)
    n = len(moments)
    if n == 0:
        return pl.Series("held", [], dtype=pl.Boolean)
    wanted = share * n
    cut = moments.sort()[max(0, n - max(1, round(wanted)))]
    from_cut, after_cut = moments >= cut, moments > cut
    n_from, n_after = int(from_cut.sum()), int(after_cut.sum())
    if n_from == n or (n_after > 0 and wanted - n_after <= n_from - wanted):
        return after_cut
    return from_cut


def _require_complete(frame: pl.DataFrame, name: str, what: str) -> pl.Series:
    if name not in frame.columns:
        raise SpecError(
            "split-column",
            f"the {what} column {name!r} is not in the table",
            fix=f"set {what}= in mulle.Project to one of its columns",
            where=name,
        )
    series = frame[name]
    if n := series.null_count():
        row = int(series.is_null().arg_true()[0]) + 1
        raise SpecError(
            "split-column",
            f"the {what} {name!r} is missing in {n:,} rows, first in row {row:,}: they belong to no side",
            fix="fill or drop them in the source",
            where=name,
        )
    return series


def _value_bytes(series: pl.Series) -> list[bytes]:
    kind = column_type(series.dtype, series.name)
    if kind is ColumnType.TEXT:
        return _with_lengths(b"-" if value is None else b"t" + value.encode("utf-8") for value in series.to_list())
    if kind is ColumnType.BOOLEAN:
        return _with_lengths(b"-" if value is None else b"b1" if value else b"b0" for value in series.to_list())
    if kind is ColumnType.DATETIME:
        return _with_lengths(b"-" if value is None else b"d" + struct.pack("<q", value) for value in series.cast(pl.Int64).to_list())
    return _with_lengths(_number_bytes(value) for value in series.to_list())


def _number_bytes(value: float | None) -> bytes:
    if value is None:
        return b"-"
    if isinstance(value, int) and abs(value) > _EXACT and int(float(value)) != value:
        return b"i" + str(value).encode("ascii")
    return b"n" + struct.pack("<d", float(value))


def _with_lengths(parts: Iterable[bytes]) -> list[bytes]:
    return [struct.pack("<Q", len(part)) + part for part in parts]
