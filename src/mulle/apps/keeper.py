"""A process that keeps another one, and ends it with everything it started when the one above goes away.

`python -m mulle.apps.keeper PROGRAM ARGUMENT…`: runs the program in this process group and ends the whole group when
standard input closes (the parent is gone, even by kill -9) or a signal asks for it. Nothing is left behind, on Linux and
macOS alike.
"""

import os
import select
import signal
import subprocess
import sys
from types import FrameType

GRACE_S = 10.0


def main(arguments: list[str]) -> int:
    """Run the program and return its exit code; 143 when it was ended from outside."""
    if os.getpgid(0) != os.getpid():
        os.setsid()  # a group of our own: ending it must not end whoever started us
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(wake_read, select.POLLIN)
    while child.poll() is None and not asked:
        for descriptor, _ in poller.poll(1000):
            if descriptor == wake_read:
                os.read(wake_read, 512)
            elif not os.read(0, 512):
                asked.append(signal.SIGTERM)
    code = child.poll()
    if code is None:
        # Only the program is asked: it ends its own workers in the order it likes, within the grace.
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            code = 137
    _end_group()
    return 143 if code is None else code if code >= 0 else 128 - code


def _end_group() -> None:
    """Kill whatever the program left in this group, ourselves excepted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for pid in _others():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _others() -> list[int]:
    """Return the other processes of this group, where the system lists them (Linux); they ignored the polite signal."""
    found: list[int] = []
    try:
        names = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - hundreds of names, once
    except OSError:
        return found
    for pid in names:
        try:
            if pid != os.getpid() and os.getpgid(pid) == os.getpgid(0):
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
