"""A load generator for gRPC: HTTP/2 with prepared frames, so that the client costs less than the server it measures.

It knows what unary calls need and no more: requests whose head is the same bytes every time (HPACK literals), SETTINGS, PING and
flow control. A call counts as answered when its stream ended after a message; a stream that ends without one is an error.
"""

import asyncio
import socket
import struct
import time

from mulle.serve.loadtest.histogram import Histogram

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK, _PADDED = 1, 4, 1, 8
_LARGE = 0x7FFFFFFF


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def opening() -> bytes:
    """Return what a client says first: no header table, so that answers are spelt out, and windows that never close."""
    settings = struct.pack(">HIHI", 1, 0, 4, _LARGE)
    return PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, struct.pack(">I", _LARGE - 65535))


def head_block(path: str, port: int, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return the HPACK block of a request: static names, literal values, nothing to remember."""

    def text(value: str) -> bytes:
        data = value.encode("ascii")
        assert len(data) < 127
        return bytes((len(data),)) + data

    block = b"\x83\x86\x04" + text(path) + b"\x01" + text(f"127.0.0.1:{port}")
    fields = (("te", "trailers"), ("content-type", "application/grpc"), *headers)
    return block + b"".join(b"\x00" + text(name) + text(value) for name, value in fields)


class Channel(asyncio.Protocol):
    """One connection with a number of calls at a time; each that ends is followed by another."""

    def __init__(self, head: bytes, messages: tuple[bytes, ...], calls: int, histogram: Histogram | None) -> None:
        self.histogram = histogram
        self.calls = calls
        length = struct.pack(">I", len(head))[1:]
        self.parts = [
            (length + bytes((_HEADERS, _END_HEADERS)), head, struct.pack(">I", len(body))[1:] + bytes((_DATA, _END_STREAM)), body)
            for body in (b"\x00" + struct.pack(">I", len(message)) + message for message in messages)
        ]
        self.next_stream, self.turn = 1, 0
        self.window = 65535
        self.began: dict[int, int] = {}
        self.answered: set[int] = set()
        self.waiting = 0
        self.n_ok = self.n_failed = 0
        self.asking = True
        self.buffer = b""
        self.last = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open, and ask at once."""
        self.transport = transport
        transport.write(opening() + self.ask(self.calls))

    def ask(self, n: int) -> bytes:
        """Return the frames of `n` calls, or of as many as the window has room for."""
        out = []
        now = time.perf_counter_ns()
        for i in range(n):
            head_frame, head, data_frame, body = self.parts[self.turn]
            if self.window < len(body):
                self.waiting += n - i
                break
            self.turn = (self.turn + 1) % len(self.parts)
            self.window -= len(body)
            stream = self.next_stream
            self.next_stream = stream + 2
            number = struct.pack(">I", stream)
            out += (head_frame, number, head, data_frame, number, body)
            self.began[stream] = now
        return b"".join(out)

    def data_received(self, data: bytes) -> None:
        """Take every whole frame, and ask again for each call that ended."""
        buffer = self.buffer + data if self.buffer else data
        at, end = 0, len(buffer)
        out = b""
        n_before = self.n_ok + self.n_failed
        while at + 9 <= end:
            after = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if after > end:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big") & _LARGE
            if stream:
                self.heard(kind, flags, stream, buffer[at + 9 : after])
            else:
                out += self.control(kind, flags, buffer[at + 9 : after])
            at = after
        self.buffer = buffer[at:]
        n_done = self.n_ok + self.n_failed - n_before
        n, self.waiting = n_done + self.waiting, 0
        if n and self.asking:
            out += self.ask(n)
        elif n_done and not self.ended.done():
            self.ended.set_result(None)
        if out:
            self.transport.write(out)

    def heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take a frame of a call."""
        if kind == _DATA and len(payload) > 5:
            self.answered.add(stream)
            self.last = payload
        over = kind == _RESET or (flags & _END_STREAM and kind in (_DATA, _HEADERS))
        began = self.began.pop(stream, None) if over else None
        if began is None:
            return
        if stream not in self.answered or kind == _RESET:
            self.n_failed += 1
            return
        self.answered.discard(stream)
        self.n_ok += 1
        if self.histogram is not None:
            self.histogram.record(time.perf_counter_ns() - began)

    def control(self, kind: int, flags: int, payload: bytes) -> bytes:
        """Return what a frame of the connection itself is answered."""
        if kind == _SETTINGS and not flags & _ACK:
            return frame(_SETTINGS, _ACK, 0, b"")
        if kind == _PING and not flags & _ACK:
            return frame(_PING, _ACK, 0, payload)
        if kind == _WINDOW:
            self.window += int.from_bytes(payload, "big")
        elif kind == _GOAWAY:
            self.n_failed += 1
        return b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was not answered."""
        del exc
        self.n_failed += len(self.began)
        if not self.ended.done():
            self.ended.set_result(None)


async def run_calls(
    port: int,
    path: str,
    messages: tuple[bytes, ...],
    *,
    connections: int,
    calls: int,
    seconds: float,
    headers: tuple[tuple[str, str], ...] = (),
) -> tuple[Histogram, int, float]:
    """Return latencies in nanoseconds, failed calls, and how long it took in seconds.

    Args:
        port: On loopback.
        path: Of the method.
        messages: Sent in turn.
        connections: How many channels.
        calls: How many calls at a time on each.
        seconds: How long.
        headers: Metadata of every call.
    """
    loop = asyncio.get_running_loop()
    histogram = Histogram()
    head = head_block(path, port, headers)
    channels = [
        (await loop.create_connection(lambda: Channel(head, messages, calls, histogram), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    counted = histogram.copy()
    n_failed = sum(one.n_failed for one in channels)
    for one in channels:
        one.asking = False
        one.transport.abort()
    return counted, n_failed, took


def call_once(port: int, path: str, message: bytes, headers: tuple[tuple[str, str], ...] = ()) -> tuple[int, bytes] | None:
    """Return 200 and the answer's message, 500 where a call ended without one; None when nobody listens."""

    async def work() -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        head = head_block(path, port, headers)

        def make() -> Channel:
            channel = Channel(head, (message,), 1, None)
            channel.asking = False
            return channel

        transport, channel = await loop.create_connection(make, "127.0.0.1", port)
        try:
            async with asyncio.timeout(10):
                await channel.ended
        finally:
            transport.abort()
        return (200, channel.last[5:]) if channel.n_ok else (500, b"")

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        return asyncio.run(work())
    except (OSError, TimeoutError):
        return None
