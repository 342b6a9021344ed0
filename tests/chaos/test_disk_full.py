"""A disk that fills up during a stage: the run says so, keeps what was finished, and continues when there is room.

A small file system of its own where mounting is allowed; else a limit on the size of a file, which fails with another
error number in the same places.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from support.projects import Sample, finished

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]  # real runs on a machine that may be busy


@contextmanager
def small_disk(folder, size):
    """Mount an empty file system of `size` at `folder`, or skip."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "mulle-test", str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, size):
    """Give the file system another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder, *, leave_bytes):
    """Fill a file system but for `leave_bytes`; return the file that does it."""
    usage = shutil.disk_usage(folder)
    filler = folder / "filler"
    filler.write_bytes(b"\0" * max(0, usage.free - leave_bytes))
    return filler


# Bytes left when the run starts, and what has still to be run: the later the stage, the more a copy of the project needs.
@pytest.mark.parametrize(
    ("leave", "from_stage"),
    [
        pytest.param(0, "snapshot", id="no byte, from the start"),
        pytest.param(12_000, "snapshot", id="room for a document, not for a dataset"),
        pytest.param(60_000, "train", id="the tracking store runs out"),
        pytest.param(40_000, "evaluate", id="the evaluation's page does not fit"),
        pytest.param(30_000, "seal", id="the bundle does not fit"),
    ],
)
def test_a_full_disk_is_said_and_survived(tmp_path, own_key_folder, monkeypatch, capsys, leave, from_stage):
    """Exit 2 with the disk named; the champion is still served from whole files; with room the same command continues."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        project = finished(disk / "tiny", monkeypatch)
        project.change("project.py", "strength=1.0", "strength=0.03")
        if from_stage == "snapshot":
            project.write_table(project.table().head(280))
        filler = fill(disk, leave_bytes=leave)
        answer = project.call(capsys, "run", "--json", "--from", from_stage)
        predicted = project.call(capsys, "predict", "--row", '{"minutes": 1, "spend": 2, "channel": "mail", "member": true}')
        listed = project.versions(capsys)
        filler.unlink()
        continued = project.call(capsys, "run", "--json")
        verified = [project.call(capsys, *command).code for command in (["models", "verify"], ["events", "verify"])]

        assert (2, "disk-full") == (answer.code, answer.error["code"]), answer.out
        assert "mulle gc" in answer.error["fix"]
        assert 0 == predicted.code, predicted.err
        assert [(1, ("champion",))] == listed
        assert 0 == continued.code, continued.out
        assert [(1, ("champion",)), (2, ("challenger",))] == project.versions(capsys)
        assert [0, 0] == verified
        assert [] == project.drafts()


def test_a_limit_on_file_sizes_is_an_error_too(tmp_path):
    """Where a quota cuts files off, the stage ends with an error and no half file is taken for a whole one."""
    project = Sample(n_rows=3_000).write(tmp_path / "tiny")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    command = [sys.executable, "-m", "mulle.apps.cli.main", "run", "-p", str(project.folder)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, encoding="utf-8", check=False, env={**os.environ})

    assert 2 == done.returncode, done.stderr
    assert "error[" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(project.folder.glob(".mulle/datasets/tiny/*/dataset.json"))
    assert [] == project.drafts()
