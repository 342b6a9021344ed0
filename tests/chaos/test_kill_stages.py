"""kill -9 in each of the nine stages of a real project: the same command continues, and nobody can tell from the result.

`test_run_kill.py` kills the engine with small stages at every moment; here the real bodies with their real side effects
(datasets, MLflow, bundles, the event log) are killed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mulle.loop.stages import STAGES
from support.projects import KOREAN, Sample, finished

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]  # nine stages, each run twice

NAMES = [stage.name for stage in STAGES]
# Seconds into the stage: into its imports, its work, or its talk with the tracking store.
DELAYS = {
    "snapshot": 0.2,
    "check": 0.6,
    "split": 0.4,
    "train": 3.5,
    "export": 0.4,
    "evaluate": 1.2,
    "gate": 0.1,
    "seal": 0.5,
    "register": 1.5,
}
LIMIT_S = 120


def start(folder: Path) -> "subprocess.Popen[str]":
    """Start `mulle run` on the project."""
    command = [sys.executable, "-m", "mulle.apps.cli.main", "run", "-p", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)


def wait_for_stage(run: "subprocess.Popen[str]", stage: str) -> list[str]:
    """Read the run's lines until `stage` starts; return the stages it passed as finished before."""
    passed: list[str] = []
    assert run.stderr is not None
    for line in run.stderr:
        match = re.match(r"\S+ (\w+)\s+(cached|runs)", line)
        if match and match.group(2) == "cached":
            passed.append(match.group(1))
        if match and match.groups() == (stage, "runs"):
            return passed
    raise AssertionError(f"the run ended before {stage}")


def children(pid: int) -> list[int]:
    """Return the processes a process started."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        return []


def below(pid: int) -> list[int]:
    """Return all processes below a process."""
    return [one for child in children(pid) for one in (child, *below(child))]


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def stage_process(run: int) -> int:
    """Return the process of the stage that is running, below the engine's server."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = [child for server in children(run) for child in children(server)]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no stage is running")


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's list of child processes")
@pytest.mark.parametrize("whom", ["the stage", "the run"])
def test_killed_in_every_stage_and_continued(tmp_path, capsys, monkeypatch, whom):
    """Killed once in each stage; every finished stage is kept, and the bundle is the one an undisturbed project makes."""
    undisturbed = finished(tmp_path / "undisturbed", monkeypatch, words=KOREAN)
    project = Sample(KOREAN).write(tmp_path / "disturbed")
    for number, stage in enumerate(NAMES):
        run = start(project.folder)
        passed = wait_for_stage(run, stage)
        time.sleep(DELAYS[stage])
        family = below(run.pid)
        os.kill(run.pid if whom == "the run" else stage_process(run.pid), signal.SIGKILL)
        _, rest = run.communicate(timeout=LIMIT_S)
        deadline = time.monotonic() + 20
        while not all(map(gone, family)):
            assert time.monotonic() < deadline, f"processes outlive a killed run: {family}"
            time.sleep(0.02)

        assert NAMES[: max(0, number - 1)] == passed  # the one before was killed last time, and is run now
        assert run.returncode == (-signal.SIGKILL if whom == "the run" else 2)
        assert "Traceback" not in rest
        assert whom == "the run" or f"error[stage-killed]: stage '{stage}' was killed by signal 9" in rest
    ran = project.ran(capsys)
    versions, again = project.versions(capsys), project.ran(capsys)
    bundles = [sorted(p.name for p in (one.folder / ".mulle/bundles").iterdir()) for one in (undisturbed, project)]

    assert (["register"], [(1, ("champion",))], []) == (ran, versions, again)
    assert bundles[0] == bundles[1]
    assert [] == project.drafts()
    for command in (["events", "verify"], ["models", "verify", "1"]):
        assert 0 == project.call(capsys, *command).code
