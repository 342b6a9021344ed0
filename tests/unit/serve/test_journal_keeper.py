"""The keeper: encodes what was closed, ships what was not, lets go what is too old, and says what it did."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from mulle.core.errors import CheckError, SpecError, UnavailableError
from mulle.formats.prediction_log import LogWriter, read_predictions
from mulle.serve.journal.keeper import LOCK_NAME, Keeper, KeeperConfig, command, parse
from mulle.serve.journal.retention import NS_PER_DAY, KeptSegment, plan_retention
from mulle.serve.journal.shipping import Shipper, marker_path, read_marker
from mulle.serve.journal.sink_folder import FolderSink
from mulle.serve.journal.status import KeeperStatus, read_keeper_status, write_keeper_status
from support.logs import HOUR_NS, T0, batch, facts_of, write_segment

SEGMENTS = [KeptSegment(T0 + i * NS_PER_DAY, f"churn/{i}", 100, i != 1) for i in range(5)]
NOW = T0 + 5 * NS_PER_DAY


@pytest.mark.parametrize(
    ("keep_days", "keep_bytes", "other_bytes", "expected"),
    [
        pytest.param(None, None, 10**9, [], id="no limit lets nothing go"),
        pytest.param(2.5, None, 0, [0, 2], id="by age; the one that is not shipped stays"),
        pytest.param(99, None, 0, [], id="all are young"),
        pytest.param(None, 500, 0, [], id="exactly what is allowed"),
        pytest.param(None, 400, 0, [0], id="the oldest goes"),
        pytest.param(None, 250, 0, [0, 2, 3], id="until it fits; the one that is not shipped stays"),
        pytest.param(None, 400, 150, [0, 2, 3], id="raw segments count and never go"),
        pytest.param(None, 0, 0, [0, 2, 3, 4], id="even all of them are not enough"),
        pytest.param(4.5, 300, 0, [0, 2], id="age and size together"),
    ],
)
def test_retention_lets_the_oldest_go(keep_days, keep_bytes, other_bytes, expected):
    """Whole segments, oldest first, never one that is still needed."""
    shuffled = [SEGMENTS[i] for i in (3, 0, 4, 2, 1)]
    gone = plan_retention(shuffled, now_ns=NOW, keep_days=keep_days, keep_bytes=keep_bytes, other_bytes=other_bytes)

    assert [f"churn/{i}" for i in expected] == [segment.name for segment in gone]


def keeper(root, now_ns=T0, monotonic_s=None, **config):
    """Return a keeper whose time is in the test's hand."""
    return Keeper(KeeperConfig(root=root, **config), now_ns=lambda: now_ns, monotonic_s=monotonic_s or time.monotonic, jitter=lambda: 0.5)


def test_a_look_encodes_ships_and_counts(tmp_path):
    """Two deployments, a folder as sink: everything closed is encoded and shipped, and the status says so."""
    root, sink = tmp_path / "logs", tmp_path / "sink"
    raw = [write_segment(root), write_segment(root, prefix=2, time_ns=T0 + HOUR_NS), write_segment(root, name="fraud")]
    raw_bytes = sum(path.stat().st_size for path in raw)
    writer = LogWriter(root, "churn", prefix=9)
    writer.append(batch(writer, 2))
    before = facts_of(read_predictions(root, "churn"))
    status = keeper(root, sink=str(sink)).look()
    shipped = sorted(path.relative_to(sink).as_posix() for path in sink.rglob("*.mcol"))
    kept = [path.with_suffix(".mcol") for path in raw]
    marker = read_marker(kept[0])
    told = read_keeper_status(root)
    after = facts_of(read_predictions(root, "churn"))
    writer.close(T0)

    assert told == status
    assert (3, 270, raw_bytes, 3, 0) == (
        status.encoded_segments,
        status.encoded_rows,
        status.raw_bytes,
        status.kept_segments,
        status.pending_bytes,
    )
    assert sum(path.stat().st_size for path in kept) == status.encoded_bytes == status.kept_bytes == status.shipped_bytes
    assert (3, 0, "", sink.as_uri()) == (status.shipped_segments, status.waiting_segments, status.last_error, status.sink)
    assert status.open_bytes > 0
    assert sorted(f"{path.parent.name}/{path.name}" for path in kept) == shipped
    assert hashlib.sha256((sink / shipped[0]).read_bytes()).hexdigest() == marker.sha256
    assert before == after


def test_counts_go_on_over_a_restart(tmp_path):
    """A restarted keeper adds to what was counted, and ships nothing a second time."""
    write_segment(tmp_path / "logs")
    keeper(tmp_path / "logs", sink=str(tmp_path / "sink")).look()
    (shipped,) = (tmp_path / "sink").rglob("*.mcol")
    changed = shipped.stat().st_mtime_ns
    write_segment(tmp_path / "logs", prefix=2)
    status = keeper(tmp_path / "logs", sink=str(tmp_path / "sink")).look()

    assert (2, 2) == (status.encoded_segments, status.shipped_segments)
    assert changed == shipped.stat().st_mtime_ns


def test_another_sink_gets_everything_again(tmp_path):
    """A marker names the sink it is about."""
    write_segment(tmp_path / "logs")
    for name in ("one", "two"):
        keeper(tmp_path / "logs", sink=str(tmp_path / name)).look()

    assert [1, 1] == [len(list((tmp_path / name).rglob("*.mcol"))) for name in ("one", "two")]


def test_what_is_not_shipped_is_never_let_go(tmp_path):
    """The sink is away: its segments wait, over age and over size; when it is back they are shipped, and go."""
    root, mount = tmp_path / "logs", tmp_path / "mount"
    write_segment(root)
    late = T0 + 90 * NS_PER_DAY
    moment_s = [0.0]
    one = keeper(root, late, lambda: moment_s[0], sink=str(mount / "sink"), keep_days=1, keep_bytes=0)
    away = msgspec.structs.replace(one.look())
    mount.mkdir()
    soon = msgspec.structs.replace(one.look())
    moment_s[0] = 2.0
    back = one.look()

    assert (1, 1, 0, "log-sink-unavailable") == (away.kept_segments, away.ship_failures, away.deleted_segments, away.last_error)
    assert (1, 0) == (soon.waiting_segments, soon.shipped_segments)
    assert (0, 1, 1) == (back.kept_segments, back.shipped_segments, back.deleted_segments)
    assert [] == list((root / "churn").iterdir())
    assert 1 == len(list(mount.rglob("*.mcol")))


def test_tries_are_spread_and_get_rarer(tmp_path):
    """1, 2, 4 … seconds, at most five minutes, each times a half to one and a half; success begins anew."""
    raw = write_segment(tmp_path / "logs")
    keeper(tmp_path / "logs").look()
    segment = raw.with_suffix(".mcol")
    shipper = Shipper(FolderSink(tmp_path / "mount" / "sink"), lambda: 0.5)
    delays = []
    for _ in range(12):
        with pytest.raises(UnavailableError):
            shipper.ship(segment, now_ns=T0, monotonic_s=100.0)
        delays.append(shipper.not_before_s - 100)
    (tmp_path / "mount").mkdir()
    shipper.ship(segment, now_ns=T0, monotonic_s=100.0)
    early, late = (Shipper(FolderSink(tmp_path / "none" / "sink"), lambda jitter=jitter: jitter) for jitter in (0.0, 0.999))
    for one in (early, late):
        with pytest.raises(UnavailableError):
            one.ship(segment, now_ns=T0, monotonic_s=100.0)

    assert [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300] == delays
    assert (0, 0.0) == (shipper.n_failed, shipper.not_before_s)
    assert 100.5 == early.not_before_s < late.not_before_s < 101.5


def test_retention_takes_marker_and_segment(tmp_path):
    """Old segments go with what lies beside them, and are counted; young ones and open ones stay."""
    root = tmp_path / "logs"
    old, young = write_segment(root), write_segment(root, prefix=2, time_ns=T0 + 9 * NS_PER_DAY)
    writer = LogWriter(root, "churn", prefix=9)
    writer.append(batch(writer, 2))
    keeper(root, sink=str(tmp_path / "sink")).look()
    size = old.with_suffix(".mcol").stat().st_size
    status = keeper(root, T0 + 10 * NS_PER_DAY, sink=str(tmp_path / "sink"), keep_days=5).look()
    left = sorted(path.name for path in (root / "churn").iterdir())
    writer.close(T0)

    assert sorted([young.with_suffix(".mcol").name, marker_path(young.with_suffix(".mcol")).name, writer_file(root)]) == left
    assert (1, size) == (status.deleted_segments, status.deleted_bytes)


def writer_file(root):
    """Return the name of the one raw segment."""
    (path,) = (root / "churn").glob("*.mseg")
    return path.name


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    """Old drafts and markers of nothing go; a young draft may be about to be written."""
    folder = tmp_path / "churn"
    write_segment(tmp_path)
    stem = f"predictions-20270115T08-{5:016x}-00000"
    for name in (f".{stem}.mseg.tmp", f".{stem}.mcol.tmp", f"{stem}.mcol.shipped"):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, ns=(T0, T0))
    (folder / f".{stem}-young.mseg.tmp").write_bytes(b"")
    os.utime(folder / f".{stem}-young.mseg.tmp", ns=(T0 + 100 * 10**9, T0 + 100 * 10**9))
    keeper(tmp_path, T0 + 120 * 10**9).look()

    assert [f".{stem}-young.mseg.tmp"] == [path.name for path in folder.iterdir() if path.suffix != ".mcol"]


def test_what_cannot_be_encoded_is_told_once_and_stays(tmp_path):
    """A file of another version does not stop the others, and is not looked at every five seconds."""
    raw = write_segment(tmp_path)
    stranger = raw.with_name(raw.name.replace(f"{1:016x}", f"{7:016x}"))
    stranger.write_bytes(b"something else entirely")
    one = keeper(tmp_path)
    one.look()
    status = one.look()

    assert (1, 1, "segment-unknown") == (status.encoded_segments, status.failures, status.last_error)
    assert (1, stranger.stat().st_size) == (status.pending_segments, status.pending_bytes)
    assert b"something else entirely" == stranger.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="half written"),
        pytest.param(b'{"format": "mulle.keeper-status", "version": 2}', id="of another version"),
        pytest.param(b'{"pid": "x"}', id="another type"),
    ],
)
def test_a_status_that_cannot_be_read_is_said(tmp_path, content):
    """And a keeper begins a new one."""
    (tmp_path / "keeper.json").write_bytes(content)
    with pytest.raises(CheckError) as caught:
        read_keeper_status(tmp_path)
    keeper(tmp_path).look()

    assert "format-unreadable" == caught.value.code
    assert T0 == read_keeper_status(tmp_path).time_ns


def test_a_status_is_what_was_written(tmp_path):
    """None before the first; one file, no leftovers."""
    before = read_keeper_status(tmp_path)
    status = KeeperStatus(encoded_rows=7, last_error="log-unavailable", last_error_what="가득")
    write_keeper_status(tmp_path, status)

    assert before is None
    assert status == read_keeper_status(tmp_path)
    assert ["keeper.json"] == [path.name for path in tmp_path.iterdir()]


def test_a_command_line_says_the_whole_configuration():
    """What the server starts is what was configured; no secret could stand in it."""
    config = KeeperConfig(
        root=Path("/logs"),
        deployments=("churn", "fraud"),
        keep_days=1.5,
        keep_bytes=7,
        sink="s3://b/p",
        interval_s=0.5,
        linger_s=3.0,
        level=6,
    )

    assert (False, config) == parse(command(config)[3:])
    assert (False, KeeperConfig(root=Path("/logs"))) == parse(command(KeeperConfig(root=Path("/logs")))[3:])


@pytest.mark.parametrize(
    "config",
    [{"sink": "ftp://x"}, {"deployments": ("../x",)}, {"sink": "s3://b?endpoint=http://k:s@h"}],
    ids=["protocol", "name", "secret"],
)
def test_a_keeper_refuses_what_it_cannot_do(tmp_path, config):
    """At once, not at the first segment."""
    with pytest.raises(SpecError):
        keeper(tmp_path, **config)


def start(root, **config):
    """Start a keeper's process as the server does."""
    line = command(KeeperConfig(root=root, interval_s=0.05, **config))
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_until(condition, seconds=20):
    """Wait until a condition holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_the_process_takes_a_last_look_when_its_parent_is_gone(tmp_path):
    """Segments closed by the server's last act are encoded before the keeper ends; it is nicer than its parent."""
    writer = LogWriter(tmp_path, "churn")
    writer.append(batch(writer, 3))
    process = start(tmp_path)
    wait_until(lambda: read_keeper_status(tmp_path) is not None)
    nice = os.getpriority(os.PRIO_PROCESS, process.pid)
    writer.close(T0)
    process.stdin.close()
    code = process.wait(20)
    process.stderr.close()

    assert 0 == code
    assert 19 == nice
    assert ([], 3) == (list((tmp_path / "churn").glob("*.mseg")), read_keeper_status(tmp_path).encoded_rows)


def test_the_process_ends_at_sigterm(tmp_path):
    """At once, with exit code 0."""
    process = start(tmp_path)
    wait_until(lambda: read_keeper_status(tmp_path) is not None)
    process.terminate()
    code = process.wait(5)
    process.stdin.close()
    process.stderr.close()

    assert 0 == code


def test_only_one_keeper_works_on_a_folder(tmp_path):
    """The second waits, and takes over when the first is killed."""
    first = start(tmp_path)
    wait_until(lambda: read_keeper_status(tmp_path) is not None)
    second = start(tmp_path)
    time.sleep(0.5)
    working = read_keeper_status(tmp_path).pid
    first.kill()
    first.wait()
    wait_until(lambda: read_keeper_status(tmp_path).pid == second.pid)
    for process in (first, second):
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()

    assert first.pid == working
    assert (tmp_path / LOCK_NAME).exists()


def test_one_look_on_demand(tmp_path):
    """`--once` prints what keeper.json says; a failure is exit code 1, a wrong sink 2."""
    raw = write_segment(tmp_path)
    line = [sys.executable, "-m", "mulle.serve.journal.keeper", "--root", str(tmp_path), "--once"]
    good = subprocess.run(line, capture_output=True, check=False)
    raw.write_bytes(b"something else")
    failed = subprocess.run(line, capture_output=True, check=False)
    wrong = subprocess.run([*line, "--sink", "s3://key:hunter2@bucket"], capture_output=True, check=False)

    assert (0, 1, 2) == (good.returncode, failed.returncode, wrong.returncode)
    assert 90 == json.loads(good.stdout)["encoded_rows"]
    assert b"segment-unknown" in failed.stderr
    assert b"log-sink-secret" in wrong.stderr
    assert b"hunter2" not in wrong.stderr


def test_the_keeper_compresses_as_the_format_recommends():
    """The level stands twice, so that starting a server does not load the encoder."""
    from mulle.formats import prediction_columns
    from mulle.serve.journal import config

    assert prediction_columns.LEVEL == config.LEVEL
