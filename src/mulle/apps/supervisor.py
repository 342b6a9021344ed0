"""Several programs as one: started together, their lines under their names, ended together. Single-threaded."""

import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from mulle.core.errors import UnavailableError

_GRACE_S = 15.0
_MAX_LINE_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Program:
    """One program to keep.

    Attributes:
        name: Stands before its lines.
        command: Program and arguments; never a shell.
        ready: Returns whether it is ready; asked a few times a second.
        environment: Added to this process's own.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class _Child:
    program: Program
    process: "subprocess.Popen[bytes]"
    buffer: bytes = b""
    ready: bool = False


class Supervisor:
    """Starts programs under a keeper each, so that none outlives this process, and shows what they print.

    Args:
        programs: What to start.
        show: Takes one line.
        timeout_s: How long they may take until all are ready.
    """

    def __init__(self, programs: Sequence[Program], *, show: Callable[[str], None], timeout_s: float = 60.0) -> None:
        self._programs = programs
        self._show = show
        self._timeout_s = timeout_s
        self._children: list[_Child] = []
        self._asked: list[int] = []
        self._width = max(len(program.name) for program in programs)

    def run(self, on_ready: Callable[[], None]) -> int:
        """Keep the programs until a signal (0) or until one of them ends (1), then end all; return the exit code.

        Raises:
            UnavailableError: they were not all ready in time, or one ended before; everything has been ended.
        """
        previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with selectors.DefaultSelector() as selector:
                for program in self._programs:
                    self._start(program, selector)
                return self._watch(selector, on_ready)
        finally:
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """End every program, politely first, and wait until it has gone."""
        for child in self._children:
            if child.process.stdin is not None and not child.process.stdin.closed:
                child.process.stdin.close()  # the keeper takes it as: end, with everything you keep
        deadline = time.monotonic() + _GRACE_S
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
            self._drain(child)
            if child.process.stdout is not None:
                child.process.stdout.close()
        self._children.clear()

    def _start(self, program: Program, selector: selectors.BaseSelector) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "mulle.apps.keeper", *program.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **program.environment},
        )
        child = _Child(program, process)
        self._children.append(child)
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ, child)

    def _watch(self, selector: selectors.BaseSelector, on_ready: Callable[[], None]) -> int:
        deadline = time.monotonic() + self._timeout_s
        told = False
        while not self._asked:
            for key, _ in selector.select(0.2):
                if not self._drain(key.data):
                    selector.unregister(key.fileobj)
            for child in self._children:
                code = child.process.poll()
                if code is not None:
                    self._drain(child)
                    if told:
                        self._show(f"{child.program.name} ended with code {code}: stopping the others")
                        return 1
                    raise UnavailableError(
                        "up-program-ended",
                        f"{child.program.name} ended with code {code} before it was ready",
                        fix="read its lines above; `mulle doctor` may know why",
                    )
                child.ready = child.ready or child.program.ready()
            late = [child.program.name for child in self._children if not child.ready]
            if not late and not told:
                told = True
                on_ready()
            if late and time.monotonic() > deadline:
                raise UnavailableError(
                    "up-not-ready",
                    f"{', '.join(late)} did not become ready in {self._timeout_s:g} s",
                    fix="read the lines above; try again",
                )
        return 0

    def _drain(self, child: _Child) -> bool:
        """Show the lines a program has printed; return whether more may come."""
        if child.process.stdout is None:
            return False
        while True:
            try:
                piece = os.read(child.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            except (OSError, ValueError):
                return False
            if not piece:
                return False
            *lines, child.buffer = (child.buffer + piece)[-(1 << 20) :].split(b"\n")
            for line in lines:
                text = line[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
                self._show(f"{child.program.name:<{self._width}} | {text}")

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._asked.append(number)


def answers(url: str) -> Callable[[], bool]:
    """Return a check that is true once `url` answers with a status below 400."""

    def check() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - an address on loopback that we made
                return int(answer.status) < 400  # noqa: PLR2004 - HTTP
        except (urllib.error.URLError, OSError, ValueError):
            return False

    return check
