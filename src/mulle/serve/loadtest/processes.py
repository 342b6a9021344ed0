"""Load from processes of their own: nothing this process does is in the way, several share a rate, and the server's cost is read beside."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import BinaryIO, cast

import msgspec

from mulle.core.errors import SpecError, UnavailableError
from mulle.serve.loadtest.child import MOMENT, error_of, read_frame, write_frame
from mulle.serve.loadtest.generator import require_load
from mulle.serve.loadtest.probe import Usage, read_usage
from mulle.serve.loadtest.result import Load, Result, Second, merge_results, merge_seconds

_LEAD_NS = 20_000_000
_KILL_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerCost:
    """What the server used while it was measured.

    Attributes:
        cpu_us_per_request: CPU of the process tree per answer, microseconds.
        cores: CPU seconds per second.
        memory_bytes: Resident at the end of the window.
        n_processes: Processes of the tree.
    """

    cpu_us_per_request: float
    cores: float
    memory_bytes: int
    n_processes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One load test: what came back, and what it cost the server where that could be read."""

    result: Result
    server: ServerCost | None = None


class _Probe:
    """Reads the server's CPU where the window begins and after each of its seconds."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._first: tuple[float, Usage] | None = None
        self._last: tuple[float, Usage] | None = None
        self._n = 0

    def begin(self) -> None:
        self._first, self._last, self._n = self._read(), None, 0

    def second(self, second: Second) -> None:
        if second.warm:
            self.begin()
        else:
            self._last = self._read()
            self._n += second.n_answered

    def _read(self) -> tuple[float, Usage] | None:
        usage = None if self._pid is None else read_usage(self._pid)
        return None if usage is None else (time.monotonic(), usage)

    def cost(self) -> ServerCost | None:
        if self._first is None or self._last is None:
            return None
        (began, before), (ended, after) = self._first, self._last
        used = max(0.0, after.cpu_s - before.cpu_s)
        return ServerCost(1e6 * used / max(1, self._n), used / max(1e-9, ended - began), after.memory_bytes, after.n_processes)


def measure(load: Load, *, n_processes: int = 1, pid: int | None = None, on_second: Callable[[Second], None] | None = None) -> Measured:
    """Return what came back from `n_processes` generators that share `load`; Ctrl-C ends them early and keeps what was measured.

    Args:
        load: Rate and connections of all of them together.
        n_processes: At most one per connection.
        pid: The server, to read its cost; None: not read.
        on_second: Told every second, all processes together.

    Raises:
        SpecError: the load makes no sense.
        UnavailableError: nobody listens there, or a generator process died.
    """
    require_load(load)
    if not 1 <= n_processes <= load.connections:
        raise SpecError(
            "loadtest-load", f"{n_processes} processes cannot share {load.connections} connections", fix="at least one connection each"
        )
    probe = _Probe(pid)
    # A session of their own: Ctrl-C in the terminal reaches only this process, which tells each of them once.
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "mulle.serve.loadtest.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        for _ in range(n_processes)
    ]
    try:
        for child, part in zip(children, split_load(load, n_processes), strict=True):
            write_frame(_pipe(child.stdin), b"l", part)
        _read_all(children, b"c")
        start = time.monotonic_ns() + _LEAD_NS
        probe.begin()
        for i, child in enumerate(children):
            # Evenly spaced arrivals of several processes interleave.
            offset = 0 if load.rate is None else int(1e9 * i / load.rate)
            stdin = _pipe(child.stdin)
            stdin.write(MOMENT.pack(start + offset))
            stdin.flush()
        results = _follow(children, probe, on_second)
    finally:
        for child in children:
            _end(child)
    return Measured(merge_results(results), probe.cost())


def split_load(load: Load, n: int) -> list[Load]:
    """Return one load per process: together the connections and the rate of `load`, each beginning with another request. Pure."""
    parts: list[Load] = []
    for i in range(n):
        at = i * len(load.requests) // n
        parts.append(
            msgspec.structs.replace(
                load,
                connections=load.connections // n + (i < load.connections % n),
                rate=None if load.rate is None else load.rate / n,
                seed=load.seed + i,
                requests=load.requests[at:] + load.requests[:at],
            )
        )
    return parts


def _follow(children: Sequence["subprocess.Popen[bytes]"], probe: _Probe, on_second: Callable[[Second], None] | None) -> list[Result]:
    with _interruptible(children):
        while True:
            frames = _read_all(children, b"s", b"r")
            seconds = [msgspec.msgpack.decode(payload, type=Second) for kind, payload in frames if kind == b"s"]
            if len(seconds) < len(frames):
                return [_result(child, kind, payload) for child, (kind, payload) in zip(children, frames, strict=True)]
            second = merge_seconds(seconds)
            probe.second(second)
            if on_second is not None:
                on_second(second)


@contextlib.contextmanager
def _interruptible(children: Sequence["subprocess.Popen[bytes]"]) -> Generator[None]:
    """Let the first Ctrl-C end the generators, which then tell what they have; the second one is as usual.

    An exception in the middle of a frame would lose its place in the stream.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.signal(signal.SIGINT, before)
        for child in children:
            child.send_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _result(child: "subprocess.Popen[bytes]", kind: bytes, payload: bytes) -> Result:
    """Return a process's result; one may tell a last second where another is through already."""
    while kind != b"r":
        kind, payload = _next(child)
    return msgspec.msgpack.decode(payload, type=Result)


def _read_all(children: Sequence["subprocess.Popen[bytes]"], *kinds: bytes) -> list[tuple[bytes, bytes]]:
    frames = [_next(child) for child in children]
    for kind, _ in frames:
        if kind not in kinds:
            raise _died()
    return frames


def _next(child: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    frame = read_frame(_pipe(child.stdout))
    if frame is None:
        raise _died()
    if frame[0] == b"e":
        raise error_of(frame[1])
    return frame


def _died() -> UnavailableError:
    return UnavailableError(
        "loadtest-generator", "a generator process ended before its test", fix="look at what it printed, and at the memory of this machine"
    )


def _pipe(pipe: object) -> BinaryIO:
    return cast("BinaryIO", pipe)


def _end(child: "subprocess.Popen[bytes]") -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        child.wait(0.5)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
