"""`mulle up`: server, tracking UI and controller start together, answer, and end together."""

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.http_client import RawClient
from support.projects import Sample, finished

pytestmark = pytest.mark.slow


def start(folder: Path) -> "subprocess.Popen[str]":
    """Start `mulle up` on free ports."""
    command = [sys.executable, "-m", "mulle.apps.cli.main", "up", "--port", "0", "--tracking-port", "0", "-p", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True)


def session_of(pid: int) -> list[int]:
    """Return the processes of the sessions below a process, found by walking its children."""
    try:
        children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        return []
    return [one for child in children for one in (child, *session_of(child))]


def alive(pid: int) -> bool:
    """Return whether a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's list of processes")
def test_everything_starts_answers_and_ends(tmp_path, own_key_folder, monkeypatch):
    """Both URLs that are printed answer; Ctrl-C ends all of it, with nobody left behind."""
    project = finished(tmp_path / "tiny", monkeypatch)
    run = start(project.folder)
    timer = threading.Timer(150, run.kill)
    timer.start()
    lines: list[str] = []
    try:
        assert run.stdout is not None
        urls: dict[str, int] = {}
        for line in run.stdout:
            lines.append(line)
            urls |= {found[0]: int(found[1]) for found in re.findall(r"(\w+)\s.*?http://127\.0\.0\.1:(\d+)", line)}
            if "ready; Ctrl-C" in line:
                break
        ports = sorted(set(urls.values()))
        answers = []
        for port in ports:
            with RawClient("127.0.0.1", port, timeout_s=30) as client:
                answers.append(client.request("GET", "/health", headers={"host": f"127.0.0.1:{port}"}).status)
        family = session_of(run.pid)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    finally:
        timer.cancel()
        run.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert 2 == len(ports), "".join(lines)
    assert [200, 200] == answers
    assert len(family) >= 3
    assert [] == [pid for pid in family if alive(pid)]
    assert 0 == run.returncode, "".join(lines)


def test_nothing_to_serve_is_said_at_once(tmp_path, capsys):
    """Before the first run there is nothing to start, and the next command is named."""
    project = Sample().write(tmp_path / "tiny")
    answer = project.call(capsys, "up")

    assert 2 == answer.code
    assert "error[up-nothing-to-serve]" in answer.err
    assert "mulle run" in answer.err


def test_a_taken_port_is_said_at_once(tmp_path, own_key_folder, monkeypatch, capsys):
    """Who has a port keeps it; nothing is started halfway."""
    import socket

    project = finished(tmp_path / "tiny", monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = project.call(capsys, "up", "--port", str(taken.getsockname()[1]))

    assert (2, True) == (answer.code, "error[up-port-taken]" in answer.err)
    assert "--port" in answer.err
