"""The digest of a dataset: the same for the same values, however they are stored."""

import io
import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.core.schema import MISSING_TEXT
from mulle.data.arrays import from_arrays, to_arrays
from mulle.data.dataset import infer_schema, logical_digest, normalise

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive is UTC in tables
texts = st.text(st.characters(codec="utf-8", exclude_characters=[MISSING_TEXT, "\x00"]), max_size=8)
columns = st.one_of(
    st.tuples(st.just(pl.Int64), st.just(st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just(pl.Int64), st.just(st.integers(-100, 100))),
    st.tuples(st.just(pl.Float64), st.just(st.floats())),
    st.tuples(st.just(pl.Boolean), st.just(st.booleans())),
    st.tuples(st.just(pl.String), st.just(texts)),
    st.tuples(st.just(pl.Datetime("us")), st.just(st.integers(-(2**50), 2**50).map(lambda us: EPOCH + timedelta(microseconds=us)))),
)


@st.composite
def frames(draw):
    """Return a table of up to four columns and twelve rows, with gaps."""
    n = draw(st.integers(0, 12))
    names = draw(st.lists(texts.filter(lambda name: name.strip()), min_size=1, max_size=4, unique=True))
    series = []
    for name in names:
        dtype, values = draw(columns)
        series.append(pl.Series(name, draw(st.lists(st.none() | values, min_size=n, max_size=n)), dtype=dtype))
    return normalise(pl.DataFrame(series))


@given(frames(), st.integers(0, 12))
@settings(max_examples=80)
def test_storage_does_not_count(frame, cut):
    """Chunks, slices, Parquet, Arrow and categories give the digest of the plain table."""
    cut = min(cut, frame.height)
    buffer = io.BytesIO()
    frame.write_parquet(buffer, row_group_size=3)
    buffer.seek(0)
    stored = [
        pl.concat([frame[:cut], frame[cut:]], rechunk=False),
        pl.concat([frame, frame])[frame.height :] if frame.height else frame,
        pl.read_parquet(buffer),
        normalise(frame.to_arrow()),
        normalise(frame.cast({pl.String: pl.Categorical})),
    ]

    assert [logical_digest(table) for table in stored] == [logical_digest(frame)] * len(stored)


@given(st.lists(st.none() | st.integers(-128, 127), min_size=1, max_size=20))
def test_width_does_not_count(values):
    """Int8, Int64, Float32 and Float64 columns of the same small whole numbers are one."""
    digests = {
        logical_digest(normalise(pl.DataFrame({"x": pl.Series(values, dtype=dtype)})))
        for dtype in (pl.Int8, pl.Int64, pl.Float32, pl.Float64)
    }

    assert len(digests) == 1


@given(st.lists(st.none() | st.integers(-(2**70), 2**70), min_size=1, max_size=6), st.data())
def test_whole_numbers_never_collide(values, data):
    """Changing one whole number by one changes the digest, beyond 2^53 too."""
    position = data.draw(st.integers(0, len(values) - 1))
    changed = list(values)
    changed[position] = (changed[position] or 0) + 1
    before, after = (normalise(pl.DataFrame({"x": pl.Series(v, dtype=pl.Int128)})) for v in (values, changed))

    assert logical_digest(before) != logical_digest(after)


@given(st.lists(texts, min_size=1, max_size=6), st.data())
def test_moving_a_boundary_between_texts_counts(values, data):
    """Texts are hashed with their lengths: 'ab','c' is not 'a','bc'."""
    position = data.draw(st.integers(0, len(values) - 1))
    joined = list(values)
    following = (position + 1) % len(values)
    if following == position or not joined[position]:
        return
    joined[following] = joined[position][-1] + joined[following]
    joined[position] = joined[position][:-1]

    assert logical_digest(pl.DataFrame({"x": values})) != logical_digest(pl.DataFrame({"x": joined}))


@given(frames())
@settings(max_examples=60)
def test_arrays_and_back(frame):
    """What goes through arrays comes back, whole numbers as far as float64 says them."""
    schema = infer_schema(frame)
    arrays = to_arrays(frame, schema)
    back = to_arrays(from_arrays(arrays, schema), schema)

    assert list(arrays) == list(schema.names)
    for name, values in arrays.items():
        assert values.shape == (frame.height,)
        if values.dtype == object:
            assert values.tolist() == back[name].tolist()
        else:
            assert np.array_equal(values, back[name], equal_nan=True)
            assert all(math.isnan(a) == (b is None) for a, b in zip(values, frame[name].to_list(), strict=True))
