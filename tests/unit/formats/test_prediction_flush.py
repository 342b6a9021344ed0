"""A flush of the prediction log: many requests in one write, durable when the disk says so, honest when there is no room."""

import fcntl
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from mulle.core.errors import SpecError, UnavailableError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_log import (
    LoggedColumn,
    LogPolicy,
    LogWriter,
    PredictionBatch,
    Source,
    find_prediction,
    is_sampled,
    read_predictions,
    was_sampled_out,
)
from mulle.formats.segment import lock_closed

T0 = 500_000 * 3_600_000_000_000
SOURCE = Source(
    source=0,
    revision=3,
    model="이탈",
    model_version=7,
    bundle_digest="d" * 64,
    task="binary",
    classes=("No", "Yes"),
    entity="고객",
    columns=(LoggedColumn("tenure", ColumnType.NUMBER), LoggedColumn("계약", ColumnType.TEXT), LoggedColumn("fee", ColumnType.NUMBER)),
)
OTHER = Source(source=0, revision=4, model="이탈", model_version=8, bundle_digest="e" * 64, task="regression", columns=SOURCE.columns)


def batch(writer, n, *, source=SOURCE, time_ns=T0, **changes):
    """Return a batch as the data plane makes it: one matrix, text columns beside it."""
    width = max(1, len(source.classes))
    given = {
        "source": source,
        "time_ns": time_ns,
        "latency_us": np.arange(100, 100 + n, dtype=np.uint32),
        "numbers": np.column_stack([np.arange(n, dtype=np.float64), np.full(n, 9.5)]),
        "texts": {"계약": np.array([MISSING_TEXT if i % 3 == 0 else f"월{i % 2}" for i in range(n)], dtype=object)},
        "outputs": np.full((n, width), 0.5, dtype=np.float32),
        "first": writer.reserve(n),
        "n_requests": n,
    }
    return PredictionBatch(**(given | changes))


@contextmanager
def full_disk(path, room):
    """Let the process write no file beyond this size while the block runs."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, old[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def raw_file(root):
    """Return the one raw segment."""
    (path,) = (root / "churn").glob("*.mseg")
    return path


def test_a_flush_is_one_write(tmp_path, monkeypatch):
    """Batches of two revisions reach the kernel together: all of them are there, or none."""
    writer = LogWriter(tmp_path, "churn")
    writer.append_all([batch(writer, 1), batch(writer, 1, source=OTHER)])
    sizes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: sizes.append(len(data)) or write(descriptor, data))
    n_bytes = writer.append_all([batch(writer, 3), batch(writer, 2, source=OTHER), batch(writer, 1)])
    table = read_predictions(tmp_path, "churn")

    assert [n_bytes] == sizes
    assert [3, 4, 3, 3, 3, 4, 4, 3] == table.revision.tolist()


def test_every_row_keeps_its_own_latency_status_and_id(tmp_path):
    """Requests that shared a batch are told apart; rows without a client's id have the writer's."""
    writer = LogWriter(tmp_path, "churn", prefix=0xABC)
    status = np.array([200, 200, 503], dtype=np.uint16)
    writer.append(batch(writer, 3, ids=[None, "order:7", None], status=status, entity=["가", None, "나"]))
    table = read_predictions(tmp_path, "churn")
    found = find_prediction(tmp_path, "order:7")

    assert [f"{0xABC:016x}{0:012x}", "order:7", f"{0xABC:016x}{2:012x}"] == table.ids.tolist()
    assert ([100, 101, 102], [200, 200, 503]) == (table.latency_us.tolist(), table.status.tolist())
    assert found is not None
    assert (101, 1.0, "월1", 9.5, None) == (
        found.latency_us,
        found.features["tenure"],
        found.features["계약"],
        found.features["fee"],
        found.entity,
    )
    assert find_prediction(tmp_path, writer.id_of(1)) is None


def test_outcomes_count_requests_not_rows(tmp_path):
    """A batch says how many requests it answers."""
    writer = LogWriter(tmp_path, "churn")
    writer.append_all([batch(writer, 6, n_requests=2), batch(writer, 1, source=OTHER)])
    writer.close(T0 + 1)
    outcomes = read_predictions(tmp_path, "churn").outcomes

    assert (2, 1) == (outcomes[3].answered, outcomes[4].answered)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(np.zeros((2, 1)), id="a column short"),
        pytest.param(np.zeros((3, 2)), id="a row too many"),
        pytest.param(None, id="none at all"),
    ],
)
def test_a_matrix_of_another_shape_is_never_written(tmp_path, numbers):
    """It would be read back as other numbers."""
    writer = LogWriter(tmp_path, "churn")
    with pytest.raises(SpecError) as caught:
        writer.append(batch(writer, 2, numbers=numbers))

    assert "log-batch-shape" == caught.value.code
    assert 0 == len(read_predictions(tmp_path, "churn"))


def test_a_model_without_columns_or_outputs_is_logged(tmp_path):
    """Images and tensors leave ids, times and what the graph answered."""
    source = Source(source=0, revision=1, model="m", model_version=1, bundle_digest="d" * 64, task="tensor", columns=())
    writer = LogWriter(tmp_path, "churn")
    for width in (0, 3):
        writer.append(batch(writer, 2, source=source, numbers=None, texts=None, outputs=np.ones((2, width), np.float32)))
    found = find_prediction(tmp_path, writer.id_of(3))

    assert found is not None
    assert ({}, {"output 0": 1.0, "output 1": 1.0, "output 2": 1.0}) == (found.features, found.outputs)
    assert 4 == len(read_predictions(tmp_path, "churn").of_source(0))


def test_a_sync_covers_what_was_appended_before_it(tmp_path, monkeypatch):
    """The mark that `written_through` gave is reached by a sync that began later, over a change of files too."""
    synced = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size) or fdatasync(descriptor))
    writer = LogWriter(tmp_path, "churn", max_segment_bytes=1)
    marks = []
    for i in range(3):
        writer.append(batch(writer, 1, time_ns=T0 + i))
        marks.append(writer.written_through())
    sizes = sorted(path.stat().st_size for path in (tmp_path / "churn").glob("*.mseg"))
    durable = writer.sync()
    again = writer.sync()

    assert [1, 2, 3] == marks
    assert (3, 3) == (durable, again)
    assert sizes == sorted(synced)


@pytest.mark.parametrize("n_meanwhile", [0, 1, 2])
def test_a_failed_sync_is_never_taken_for_a_later_one(tmp_path, monkeypatch, n_meanwhile):
    """The kernel says once that it lost something: rows that joined the lost file meanwhile are lost too, later ones are not."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    first = writer.sync()
    writer.append(batch(writer, 1))
    before = raw_file(tmp_path)

    def broken(_):
        for _ in range(n_meanwhile):
            writer.append(batch(writer, 1))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(UnavailableError) as caught:
        writer.sync()
    monkeypatch.undo()
    lost = writer.lost_through
    idle = writer.sync()
    writer.append(batch(writer, 1, time_ns=T0 + 1))
    files = sorted((tmp_path / "churn").glob("*.mseg"))

    assert ("log-unavailable", 1) == (caught.value.code, first)
    assert (2 + n_meanwhile, 2 + n_meanwhile) == (lost, idle)
    assert (2, before) == (len(files), files[0])
    assert (lost + 1, lost) == (writer.sync(), writer.lost_through)


def test_rows_that_slip_into_a_lost_file_are_told(tmp_path, monkeypatch):
    """A write under way when the sync failed ends after it: the next sync says so instead of covering it."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))

    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(UnavailableError):
        writer.sync()
    monkeypatch.undo()
    lost_file = writer._segment
    monkeypatch.setattr(type(lost_file), "broken", property(lambda _: False))
    writer.append(batch(writer, 1))
    monkeypatch.undo()
    with pytest.raises(UnavailableError) as caught:
        writer.sync()

    assert "log-unavailable" == caught.value.code
    assert (2, 2) == (writer.lost_through, writer.sync())


def test_an_open_segment_is_locked_until_its_writer_moves_on(tmp_path):
    """Nobody who looks for closed segments gets an open one; the lock goes with the file."""
    writer = LogWriter(tmp_path, "churn", max_segment_bytes=1)
    writer.append(batch(writer, 1))
    first = raw_file(tmp_path)
    while_open = lock_closed(first)
    writer.append(batch(writer, 1, time_ns=T0 + 1))
    writer.sync()
    lock = lock_closed(first)

    assert while_open is None
    assert lock is not None
    with pytest.raises(BlockingIOError), first.open("rb") as second:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    assert lock_closed(tmp_path / "nothing") is None


def test_without_room_nothing_unlogged_is_answered(tmp_path):
    """`block`: the flush is refused whole, and goes through when there is room."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 1))
    with full_disk(raw_file(tmp_path), 40), pytest.raises(UnavailableError) as caught:
        writer.append_all([batch(writer, 50), batch(writer, 1, source=OTHER)])
    writer.append(batch(writer, 2, time_ns=T0 + 2))
    table = read_predictions(tmp_path, "churn")

    assert "log-unavailable" == caught.value.code
    assert (3, True, 0) == (len(table), table.gaps.complete, writer.n_dropped)


def test_without_room_losses_are_counted_and_the_window_says_so(tmp_path):
    """`drop`: requests are answered; the first write that works again tells how many are missing, a kill right after it included."""
    writer = LogWriter(tmp_path, "churn", policy=LogPolicy(on_full="drop"))
    writer.append(batch(writer, 1))
    with full_disk(raw_file(tmp_path), 40):
        lost = writer.append_all([batch(writer, 50, n_requests=40), batch(writer, 2, source=OTHER)])
        with pytest.raises(UnavailableError):
            writer.flush_outcomes(T0 + 1)
    writer.append(batch(writer, 2, time_ns=T0 + 2))
    table = read_predictions(tmp_path, "churn")

    assert (0, 52) == (lost, writer.n_dropped)
    assert (3, 40, 2, 42) == (len(table), table.outcomes[3].dropped, table.outcomes[4].dropped, table.gaps.dropped)
    assert (False, 0) == (table.gaps.complete, table.gaps.missing_frames)


@pytest.mark.parametrize(("on_full", "codes", "n_dropped"), [("block", ["log-unavailable"], 0), ("drop", [], 1)])
def test_a_backlog_counts_as_a_full_disk(tmp_path, on_full, codes, n_dropped):
    """When nobody encodes, raw segments must not fill the disk unseen."""
    writer = LogWriter(tmp_path, "churn", policy=LogPolicy(on_full=on_full, max_backlog_bytes=100))
    writer.append(batch(writer, 1))
    measured = writer.measure_backlog()
    refused = []
    try:
        writer.append(batch(writer, 1))
    except UnavailableError as error:
        refused.append(error.code)
    raw_file(tmp_path).unlink()
    after = writer.measure_backlog()
    writer.append(batch(writer, 1))

    assert measured > 100
    assert (0, codes, n_dropped) == (after, refused, writer.n_dropped)


def test_a_sample_is_told_by_the_id_alone(tmp_path):
    """About the share asked for is kept; reader and writer agree about every single id; the window is marked."""
    policy = LogPolicy(sample=0.25)
    writer = LogWriter(tmp_path, "churn", prefix=77, policy=policy)
    for i in range(40):
        writer.append(batch(writer, 50, time_ns=T0 + i, ids=[f"c{i}-{j}" if j < 10 else None for j in range(50)]))
    writer.close(T0 + 99)
    table = read_predictions(tmp_path, "churn")
    every = [f"c{i}-{j}" if j < 10 else writer.id_of(50 * i + j) for i in range(40) for j in range(50)]
    kept = [one for one in every if writer.keeps(one)]

    assert kept == table.ids.tolist()
    assert 400 < len(kept) < 600
    assert (True, False, 2000 - len(kept), 2000) == (table.sampled, table.gaps.complete, table.gaps.sampled_out, table.outcomes[3].answered)
    assert all(writer.keeps(one) != table.left_out(one) for one in every)
    gone = next(one for one in every if not writer.keeps(one))
    assert (None, True, False) == (
        find_prediction(tmp_path, gone),
        was_sampled_out(tmp_path, gone),
        was_sampled_out(tmp_path, kept[0]),
    )
    assert (table.columns["tenure"] % 50).tolist() == [int(one[16:], 16) % 50 if one[0] != "c" else int(one.split("-")[1]) for one in kept]


@pytest.mark.parametrize(("sample", "n"), [(0.0, 0), (1.0, 30)])
def test_none_and_all_are_samples_too(tmp_path, sample, n):
    """At 0 only counts are kept."""
    writer = LogWriter(tmp_path, "churn", policy=LogPolicy(sample=sample))
    writer.append(batch(writer, 30))
    writer.close(T0 + 1)
    table = read_predictions(tmp_path, "churn")

    assert (n, 30) == (len(table), table.outcomes[3].answered)
    assert is_sampled("order:1", sample=sample, key=1) is (sample == 1.0)


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(sample):
    """Before anything is logged."""
    with pytest.raises(SpecError) as caught:
        LogPolicy(sample=sample)

    assert "log-sample" == caught.value.code


def test_redacted_columns_never_reach_the_disk(tmp_path):
    """Named columns and the entity are missing, and the source says that they were taken out; others are untouched."""
    policy = LogPolicy(redact=frozenset({"tenure", "계약", "고객", "not a column"}))
    writer = LogWriter(tmp_path, "churn", policy=policy)
    given = batch(writer, 4, entity=["비밀"] * 4, texts={"계약": np.array(["비밀"] * 4, dtype=object)}, ids=["a", "b", "c", "d"])
    writer.append(given)
    writer.append(batch(writer, 1, source=OTHER))
    writer.close(T0 + 1)
    table = read_predictions(tmp_path, "churn")
    found = find_prediction(tmp_path, "b")

    assert found is not None
    assert ({"tenure": None, "계약": None, "fee": 9.5}, None) == (found.features, found.entity)
    assert ("tenure", "계약", "고객") == found.redacted
    assert [("tenure", "계약", "고객"), ("tenure", "계약")] == [source.redacted for source in table.sources]
    assert "비밀".encode() not in raw_file(tmp_path).read_bytes()
    assert [0.0, 1.0, 2.0, 3.0] == given.numbers[:, 0].tolist()
