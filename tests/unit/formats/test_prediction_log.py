"""The prediction log: written by batches, read as a window, honest about what is missing."""

import os
import struct

import msgspec
import numpy as np
import pytest

from mulle.core.errors import CheckError, SpecError, UnavailableError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_frames import KIND_HEADER, SegmentHeader
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source, find_prediction, known_prefixes, read_predictions
from mulle.formats.segment import HEAD_BYTES, MAGIC, frame

HOUR_NS = 3_600_000_000_000
T0 = 500_000 * HOUR_NS
SOURCE = Source(
    source=0,
    revision=3,
    model="이탈",
    model_version=7,
    bundle_digest="d" * 64,
    run_id="run-7",
    task="binary",
    classes=("No", "Yes"),
    positive="Yes",
    entity="customer_id",
    columns=(LoggedColumn("tenure", ColumnType.NUMBER), LoggedColumn("계약", ColumnType.TEXT), LoggedColumn("flag", ColumnType.BOOLEAN)),
)
REGRESSION = Source(
    source=0,
    revision=4,
    model="이탈",
    model_version=8,
    bundle_digest="e" * 64,
    task="regression",
    columns=(LoggedColumn("tenure", ColumnType.NUMBER),),
)


def batch(writer, n, *, time_ns=T0, source=SOURCE, **changes):
    """Return a batch of `n` rows whose values tell their row."""
    arrays = {
        "tenure": np.arange(n, dtype=np.float64),
        "계약": np.array([MISSING_TEXT if i % 3 == 0 else f"월{i % 2}" for i in range(n)], dtype=object),
        "flag": np.where(np.arange(n) % 2 == 0, 1.0, np.nan),
    }
    width = max(1, len(source.classes))
    return PredictionBatch(
        source=source,
        time_ns=time_ns,
        latency_us=321,
        arrays={c.name: arrays[c.name] for c in source.columns},
        outputs=np.full((n, width), 0.5, dtype=np.float32),
        first=writer.reserve(n),
        **changes,
    )


def the_file(root):
    (path,) = (root / "churn").glob("*.mseg")
    return path


def test_rows_come_back_as_they_were_logged(tmp_path):
    """Every column, output, id and label of a row survives, missing values included."""
    writer = LogWriter(tmp_path, "churn", prefix=0xABC)
    writer.append(batch(writer, 4, entity=["가", None, "나", "가"]))
    writer.append(batch(writer, 2, time_ns=T0 + 1))
    writer.close(T0 + 2)
    table = read_predictions(tmp_path, "churn")

    assert 6 == len(table)
    assert [f"{0xABC:016x}{i:012x}" for i in range(6)] == table.ids.tolist()
    assert [0, 1, 2, 3, 0, 1] == table.columns["tenure"].tolist()
    assert [MISSING_TEXT, "월1", "월0", MISSING_TEXT, MISSING_TEXT, "월1"] == table.columns["계약"].tolist()
    assert ["가", None, "나", "가", None, None] == table.entity.tolist()
    assert ({3}, {7}, {200}, {321}) == tuple(set(a.tolist()) for a in (table.revision, table.model_version, table.status, table.latency_us))
    assert ((6, 2), True, 2) == (table.outputs.shape, table.gaps.complete, table.outcomes[3].answered)
    assert (SOURCE,) == table.sources


def test_a_deployment_without_a_log_is_an_empty_window(tmp_path):
    """Nothing logged is not an error."""
    table = read_predictions(tmp_path, "churn")

    assert (0, True, (0, 1)) == (len(table), table.gaps.complete, table.outputs.shape)


@pytest.mark.parametrize(
    ("since", "until", "last", "expected"),
    [
        pytest.param(None, None, None, [0, 1, 2, 3, 4], id="everything"),
        pytest.param(1, 3, None, [1, 2], id="from here, up to there exclusive"),
        pytest.param(None, None, 2, [3, 4], id="the newest two"),
        pytest.param(None, 3, 2, [1, 2], id="the newest two before a moment"),
        pytest.param(None, None, 0, [], id="none of them"),
        pytest.param(None, None, 99, [0, 1, 2, 3, 4], id="more than there are"),
    ],
)
def test_a_window_is_cut_by_time_and_number(tmp_path, since, until, last, expected):
    """Hours are files; a window crosses them without noticing."""
    writer = LogWriter(tmp_path, "churn")
    for hour in range(5):
        writer.append(batch(writer, 1, time_ns=T0 + hour * HOUR_NS + 5))
    writer.close(T0 + 5 * HOUR_NS)
    moments = [None if hour is None else T0 + hour * HOUR_NS for hour in (since, until)]
    table = read_predictions(tmp_path, "churn", since_ns=moments[0], until_ns=moments[1], last=last)

    assert expected == ((table.time_ns - T0) // HOUR_NS).tolist()


def test_two_sources_share_a_window(tmp_path):
    """A reload changes columns and outputs; both kinds of rows stay readable, apart and together."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 2))
    writer.append(batch(writer, 3, time_ns=T0 + 1, source=REGRESSION))
    writer.close(T0 + 2)
    table = read_predictions(tmp_path, "churn")
    second = table.of_source(1)

    assert [3, 3, 4, 4, 4] == table.revision.tolist()
    assert table.columns["계약"].tolist()[2:] == [MISSING_TEXT] * 3
    assert (["tenure"], (3, 1)) == (list(second.columns), second.outputs.shape)
    assert np.isnan(table.outputs[2:, 1]).all()


def test_writers_do_not_disturb_each_other(tmp_path):
    """Two processes write their own files; a window is sorted by time over both."""
    one, two = (LogWriter(tmp_path, "churn", prefix=p) for p in (1, 2))
    two.append(batch(two, 1, time_ns=T0 + 1))
    one.append(batch(one, 1, time_ns=T0))
    one.append(batch(one, 1, time_ns=T0 + 2))
    one.close(T0 + 3)
    two.close(T0 + 3)

    assert [one.id_of(0), two.id_of(0), one.id_of(1)] == read_predictions(tmp_path, "churn").ids.tolist()
    assert {f"{1:016x}", f"{2:016x}"} == known_prefixes(tmp_path, "churn")


def test_a_full_segment_is_followed_by_another(tmp_path):
    """Segments are bounded, and each describes its sources itself."""
    writer = LogWriter(tmp_path, "churn", max_segment_bytes=1)
    for i in range(4):
        writer.append(batch(writer, 1, time_ns=T0 + i))
    writer.close(T0 + 9)
    files = sorted((tmp_path / "churn").glob("*.mseg"))

    assert 4 <= len(files)
    assert 4 == len(read_predictions(tmp_path, "churn"))


@pytest.mark.parametrize("cut", [1, 5, HEAD_BYTES + 3, 60])
def test_a_torn_tail_costs_only_itself(tmp_path, cut):
    """A host that crashed within a write leaves half a frame: everything before it is read, and the loss is said."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 2))
    writer.append(batch(writer, 3, time_ns=T0 + 1))
    path = the_file(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    table = read_predictions(tmp_path, "churn")

    assert (2, 1, False) == (len(table), table.gaps.damage.torn_tails, table.gaps.complete)


def test_a_flipped_byte_costs_only_its_frame(tmp_path):
    """A changed payload fails its checksum; the frames behind it are read, and the gap is counted twice over."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    before = the_file(tmp_path).stat().st_size
    writer.append(batch(writer, 2, time_ns=T0 + 1))
    writer.append(batch(writer, 4, time_ns=T0 + 2))
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[before + HEAD_BYTES + 20] ^= 1
    path.write_bytes(bytes(data))
    table = read_predictions(tmp_path, "churn")

    assert (5, 1, 1, False) == (len(table), table.gaps.damage.corrupt_frames, table.gaps.missing_frames, table.gaps.complete)


def test_a_broken_frame_head_ends_the_file(tmp_path):
    """Without a length nothing says where the next frame begins: the rest is counted as lost."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    before = the_file(tmp_path).stat().st_size
    writer.append(batch(writer, 2, time_ns=T0 + 1))
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[before + 5] ^= 0xFF
    path.write_bytes(bytes(data))
    table = read_predictions(tmp_path, "churn")

    assert (1, len(data) - before, False) == (len(table), table.gaps.damage.lost_bytes, table.gaps.complete)


def test_a_lost_description_is_a_gap_not_an_error(tmp_path):
    """When the frame that describes a source is damaged, its rows are counted as missing."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index("이탈".encode())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    table = read_predictions(tmp_path, "churn")

    assert (0, False) == (len(table), table.gaps.complete)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"something else entirely", "segment-unknown", id="not a segment"),
        pytest.param(MAGIC[:8] + struct.pack("<I", 2), "segment-unknown", id="a newer framing"),
    ],
)
def test_a_reader_refuses_what_it_does_not_know(tmp_path, data, code):
    """Another format, or a newer one, is named instead of guessed at."""
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / f"predictions-20270115T08-{1:016x}-00000.mseg").write_bytes(data)
    with pytest.raises(CheckError) as caught:
        read_predictions(tmp_path, "churn")

    assert code == caught.value.code


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_of_the_log_is_refused(tmp_path, version):
    """The header's version is compared before any row is used."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    path = the_file(tmp_path)
    header = SegmentHeader("mulle.predictions", version, "churn", "0", "x", 0, 0)
    path.write_bytes(MAGIC + frame(KIND_HEADER, msgspec.msgpack.encode(header)))
    with pytest.raises(CheckError) as caught:
        read_predictions(tmp_path, "churn")

    assert "format-unknown" == caught.value.code


def test_outcomes_without_rows_are_counted_per_revision(tmp_path):
    """Refused and failed requests leave no rows, and are not forgotten."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 5))
    for outcome, n in (("refused", 3), ("failed", 2)):
        for _ in range(n):
            writer.count(3, outcome, T0)
    writer.count(0, "refused", T0)
    writer.flush_outcomes(T0 + 1)
    writer.count(3, "refused", T0 + 2)
    writer.close(T0 + 3)
    outcomes = read_predictions(tmp_path, "churn").outcomes

    assert (1, 4, 2, 1) == (outcomes[3].answered, outcomes[3].refused, outcomes[3].failed, outcomes[0].refused)


def test_a_prediction_is_found_by_its_id(tmp_path):
    """Own ids lead to their file; a client's ids are looked for everywhere; the first of two wins."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 3, entity=["가", "나", None]))
    writer.append(batch(writer, 1, time_ns=T0 + 1, ids=["order:42"]))
    writer.append(batch(writer, 1, time_ns=T0 + 2, ids=["order:42"]))
    writer.close(T0 + 3)
    own = find_prediction(tmp_path, writer.id_of(1))
    client = find_prediction(tmp_path, "order:42", deployment="churn")

    assert own is not None
    assert client is not None
    assert ("나", {"tenure": 1.0, "계약": "월1", "flag": None}) == (own.entity, own.features)
    assert ({"No": 0.5, "Yes": 0.5}, 7, "run-7", "churn") == (own.outputs, own.source.model_version, own.source.run_id, own.deployment)
    assert T0 + 1 == client.time_ns
    assert find_prediction(tmp_path, "nobody") is None


def test_a_writer_knows_which_ids_it_gave_out():
    """Only its own prefix, and only numbers already given out."""
    writer = LogWriter.__new__(LogWriter)
    writer.prefix, writer._next_row = 5, 2

    assert [True, True, False, False, False] == [
        writer.issued(text) for text in (writer.id_of(0), writer.id_of(1), writer.id_of(2), "x", f"{5:016x}{'z' * 12}")
    ]


def test_a_full_disk_leaves_no_half_frame(tmp_path):
    """A write that does not fit raises, takes its bytes back, and the log goes on when there is room again."""
    import resource
    import signal

    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    path = the_file(tmp_path)
    size = path.stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, old[1]))
        with pytest.raises(UnavailableError) as caught:
            writer.append(batch(writer, 50, time_ns=T0 + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    kept = path.stat().st_size
    writer.append(batch(writer, 2, time_ns=T0 + 2))
    writer.close(T0 + 3)
    table = read_predictions(tmp_path, "churn")

    assert ("log-unavailable", size) == (caught.value.code, kept)
    assert (3, True) == (len(table), table.gaps.complete)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file where the folder should be is an error with a fix, not a traceback."""
    (tmp_path / "churn").write_text("in the way", encoding="utf-8")
    writer = LogWriter(tmp_path, "churn")
    with pytest.raises(UnavailableError) as caught:
        writer.append(batch(writer, 1))

    assert "log-unavailable" == caught.value.code


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ""])
def test_a_hostile_deployment_name_is_refused(tmp_path, name):
    """Names become folders: they are checked on writing and on reading."""
    with pytest.raises(SpecError):
        LogWriter(tmp_path, name)
    with pytest.raises(SpecError):
        read_predictions(tmp_path, name)


def test_many_categories_take_wider_codes(tmp_path):
    """More than 255 and more than 65,535 distinct texts in one batch survive."""
    n = 70_000
    writer = LogWriter(tmp_path, "churn")
    source = msgspec.structs.replace(SOURCE, columns=(LoggedColumn("계약", ColumnType.TEXT),))
    for size in (300, n):
        values = np.array([f"값{i}" for i in range(size)], dtype=object)
        writer.append(
            PredictionBatch(
                source=source,
                time_ns=T0,
                latency_us=1,
                arrays={"계약": values},
                outputs=np.zeros((size, 2), np.float32),
                first=writer.reserve(size),
            )
        )
    writer.close(T0 + 1)
    table = read_predictions(tmp_path, "churn")

    assert [f"값{i}" for i in range(300)] + [f"값{i}" for i in range(n)] == table.columns["계약"].tolist()
