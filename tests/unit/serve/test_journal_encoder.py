"""Encoding a segment: the same window before and after, whatever is wrong with it."""

import os
import zlib

import msgspec
import numpy as np
import pytest

from mulle.core.errors import CheckError
from mulle.core.schema import ColumnType
from mulle.formats.prediction_columns import MAX_ROWS, decode_columns, encode_columns
from mulle.formats.prediction_frames import KIND_COLUMNS, KIND_HEADER, SegmentHeader
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source, find_prediction, known_prefixes, read_predictions
from mulle.formats.prediction_reader import SegmentFacts, iter_segment, segment_stems
from mulle.formats.segment import HEAD_BYTES, MAGIC, Damage, frame, read_frames
from mulle.serve.journal.encoder import encode_segment
from support.logs import HOUR_NS, T0, batch, facts_of, write_segment


def spoil(path, at, bit=1):
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))


def test_a_window_is_the_same_after_encoding(tmp_path):
    """Every array, count, source and gap; rows of one moment in the order they were written; every id is found."""
    raw = write_segment(tmp_path)
    before = read_predictions(tmp_path, "churn")
    singles = [find_prediction(tmp_path, one) for one in before.ids]
    done = encode_segment(raw)
    after = read_predictions(tmp_path, "churn")

    assert facts_of(before) == facts_of(after)
    assert [True] * 90 == [msgspec.structs.replace(one.source, source=0) == before.sources[one.source.revision - 1] for one in singles]
    again = [find_prediction(tmp_path, one) for one in before.ids]
    assert [(p.id, repr(p.features), p.outputs, p.entity) for p in singles] == [
        (p.id, repr(p.features), p.outputs, p.entity) for p in again
    ]
    assert (90, raw.with_suffix(".mcol")) == (done.n_rows, done.path)
    assert not raw.exists()
    assert {f"{1:016x}"} == known_prefixes(tmp_path, "churn")


@pytest.mark.parametrize(
    ("since", "until", "last"),
    [
        pytest.param(2, 4, None, id="the middle"),
        pytest.param(2, None, 7, id="the newest of a part"),
        pytest.param(None, 0, None, id="nothing"),
        pytest.param(3, 3, None, id="an empty stretch"),
    ],
)
def test_a_merged_block_is_cut_by_time(tmp_path, since, until, last):
    """A block that now covers an hour gives only the rows of the window."""
    raw = write_segment(tmp_path)
    moments = {"since_ns": None if since is None else T0 + since * 10**9, "until_ns": None if until is None else T0 + until * 10**9}
    before = read_predictions(tmp_path, "churn", last=last, **moments)
    encode_segment(raw)

    assert facts_of(before) == facts_of(read_predictions(tmp_path, "churn", last=last, **moments))


def test_an_open_segment_is_left_alone(tmp_path):
    """Its writer may add to it at any moment."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 3))
    (raw,) = (tmp_path / "churn").glob("*.mseg")
    while_open = encode_segment(raw)
    writer.append(batch(writer, 3))
    writer.close(T0 + 1)

    assert while_open is None
    assert 6 == encode_segment(raw).n_rows
    assert encode_segment(raw) is None


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(lambda path: os.truncate(path, path.stat().st_size - 3), {"torn_tails": 1}, id="a torn tail"),
        pytest.param(
            lambda path: spoil(path, path.stat().st_size // 2), {"corrupt_frames": 1, "missing_frames": 1}, id="a changed row in the middle"
        ),
        pytest.param(
            lambda path: spoil(path, len(MAGIC) + HEAD_BYTES + 4), {"corrupt_frames": 1, "missing_frames": 0}, id="a changed header"
        ),
        pytest.param(lambda path: os.truncate(path, len(MAGIC) + 5), {"torn_tails": 1}, id="hardly a byte left"),
    ],
)
def test_damage_is_carried_over_as_a_fact(tmp_path, damage, expected):
    """What is whole is encoded; what was lost is said by the encoded segment as the raw one said it."""
    raw = write_segment(tmp_path)
    damage(raw)
    before = facts_of(read_predictions(tmp_path, "churn"))
    encode_segment(raw)
    after = facts_of(read_predictions(tmp_path, "churn"))

    assert before == after
    assert expected.items() <= after["gaps"].items()
    assert not after["gaps"]["complete"]


def test_a_segment_that_holds_nothing_goes(tmp_path):
    """Opened and never used: there is nothing to keep."""
    writer = LogWriter(tmp_path, "churn")
    writer._open_segment(T0)
    writer.close(T0)
    (raw,) = (tmp_path / "churn").glob("*.mseg")
    done = encode_segment(raw)

    assert (None, 0) == (done.path, done.n_rows)
    assert [] == list((tmp_path / "churn").iterdir())


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"something else entirely", "segment-unknown", id="no segment"),
        pytest.param(
            MAGIC + frame(KIND_HEADER, msgspec.msgpack.encode(SegmentHeader("mulle.predictions", 9, "churn", "0", "x", 0, 0))),
            "format-unknown",
            id="of another version",
        ),
        pytest.param(MAGIC + frame(3, b"\x01\x00\x00\x00\xc1"), "segment-unreadable", id="a block nobody can read"),
    ],
)
def test_what_cannot_be_read_is_never_deleted(tmp_path, content, code):
    """It may be somebody's: it stays, with nothing beside it."""
    folder = tmp_path / "churn"
    folder.mkdir()
    raw = folder / f"predictions-20270115T08-{1:016x}-00000.mseg"
    raw.write_bytes(content)
    with pytest.raises(CheckError) as caught:
        encode_segment(raw)

    assert code == caught.value.code
    assert ([raw], content) == (list(folder.iterdir()), raw.read_bytes())


@pytest.mark.parametrize("how", ["whole", "damaged", "empty"])
def test_both_files_of_a_name_count_once(tmp_path, how):
    """A keeper killed before its last step leaves both; the next one finishes, and makes anew what is not whole."""
    raw = write_segment(tmp_path)
    content = raw.read_bytes()
    before = facts_of(read_predictions(tmp_path, "churn"))
    encode_segment(raw)
    raw.write_bytes(content)
    encoded = raw.with_suffix(".mcol")
    both = facts_of(read_predictions(tmp_path, "churn"))
    if how == "damaged":
        spoil(encoded, encoded.stat().st_size // 2)
    elif how == "empty":
        encoded.write_bytes(b"")
    encode_segment(raw)

    assert before == both == facts_of(read_predictions(tmp_path, "churn"))
    assert [encoded] == list((tmp_path / "churn").iterdir())


def test_a_damaged_encoded_segment_says_so(tmp_path):
    """A flipped byte costs its block; a missing end is a torn tail."""
    raw = write_segment(tmp_path)
    encode_segment(raw)
    encoded = raw.with_suffix(".mcol")
    content = encoded.read_bytes()
    spoil(encoded, len(content) // 3)
    flipped = read_predictions(tmp_path, "churn")
    encoded.write_bytes(content[:-40])
    cut = read_predictions(tmp_path, "churn")

    assert (True, False) == (len(flipped) < 90, flipped.gaps.complete)
    assert (90, False, 1) == (len(cut), cut.gaps.complete, cut.gaps.damage.torn_tails)


def test_a_checksum_of_its_own_guards_every_column(tmp_path):
    """A frame put together wrongly, its checksum right, is refused instead of read as other numbers."""
    raw = write_segment(tmp_path)
    facts = SegmentFacts()
    rows = next(iter(iter_segment(raw.parent, raw.stem, facts)))
    payload = bytearray(encode_columns(rows, source=0))
    payload[-1] ^= 1
    with pytest.raises(CheckError) as caught:
        decode_columns(memoryview(bytes(payload)), rows.source, 1)

    assert "segment-unreadable" == caught.value.code


def test_blocks_are_bounded(tmp_path):
    """Finding one prediction unpacks a block, not an hour; values of every kind survive the bounds."""
    source = Source(
        source=0, revision=1, model="m", model_version=1, bundle_digest="d" * 64, task="regression",
        columns=(LoggedColumn("x", ColumnType.NUMBER), LoggedColumn("글", ColumnType.TEXT)),
    )  # fmt: skip
    writer = LogWriter(tmp_path, "churn")
    rng = np.random.default_rng(1)
    n, size = MAX_ROWS + 4_000, 2_000
    x = np.concatenate([rng.normal(size=n - 6), [np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308]])
    words = np.array([f"말{i}" for i in range(n)], dtype=object)
    for at in range(0, n, size):
        stop = min(n, at + size)
        writer.append(
            PredictionBatch(
                source=source, time_ns=T0 + at, latency_us=at % 7, numbers=x[at:stop, None], texts={"글": words[at:stop]},
                outputs=np.zeros((stop - at, 1), np.float32), first=writer.reserve(stop - at),
            )
        )  # fmt: skip
    writer.close(T0 + n)
    (raw,) = (tmp_path / "churn").glob("*.mseg")
    encode_segment(raw)
    kinds = [kind for kind, _ in read_frames(raw.with_suffix(".mcol"), Damage())]
    table = read_predictions(tmp_path, "churn")

    assert 2 == kinds.count(KIND_COLUMNS)
    assert x.tobytes() == table.columns["x"].tobytes()
    assert words.tolist() == table.columns["글"].tolist()
    assert n - 1 == int(find_prediction(tmp_path, writer.id_of(n - 1)).id[16:], 16)


def test_a_segment_that_is_encoded_while_it_is_looked_for_is_read_once(tmp_path, monkeypatch):
    """Listed raw, gone when opened: its encoded form is taken. Both forms listed: one name."""
    raw = write_segment(tmp_path)
    write_segment(tmp_path, prefix=2, time_ns=T0 + HOUR_NS)
    stems = segment_stems(raw.parent)
    expected = facts_of(read_predictions(tmp_path, "churn"))
    opened = type(raw).open

    def encoded_meanwhile(path, *how):
        if path == raw.with_suffix(".mcol") and raw.exists():
            monkeypatch.undo()
            encode_segment(raw)
            raise FileNotFoundError(2, "not yet")
        return opened(path, *how)

    monkeypatch.setattr(type(raw), "open", encoded_meanwhile)
    found = facts_of(read_predictions(tmp_path, "churn"))

    assert expected == found
    assert stems == segment_stems(raw.parent)
    assert not raw.exists()


def test_a_bomb_is_not_unpacked(tmp_path):
    """A section that claims more than it may is refused before its bytes are."""
    raw = write_segment(tmp_path)
    rows = next(iter(iter_segment(raw.parent, raw.stem, SegmentFacts())))
    payload = encode_columns(rows, source=0)
    length = int.from_bytes(payload[:4], "little")
    head = msgspec.msgpack.decode(payload[4 : 4 + length])
    bomb = zlib.compress(b"\0" * (8 << 20))
    head["sections"][0][1:5] = [len(bomb), 2 << 30, 0, True]
    spoiled = msgspec.msgpack.encode(head)
    with pytest.raises(CheckError) as caught:
        decode_columns(memoryview(len(spoiled).to_bytes(4, "little") + spoiled + bomb), rows.source, 1)

    assert "segment-unreadable" == caught.value.code
