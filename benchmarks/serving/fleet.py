"""Servers under test: started once, asked whether they answer right, and frozen while it is another one's turn.

A frozen server (SIGSTOP) costs nothing, so that twelve of them fit on one machine and take turns within seconds of each other;
one that does not survive the frost is started again.
"""

import math
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
from load import free_port, tree, tree_cpu_s
from measure import SkippedError, quiet_environment

START_TIMEOUT_S = 120.0
TOUCH_S = 0.01
TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True)
class Ports:
    """Free ports on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One kind of request: whole HTTP/1.1 requests sent in turn, or messages for gRPC.

    Attributes:
        requests: As bytes; each is asked in turn.
        expected: A probability that the answer to the first one must hold.
        n_rows: Rows in each.
        tolerance: How far the answer's probability may be from `expected`.
        rpc: The method's path, for gRPC; the requests are then messages.
        headers: Metadata of gRPC calls.
    """

    requests: tuple[bytes, ...]
    expected: float
    n_rows: int = 1
    tolerance: float = TOLERANCE
    rpc: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """How a server is started, and what it can be asked.

    Attributes:
        name: The row's name.
        key: Short name for the command line; `mulle` is ours.
        command: Ports to program and arguments; raises SkippedError where it cannot be had.
        asks: Kind to requests; the first one tells when it is up.
        env: Added to the environment.
        configured: What it was configured to do, in words.
        freezes: Whether it bears being stopped between turns.
        settle_s: How long it is left alone after it was thawed, to catch up with what it missed.
        prove: Raises SkippedError when the started server is not what its name says.
    """

    name: str
    key: str
    command: Callable[[Ports], Sequence[Any]]
    asks: Mapping[str, Ask]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    configured: str = ""
    freezes: bool = True
    settle_s: float = 0.05
    prove: Callable[["Server"], None] | None = None


class Server:
    """A started server that has given its first right answer."""

    def __init__(self, contestant: Contestant, folder: Path) -> None:
        self.contestant = contestant
        self.ports = Ports(free_port(), free_port(), free_port())
        self.log = folder / f"{contestant.key}-{self.ports.http}.log"
        command = [str(part) for part in contestant.command(self.ports)]
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env=quiet_environment(contestant.env), start_new_session=True
            )
        self.pid = self.process.pid
        first = next(iter(contestant.asks.values()))
        while True:
            answer = self.exchange(first)
            if answer is not None and answer[0] == 200:
                break
            if self.process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                self.stop()
                status = "nobody listens" if answer is None else f"status {answer[0]}: {answer[1][:100]!r}"
                raise SkippedError(f"it did not answer a prediction ({status}): {' '.join(said)[-160:]}")
            time.sleep(TOUCH_S)
        self.cold_start_s = time.perf_counter() - began
        self.start_cpu_s = tree_cpu_s(self.pid)

    def exchange(self, ask: Ask) -> tuple[int, bytes] | None:
        """Return status and body of one request on a connection of its own; None when nobody listens."""
        if ask.rpc is not None:
            from serving.h2 import call_once

            return call_once(self.ports.grpc, ask.rpc, ask.requests[0], ask.headers)
        return exchange(self.ports.http, ask.requests[0])

    def require_right(self, kind: str) -> None:
        """Refuse a server that answers something else than the model says."""
        ask = self.contestant.asks[kind]
        found = self.exchange(ask)
        if found is None or found[0] != 200:
            raise SkippedError(f"it does not answer {kind}: {'no answer' if found is None else f'{found[0]} {found[1][:120]!r}'}")
        if not holds(found[1], ask.expected, ask.tolerance):
            raise SkippedError(f"its answer to {kind} is not the model's: {found[1][:120]!r}")
        if self.contestant.prove is not None:
            self.contestant.prove(self)

    def signal(self, number: int) -> None:
        """Send a signal to the whole tree."""
        for pid in tree(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it and everything it started."""
        self.signal(signal.SIGCONT)
        everyone = tree(self.pid)
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # what is left is killed below
            self.process.wait(8)
        for pid in everyone:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # what its processes left in its session
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Fleet:
    """The servers of one group of scenarios."""

    def __init__(self, contestants: Sequence[Contestant], folder: Path) -> None:
        self.contestants = {one.name: one for one in contestants}
        self.folder = folder
        self.servers: dict[str, Server] = {}
        self.skipped: dict[str, str] = {}
        self.cold_start_s: dict[str, float] = {}
        self.n_restarts: dict[str, int] = {}

    def who(self, kind: str) -> list[str]:
        """Return the names of those that can be asked this, and could be started so far."""
        return [name for name, one in self.contestants.items() if kind in one.asks and name not in self.skipped]

    @contextmanager
    def turn(self, name: str) -> Generator[Server]:
        """Give a contestant's server while it is its turn.

        Raises:
            SkippedError: it cannot be started.
        """
        server = self.servers.get(name)
        if server is not None and self.contestants[name].freezes:
            server.signal(signal.SIGCONT)
            time.sleep(self.contestants[name].settle_s)
            first = next(iter(self.contestants[name].asks.values()))
            if (server.exchange(first) or (0,))[0] != 200:
                server.stop()
                server = None
                self.n_restarts[name] = self.n_restarts.get(name, 0) + 1
        if server is None:
            server = Server(self.contestants[name], self.folder)
            self.cold_start_s.setdefault(name, server.cold_start_s)
        self.servers[name] = server
        try:
            yield server
        finally:
            if self.contestants[name].freezes and server.process.poll() is None:
                server.signal(signal.SIGSTOP)
            else:
                server.stop()
                del self.servers[name]

    def close(self) -> None:
        """End all servers."""
        for server in self.servers.values():
            server.stop()
        self.servers.clear()


def exchange(port: int, request: bytes, timeout_s: float = 20.0) -> tuple[int, bytes] | None:
    """Return status and body of one HTTP request; None when nobody listens or the connection breaks."""

    class Answer:
        whole = False
        body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            self.whole = True

    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(request)
            while not answer.whole:
                data = connection.recv(1 << 20)
                if not data:
                    return None
                parser.feed_data(data)
    except OSError:
        return None
    return parser.get_status_code(), answer.body


def holds(body: bytes, expected: float, tolerance: float = TOLERANCE) -> bool:
    """Return whether a number near `expected` stands in an answer: in its JSON, or as a float32 anywhere in its bytes."""
    import msgspec

    try:
        found: list[Any] = [msgspec.json.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return any(_near(struct.unpack_from("<f", body, i)[0], expected, tolerance) for i in range(len(body) - 3))
    while found:
        value = found.pop()
        if isinstance(value, float) and _near(value, expected, tolerance):
            return True
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return False


def _near(value: float, expected: float, tolerance: float) -> bool:
    return math.isfinite(value) and abs(value - expected) < tolerance
