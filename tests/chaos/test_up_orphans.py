"""Several programs as one: whoever ends, however it ends, nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mulle.apps.supervisor import Program, Supervisor
from mulle.core.errors import UnavailableError

pytestmark = pytest.mark.chaos

# A program with a worker of its own, both of which write down who they are; the worker ignores polite requests.
PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('일꾼', flush=True); time.sleep(300)"
worker = subprocess.Popen([sys.executable, "-c", deaf])
(folder / f"{name}.worker").write_text(str(worker.pid))
(folder / f"{name}.pid").write_text(str(os.getpid()))
print("ready", name, flush=True)
while not (folder / f"{name}.end").exists():
    time.sleep(0.02)
sys.exit(5)
"""
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_up_orphans import programs
from mulle.apps.supervisor import Supervisor
folder = Path(sys.argv[1])
code = Supervisor(programs(folder), show=lambda line: None).run(lambda: (folder / "ready").write_text("1"))
sys.exit(code)
"""


def programs(folder: Path) -> list[Program]:
    return [
        Program(name, (sys.executable, "-c", PROGRAM, str(folder), name), lambda name=name: (folder / f"{name}.pid").exists())
        for name in ("하나", "둘")
    ]


def until(condition, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(folder: Path) -> list[str]:
    """Return the files of the processes that still run."""
    found = []
    for path in [*folder.glob("*.pid"), *folder.glob("*.worker")]:
        try:
            state = Path(f"/proc/{path.read_text(encoding='utf-8')}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(path.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["SIGTERM", "Ctrl-C", "kill -9"])
def test_nobody_outlives_the_supervisor(tmp_path, number):
    """Even kill -9 of the supervisor ends the programs and what they started."""
    run = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), str(Path(__file__).parent)])
    until((tmp_path / "ready").exists)
    assert 4 == len(alive(tmp_path))
    os.kill(run.pid, number)
    code = run.wait(60)
    until(lambda: alive(tmp_path) == [])

    assert (0 if number != signal.SIGKILL else -9) == code


def test_one_ends_and_the_others_follow(tmp_path):
    """A program that ends by itself takes the others down: half a system serves nobody."""
    shown: list[str] = []
    code = Supervisor(programs(tmp_path), show=shown.append).run((tmp_path / "둘.end").touch)
    until(lambda: alive(tmp_path) == [])

    assert 1 == code
    assert "둘 ended with code 5: stopping the others" in shown
    assert "하나 | ready 하나" in shown


def test_one_that_never_gets_ready_is_an_error(tmp_path):
    """Ended before ready: said which, and nobody is left."""
    (tmp_path / "둘.end").touch()
    broken = [*programs(tmp_path)[1:], Program("never", (sys.executable, "-c", "import time; time.sleep(300)"), lambda: False)]
    with pytest.raises(UnavailableError) as caught:
        Supervisor(broken, show=lambda _line: None, timeout_s=30).run(lambda: None)
    until(lambda: alive(tmp_path) == [])

    assert ("up-program-ended", True) == (caught.value.code, "둘 ended with code 5" in caught.value.what)


def test_too_slow_is_an_error(tmp_path):
    """The deadline names who is late."""
    late = [Program("late", (sys.executable, "-c", "import time; time.sleep(300)"), lambda: False)]
    with pytest.raises(UnavailableError, match="late did not become ready"):
        Supervisor(late, show=lambda _line: None, timeout_s=0.5).run(lambda: None)
