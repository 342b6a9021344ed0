"""Three real workers count, one is killed and replaced: the page of any of them is the truth."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from mulle.formats import telemetry as names
from mulle.serve.telemetry.cells import CHUNK_BYTES
from mulle.serve.telemetry.registry import MetricsRegistry

# Every count is followed by one byte in a file of its own, written by the kernel before the next: its size is the truth.
WORKER = """
import os, pathlib, sys
from mulle.formats import telemetry as names
from mulle.serve.telemetry.registry import MetricsRegistry

folder, truth, slot = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = MetricsRegistry(folder, worker=slot)
registry.gauge(names.IN_FLIGHT).put(1)
out = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
stop = pathlib.Path(sys.argv[4])
number = 0
while number % 1000 or not stop.exists():
    if number % 100 == 0:
        revision = str(number // 100 % 200)
        rows = registry.counter(names.ROWS, deployment="d", revision=revision)
        latency = registry.histogram(names.LATENCY, deployment="d", revision=revision)
        wait = registry.histogram(names.QUEUE_WAIT, deployment="d", revision=revision)
    rows.add()
    latency.observe(0.003)
    wait.observe_many([0.001])
    os.write(out, b".")
    number += 1
"""


def _total(page, sample):
    lines = [line.rpartition(" ") for line in page.splitlines() if line.partition(" ")[0].partition("{")[0] == sample]
    return sum(float(value) for _, _, value in lines)


@pytest.fixture
def workers(tmp_path):
    """Return a function that starts a worker in a slot; all are gone afterwards."""
    started = []

    def start(slot):
        arguments = [str(tmp_path / "cells"), str(tmp_path / f"truth-{len(started)}"), str(slot), str(tmp_path / "stop")]
        started.append(subprocess.Popen([sys.executable, "-c", WORKER, *arguments]))
        return started[-1]

    (tmp_path / "cells").mkdir()
    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def _until(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_count_is_lost_when_a_worker_is_killed_and_replaced(tmp_path, workers):
    """The rendered sum never goes down, and ends at what was acknowledged; a kill may at most leave one count ahead of it."""

    def truth():
        return [path.stat().st_size for path in sorted(tmp_path.glob("truth-*"))]

    reader = MetricsRegistry(tmp_path / "cells", worker=99)
    running = [workers(slot) for slot in range(3)]
    seen = [0.0]

    def look():
        low = sum(truth())
        seen.append(_total(reader.render(), names.ROWS))
        assert seen[-1] >= max(low, seen[-2])

    # Long enough that files grow past their first chunk while they are being read.
    _until(lambda: look() is None and len(truth()) == 3 and min(truth()) > 20_000)
    for _ in range(2):
        os.kill(running[1].pid, signal.SIGKILL)
        running[1].wait()
        look()
        # Three living workers less one, and the reader itself.
        assert (2.0, 3.0) == (_total(page := reader.render(), names.IN_FLIGHT), _total(page, names.WORKERS))
        running[1] = workers(1)
        n = len(truth()) + 1
        _until(lambda n=n: look() is None and len(truth()) == n and truth()[-1] > 3_000)
    (tmp_path / "stop").touch()
    assert [0, 0, 0] == [process.wait(60) for process in running]
    page = reader.render()

    assert 0 <= _total(page, names.ROWS) - sum(truth()) <= 2
    assert 0 <= _total(page, names.ROWS) - _total(page, f"{names.LATENCY}_count") <= 2
    assert 0 <= _total(page, f"{names.LATENCY}_count") - _total(page, f"{names.QUEUE_WAIT}_count") <= 2
    assert (0.0, 1.0, 0.0) == (_total(page, names.IN_FLIGHT), _total(page, names.WORKERS), _total(page, names.FILES_IGNORED))
    # Killed ones were replaced in their own files.
    files = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert ["worker-0-0.cells", "worker-1-0.cells", "worker-2-0.cells", "worker-99-0.cells"] == files
    assert (tmp_path / "cells" / "worker-1-0.cells").stat().st_size > CHUNK_BYTES
