"""The keeper killed, starved of disk, given spoiled files: what was logged is read back, once."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mulle.core.errors import UnavailableError
from mulle.formats.prediction_log import LogWriter, find_prediction, read_predictions
from mulle.formats.segment import lock_closed
from mulle.serve.journal.keeper import Keeper, KeeperConfig
from mulle.serve.journal.shipping import marker_path
from support.logs import T0, batch, facts_of, write_segment

pytestmark = pytest.mark.chaos

KEEPER = """
import sys, time
from pathlib import Path
from mulle.serve.journal.keeper import Keeper, KeeperConfig
keeper = Keeper(KeeperConfig(root=Path(sys.argv[1]), sink=sys.argv[2]))
print("ready", flush=True)
while True:
    keeper.look()
"""

WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from mulle.formats.prediction_log import LogWriter
from support.logs import T0, batch
writer = LogWriter(Path(sys.argv[1]), "churn", max_segment_bytes=20_000)
at = T0
while True:
    at += 1_000_000
    flush = [batch(writer, 5, time_ns=at, revision=1 + i % 2) for i in range(3)]
    writer.append_all(flush)
    print(" ".join(writer.id_of(one.first + i) for one in flush for i in range(5)), flush=True)
    writer.sync()
    time.sleep(0.001)
"""

EVERY_LINE = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import mulle.serve.journal.encoder as encoder
from mulle.formats.prediction_log import read_predictions
from support.logs import facts_of
folder = Path(sys.argv[1])
raw = next((folder / "whole" / "churn").glob("*.mseg"))
expected = facts_of(read_predictions(folder / "whole", "churn"))
n, killed = 0, True
while killed:
    n += 1
    root = folder / "now"
    shutil.copytree(folder / "whole", root)
    mine = root / "churn" / raw.name
    child = os.fork()
    if child == 0:
        left = [n]

        def line(frame, event, _):
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
            return line

        sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename == encoder.__file__ else None)
        encoder.encode_segment(mine)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert facts_of(read_predictions(root, "churn")) == expected, f"killed at line event {n}"
    encoder.encode_segment(mine)
    assert facts_of(read_predictions(root, "churn")) == expected, f"finished after line event {n}"
    assert [mine.with_suffix(".mcol")] == [path for path in (root / "churn").iterdir() if path.suffix != ".tmp"], n
    shutil.rmtree(root)
print(n)
"""


def support_folder():
    """Return the folder that holds `support`, for a process of its own."""
    return next(place for place in sys.path if os.path.isdir(os.path.join(place, "support")))  # noqa: PTH112, PTH118 - as sys.path has it


def test_an_encoder_killed_at_any_line_loses_nothing_and_doubles_nothing(tmp_path):
    """Ended without a word before each single line it runs: every reader sees the whole window, and the next keeper finishes."""
    write_segment(tmp_path / "whole", n_flushes=2, n_rows=3)
    done = subprocess.run(
        [sys.executable, "-c", EVERY_LINE, str(tmp_path), support_folder()], capture_output=True, check=False, timeout=240
    )

    assert 0 == done.returncode, done.stderr.decode()
    assert int(done.stdout) > 100


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_twenty_kills_of_keeper_and_writer(tmp_path):
    """Killed with -9 at random moments while the log grows, is encoded and shipped: what was acknowledged is there, once."""
    rng = np.random.default_rng(20)
    root, sink = tmp_path / "logs", tmp_path / "sink"
    acknowledged: list[str] = []
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(root), support_folder()], stdout=subprocess.PIPE)
        keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(root), str(sink)], stdout=subprocess.PIPE)
        keeper.stdout.readline()
        acknowledged += writer.stdout.readline().decode().split()
        earlier = set(acknowledged)
        beside = read_predictions(root, "churn")
        time.sleep(rng.uniform(0.0, 0.25))
        keeper.send_signal(signal.SIGKILL)
        table = read_predictions(root, "churn")
        time.sleep(rng.uniform(0.0, 0.02))
        writer.send_signal(signal.SIGKILL)
        said, _ = writer.communicate()
        keeper.communicate()
        # A line cut by the kill was written by a writer whose rows were in the kernel before.
        acknowledged += [one for one in said.decode().split() if len(one) == 28]

        assert earlier <= set(beside.ids)
        assert [len(beside), len(table)] == [len(set(beside.ids)), len(set(table.ids))]
    whole = facts_of(read_predictions(root, "churn"))
    last = Keeper(KeeperConfig(root=root, sink=str(sink))).look()
    table = read_predictions(root, "churn")

    assert len(acknowledged) > 1_000
    assert len(set(table.ids)) == len(table)
    assert set(acknowledged) <= set(table.ids)
    assert whole == facts_of(table)
    assert (0, 0, "") == (table.gaps.missing_frames, table.gaps.damage.corrupt_frames, last.last_error)
    assert [] == list((root / "churn").glob("*.mseg"))
    kept = sorted((root / "churn").glob("*.mcol"))
    assert [path.read_bytes() for path in kept] == [(sink / "churn" / path.name).read_bytes() for path in kept]
    assert all(marker_path(path).exists() for path in kept)
    assert find_prediction(root, acknowledged[len(acknowledged) // 2]) is not None


def test_a_killed_writers_segment_is_closed_and_a_stopped_ones_is_not(tmp_path):
    """A stopped process still holds its lock, however long it is silent; a killed one does not."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), support_folder()], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.send_signal(signal.SIGSTOP)
    os.waitpid(writer.pid, os.WUNTRACED)
    newest = max((tmp_path / "churn").glob("*.mseg"))
    stopped = lock_closed(newest)
    before = Keeper(KeeperConfig(root=tmp_path)).look()
    still_there = newest.exists()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    Keeper(KeeperConfig(root=tmp_path)).look()

    assert stopped is None
    assert (0, True) == (before.pending_segments, still_there)
    assert [] == list((tmp_path / "churn").glob("*.mseg"))


@contextmanager
def largest_file(n_bytes):
    """Let the process write no file beyond this size while the block runs."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, old[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 5, 300, 2_000])
def test_a_keeper_without_room_waits(tmp_path, room):
    """Wherever the disk ends, the raw segments stay and are read; with room again the same keeper goes on."""
    write_segment(tmp_path)
    before = facts_of(read_predictions(tmp_path, "churn"))
    moment_s = [0.0]
    keeper = Keeper(KeeperConfig(root=tmp_path), monotonic_s=lambda: moment_s[0])
    with largest_file(room):
        full = keeper.look()
    told = (full.encoded_segments, full.pending_segments, full.last_error)
    during = facts_of(read_predictions(tmp_path, "churn"))
    moment_s[0] = 60.0
    status = keeper.look()

    assert (0, 1, "log-unavailable") == told
    assert before == during == facts_of(read_predictions(tmp_path, "churn"))
    assert (1, 0) == (status.encoded_segments, status.pending_segments)
    assert ["keeper.json"] == [path.name for path in tmp_path.iterdir() if path.is_file()]


def test_a_full_file_system_stops_neither_reading_nor_the_keeper(tmp_path):
    """On a file system of its own with not a byte left: the writer refuses, the keeper waits, and both go on with room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "mulle-test", str(disk)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        writer = LogWriter(disk, "churn", max_segment_bytes=40_000)
        n_logged = 0
        refused = None
        while refused is None:
            try:
                writer.append(batch(writer, 50, time_ns=T0 + n_logged))
                n_logged += 50
            except UnavailableError as error:
                refused = error
        writer.sync()
        moment_s = [0.0]
        keeper = Keeper(KeeperConfig(root=disk), monotonic_s=lambda: moment_s[0])
        keeper.look()
        pending = len(list((disk / "churn").glob("*.mseg")))
        during = read_predictions(disk, "churn")
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        moment_s[0] = 60.0
        status = keeper.look()
        writer.append(batch(writer, 50, time_ns=T0 + n_logged))
        writer.close(T0 + n_logged + 1)
        after = read_predictions(disk, "churn")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)

    assert "No space left on device" in refused.what
    assert pending > 1
    assert (n_logged, True) == (len(during), during.gaps.complete)
    assert (0, n_logged + 50, True) == (status.pending_segments, len(after), after.gaps.complete)


def test_a_spoiled_segment_among_whole_ones(tmp_path):
    """Corrupt in the middle: its whole frames are encoded with the damage said; the others lose nothing."""
    whole = [write_segment(tmp_path, prefix=i) for i in (1, 3)]
    spoiled = write_segment(tmp_path, prefix=2)
    data = bytearray(spoiled.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    spoiled.write_bytes(bytes(data))
    before = read_predictions(tmp_path, "churn")
    status = Keeper(KeeperConfig(root=tmp_path)).look()
    after = read_predictions(tmp_path, "churn")

    assert (3, 0, "") == (status.encoded_segments, status.pending_segments, status.last_error)
    assert facts_of(before) == facts_of(after)
    assert (False, True) == (after.gaps.complete, after.gaps.damage.corrupt_frames > 0)
    assert 180 < len(after) < 270
    assert [True, True] == [path.with_suffix(".mcol").exists() for path in whole]
