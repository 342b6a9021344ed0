"""kill -9 in every stage, of the run and of the stage's own process: nothing is lost, nothing is half-kept, nobody is orphaned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mulle.core.errors import UnavailableError
from mulle.loop.record import read_run
from support.wheel import Wheel

pytestmark = pytest.mark.chaos

ALL = ["snapshot", "split", "train", "register"]
TESTS = str(Path(__file__).parents[1])
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.wheel import Wheel
Wheel.again(Path(sys.argv[2])).run()
"""


def start(wheel: Wheel) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", DRIVER, TESTS, str(wheel.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path: Path, limit_s: float = 60.0) -> int:
    deadline = time.monotonic() + limit_s
    while not (path.exists() and path.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text(encoding="utf-8"))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_gone(pid: int, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its run"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ALL)
def test_killing_the_run_in_a_stage(tmp_path, stage):
    """The parent dies: the stage dies with it, and the next run continues with that stage."""
    wheel = Wheel(tmp_path)
    wheel.fault(stage, "wait")
    run = start(wheel)
    child = wait_for(tmp_path / "waiting")
    run.kill()
    run.wait()
    wait_gone(child)
    assert ALL[: ALL.index(stage) + 1] == wheel.calls()
    wheel.mend()
    report = wheel.run()

    assert ALL[ALL.index(stage) :] == wheel.calls()
    assert ["cached"] * ALL.index(stage) == [entry.status for entry in report.document.stages][: ALL.index(stage)]
    assert [] == wheel.drafts()


@pytest.mark.parametrize("stage", ALL)
def test_killing_the_process_of_a_stage(tmp_path, stage):
    """The stage dies (out of memory, an impatient operator): the run says so, and the same command continues."""
    wheel = Wheel(tmp_path)
    wheel.fault(stage, "kill")
    with pytest.raises(UnavailableError) as caught:
        wheel.run()
    assert ("stage-killed", True) == (caught.value.code, f"'{stage}'" in caught.value.what)
    wheel.calls()
    wheel.mend()
    wheel.run()

    assert ALL[ALL.index(stage) :] == wheel.calls()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "a polite end"])
def test_interrupting_leaves_the_cache_whole(tmp_path, number):
    """The stage is killed with everything it started; the document of the run says interrupted."""
    wheel = Wheel(tmp_path)
    wheel.fault("train", "wait")
    run = start(wheel)
    child = wait_for(tmp_path / "waiting")
    run.send_signal(number)
    run.wait(20)
    wait_gone(child)
    documents = [read_run(path) for path in (tmp_path / ".mulle/runs").glob("*.json")]
    if number == signal.SIGINT:
        assert ["interrupted"] == [document.status for document in documents if document is not None]
        assert [] == wheel.drafts()
    wheel.mend()
    wheel.calls()
    wheel.run()

    assert ["train", "register"] == wheel.calls()


@pytest.mark.parametrize("seed", range(4))
def test_killing_at_any_moment(tmp_path, seed):
    """Wherever the kill lands (planning, forking, committing), the next run ends with the same outputs as an undisturbed one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, disturbed = Wheel(tmp_path / "a"), Wheel(tmp_path / "b")
    expected = [entry.outputs for entry in undisturbed.run().document.stages]
    run = start(disturbed)
    time.sleep(0.15 + 0.3 * seed)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    report = disturbed.run(), disturbed.run()

    assert [expected, expected] == [[entry.outputs for entry in one.document.stages] for one in report]
    assert ["cached"] * 4 == [entry.status for entry in report[1].document.stages]
