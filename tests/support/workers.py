"""A supervisor in a process of its own, and clients that sort what happens to their requests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from support.http_client import RawClient

TINY = Path(__file__).with_name("tiny_worker.py")


class Supervised:
    """A running supervisor with tiny workers."""

    def __init__(self, process, folder):
        self.process = process
        self.folder = folder
        self.told = json.loads(process.stdout.readline() or b"{}")

    @property
    def port(self):
        return self.told["port"]

    def status(self):
        """Return the slots: worker, process, state, restarts."""
        return json.loads((self.folder / "status.json").read_text())

    def pids(self):
        return [pid for _, pid, _, _ in self.status()]

    def wait_for(self, condition, seconds=10.0):
        """Return after how many seconds the slots fulfilled `condition`."""
        start = time.monotonic()
        while not condition(self.status()):
            if time.monotonic() > start + seconds:
                raise TimeoutError(self.status())
            time.sleep(0.002)
        return time.monotonic() - start

    def log(self):
        return (self.folder / "log").read_text(encoding="utf-8")

    def end(self, seconds=10.0):
        """Ask it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def supervised(folder, **options):
    """Start a supervisor with `n` tiny workers, wait until they are ready, and end it with the block."""
    command = [sys.executable, str(TINY), "supervise", json.dumps({"folder": str(folder)} | options)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        yield Supervised(process, folder)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        process.stdout.close()


class Load:
    """Clients that ask without a pause, several requests per connection.

    Outcomes: `answered`; `refused` (no connection); `idle` (a kept connection was closed before the next request went through: the
    race every server has); `cut` (anything else), with the process that had answered on that connection before.
    """

    def __init__(self, port, *, n_clients=4, per_connection=20, path="/", request=None, pid_of=lambda reply: int(reply.body)):
        self.outcomes = Counter()
        self.cut_pids = Counter()
        self.answered_by = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ask = request or (lambda client: client.request("GET", path))
        self._pid_of = pid_of
        self._threads = [threading.Thread(target=self._work, args=(port, per_connection), daemon=True) for _ in range(n_clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads)

    def _count(self, outcome):
        with self._lock:
            self.outcomes[outcome] += 1

    def _work(self, port, per_connection):
        while not self._stop.is_set():
            try:
                client = RawClient("127.0.0.1", port)
            except ConnectionRefusedError:
                self._count("refused")
                return
            except OSError:
                self._count("cut")
                continue
            with client:
                self._converse(client, per_connection)

    def _converse(self, client, per_connection):
        pid = None
        for _ in range(per_connection):
            try:
                reply = self._ask(client)
            except (ConnectionError, OSError) as error:
                # Nothing came back on a connection that had answered before: closed while it was idle.
                idle = pid is not None and "closed after b''" in str(error) and "reset" not in str(error)
                with self._lock:
                    self.outcomes["idle" if idle else "cut"] += 1
                    self.cut_pids[pid] += 1
                return
            pid = self._pid_of(reply)
            with self._lock:
                self.outcomes["answered" if reply.status == 200 else f"status {reply.status}"] += 1
                self.answered_by[pid] += 1
            if self._stop.is_set() or reply.headers.get("connection") == "close":
                return


def alive(pid):
    """Return whether a process exists, and is more than the memory of one."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
