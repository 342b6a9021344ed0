"""The mapped file of a worker: what survives, what is refused, what a reader sees while it grows."""

import os
import subprocess
import sys

import pytest

from mulle.serve.telemetry import cells
from mulle.serve.telemetry.cells import CHUNK_BYTES, CellReader, CellWriter, NoFileError
from mulle.serve.telemetry.folder import OWNER, shared_folder


def _told(reader):
    list(reader.refresh())
    return {record.key: record.view[record.first] for record in reader.records}


def test_a_reader_sees_a_series_and_its_number(tmp_path):
    """A store into the writer's memory is what the reader's mapping shows, at once and without a call."""
    writer = CellWriter(tmp_path, 0)
    record = writer.add(b"one", 1)
    reader = CellReader(writer.path)
    assert {b"one": 0.0} == _told(reader)
    record.view[record.first] += 2.5

    assert {b"one": 2.5} == _told(reader)


def test_a_reader_follows_the_file_as_it_grows(tmp_path):
    """Series of later chunks appear in a reader that mapped the first one long ago."""
    writer = CellWriter(tmp_path, 0)
    reader = CellReader(writer.path)
    for number in range(300):
        record = writer.add(f"series {number}".encode(), 50)
        record.view[record.first] = number
        if number % 90 == 0:
            _told(reader)

    assert {f"series {number}".encode(): float(number) for number in range(300)} == _told(reader)
    assert writer.path.stat().st_size > CHUNK_BYTES


def test_a_successor_goes_on_in_the_same_file(tmp_path):
    """Once the lock is free the next worker of the slot takes the file over, with every number in it."""
    first = CellWriter(tmp_path, 0)
    record = first.add(b"key", 2)
    record.view[record.first + 1] = 7.0
    first.close()
    second = CellWriter(tmp_path, 0)

    assert first.path == second.path
    assert [(b"key", [0.0, 7.0])] == [(r.key, r.view[r.first : r.first + r.n_cells].tolist()) for r in second.records]


def test_two_that_live_at_once_have_files_of_their_own(tmp_path):
    """During a rolling restart both write: neither touches the other's numbers."""
    old, new = CellWriter(tmp_path, 0), CellWriter(tmp_path, 0)

    assert old.path != new.path


def test_a_reader_knows_who_lives(tmp_path):
    """The lock says it; asking does not keep a successor from taking over."""
    writer = CellWriter(tmp_path, 0)
    reader = CellReader(writer.path)
    alive = reader.is_alive()
    writer.close()

    assert (True, False) == (alive, reader.is_alive())
    assert writer.path == CellWriter(tmp_path, 0).path


@pytest.mark.parametrize(
    ("at", "what", "n_readable"),
    [
        pytest.param(0, b"NOTOURS!", 0, id="another magic"),
        pytest.param(8, b"\xff" * 8, 0, id="a committed offset beyond the chunk"),
        pytest.param(8, b"\x00" * 8, 0, id="a committed offset within the header"),
        pytest.param(64 + 4, b"\xff\xff", 0, id="the first record's key longer than the chunk"),
        pytest.param(64 + 6, b"\xff\xff", 0, id="the first record with more cells than fit"),
        pytest.param(64 + 16, b"X", 0, id="the first record's key changed"),
        pytest.param(64 + 32, b"\x01\x02\x03\x04", 1, id="the second record's checksum changed"),
    ],
)
def test_damage_is_noticed_and_never_read(tmp_path, at, what, n_readable):
    """What is before the damage is read, the damage is said, and a new worker begins a file of its own."""
    writer = CellWriter(tmp_path, 0)
    writer.add(b"first", 1)
    writer.add(b"second", 1)
    writer.close()
    with writer.path.open("r+b") as file:
        file.seek(at)
        file.write(what)
    reader = CellReader(writer.path)
    found = _told(reader)

    assert (n_readable, True) == (len(found), reader.damaged)
    assert writer.path != CellWriter(tmp_path, 0).path


@pytest.mark.parametrize("size", [0, 1, 4095, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_a_file_that_was_just_begun_is_empty_not_damaged(tmp_path, size):
    """A worker killed while its file was made leaves zeros: readers see nothing, the successor begins."""
    (tmp_path / "worker-0-0.cells").write_bytes(bytes(size))
    reader = CellReader(tmp_path / "worker-0-0.cells")

    assert ({}, False, None) == (_told(reader), reader.damaged, reader.identity)
    assert tmp_path / "worker-0-0.cells" == CellWriter(tmp_path, 0).path


def test_bytes_left_by_a_kill_before_the_commit_do_not_show(tmp_path):
    """A half-written record lies beyond the committed offset: the next one starts from zeros."""
    writer = CellWriter(tmp_path, 0)
    writer.add(b"whole", 1)
    end = 64 + 16 + 8 + 8
    writer.close()
    with writer.path.open("r+b") as file:
        file.seek(end)
        file.write(b"\xab" * 400)
    successor = CellWriter(tmp_path, 0)
    record = successor.add(b"next", 3)

    assert [0.0, 0.0, 0.0] == record.view[record.first : record.first + 3].tolist()
    assert {b"whole": 0.0, b"next": 0.0} == _told(CellReader(successor.path))


def test_what_is_no_file_is_refused(tmp_path):
    """A named pipe does not hang the reader, a link is not followed."""
    os.mkfifo(tmp_path / "pipe.cells")
    (tmp_path / "link.cells").symlink_to("/dev/zero")
    with pytest.raises(NoFileError):
        CellReader(tmp_path / "pipe.cells")

    with pytest.raises(OSError, match="symbolic links"):
        CellReader(tmp_path / "link.cells")


def test_a_full_disk_costs_new_series_their_siblings_and_nobody_his_life(tmp_path):
    """A process that may write no more than one chunk goes on counting, in memory of its own."""
    script = f"""
import pathlib, resource, sys
from mulle.serve.telemetry.cells import CHUNK_BYTES, CellWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES, CHUNK_BYTES))
writer = CellWriter(pathlib.Path({str(tmp_path)!r}), 0)
for number in range(300):
    record = writer.add(str(number).encode(), 50)
    record.view[record.first] += 1
print(sum(record.view[record.first] for record in writer.records))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)

    assert (0, "300.0\n", "") == (done.returncode, done.stdout, done.stderr)
    assert CHUNK_BYTES == (tmp_path / "worker-0-0.cells").stat().st_size


def test_a_record_that_fits_nowhere_is_refused():
    """A programming error, said at once."""
    with pytest.raises(ValueError, match="does not fit"):
        CellWriter(None, 0).add(b"key", CHUNK_BYTES // 8)


def test_the_supervisor_has_a_file_of_its_own(tmp_path):
    """It counts restarts beside the workers, under its own name."""
    writer = CellWriter(tmp_path, cells.SUPERVISOR)
    reader = CellReader(writer.path)
    list(reader.refresh())

    assert ("supervisor-0.cells", (-1, os.getpid())) == (writer.path.name, reader.identity[:2])


def test_a_shared_folder_is_private_and_goes_with_its_server(tmp_path):
    """Nobody else may look in; at the end nothing is left."""
    with shared_folder(tmp_path) as folder:
        mode = folder.stat().st_mode & 0o777
        inside = [path.name for path in folder.iterdir()]

    assert (0o700, [OWNER], []) == (mode, inside, list(tmp_path.iterdir()))


def test_folders_of_killed_servers_are_swept_and_those_of_living_ones_are_not(tmp_path):
    """The lock on the folder tells them apart."""
    script = f"""
import os, pathlib, signal
from mulle.serve.telemetry.folder import shared_folder
with shared_folder(pathlib.Path({str(tmp_path)!r})) as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True).stdout.strip()
    assert [killed] == [str(path) for path in tmp_path.iterdir()]
    with shared_folder(tmp_path) as living, shared_folder(tmp_path) as mine:
        assert {living, mine} == set(tmp_path.iterdir())
