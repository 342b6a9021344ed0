"""A load generator for one machine: C keep-alive connections on loopback, each asks again when it has its whole answer.

It is a bare asyncio protocol on uvloop with httptools, about 10 µs of CPU per request; it shares the machine with what it
measures, as any client here would: read the servers' CPU per request beside the rate.
"""

import asyncio
import os
import socket
import time
from pathlib import Path

import httptools
import uvloop


def request_bytes(path: str, body: bytes) -> bytes:
    """Return a whole POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float], failures: list[int]) -> None:
        self.request, self.latencies, self.failures = request, latencies, failures
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() != 200:
            self.failures.append(self.parser.get_status_code())
        self.latencies.append(time.perf_counter() - self.began)
        self.parser = httptools.HttpResponseParser(self)
        if not self.transport.is_closing():
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.transport.is_closing() or exc is not None:
            self.failures.append(0)


async def _drive(port: int, request: bytes, connections: int, seconds: float) -> tuple[list[float], list[int], float]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    failures: list[int] = []
    began = time.perf_counter()
    made = [await loop.create_connection(lambda: _Client(request, latencies, failures), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    lost = len(failures)
    for transport, _ in made:
        transport.abort()
    return latencies, failures[:lost], took


def drive(port: int, request: bytes, *, connections: int, seconds: float, pid: int) -> dict[str, float]:
    """Return requests per second, p50 and p99 in milliseconds, the server's CPU in µs per request, and failed answers.

    Args:
        port: On loopback.
        request: A whole request.
        connections: How many at a time.
        seconds: How long.
        pid: The server; its descendants are counted too.
    """
    before = tree_cpu_s(pid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        latencies, failures, took = runner.run(_drive(port, request, connections, seconds))
    used = tree_cpu_s(pid) - before
    ordered = sorted(latencies) or [float("nan")]
    return {
        "rate": len(latencies) / took,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "cpu_us": 1e6 * used / max(1, len(latencies)),
        "failed": len(failures),
    }


def ask_once(port: int, request: bytes, timeout_s: float = 30.0) -> int | None:
    """Return the status of one request on a connection of its own; None when nobody listens."""

    class Answer:
        whole = False

        def on_message_complete(self) -> None:
            self.whole = True

    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(request)
            while not answer.whole:
                data = connection.recv(1 << 16)
                if not data:
                    return None
                parser.feed_data(data)
    except OSError:
        return None
    return parser.get_status_code()


def free_port() -> int:
    """Return a port nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants (Linux)."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text(encoding="ascii").split()]
            except OSError:
                continue  # it ended meanwhile
    return found


def tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds a process and its descendants have used (Linux)."""
    ticks = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tree_memory_mib(pid: int) -> float:
    """Return the resident memory of a process and its descendants, what they share counted once (PSS, Linux)."""
    total = 0
    for one in tree(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue  # it ended meanwhile
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024
