"""One keep-alive connection of the load generator: the hot path, and what every other way an answer can go wrong counts as."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mulle.serve.loadtest.answers import MAX_HEAD_BYTES, Chunks, Head, MalformedError
from mulle.serve.loadtest.histogram import BITS, N_BUCKETS

if TYPE_CHECKING:
    from mulle.serve.loadtest.generator import Generator

clock = time.monotonic_ns

_SPELLINGS = (b"\r\ncontent-length:", b"\r\nContent-Length:")
_WIDTH = len(_SPELLINGS[0])
_END = b"\r\n\r\n"
_STEP = BITS + 1


class Tally:
    """What the connections of one generator count together.

    Attributes:
        since: Requests intended before this moment are of the warm-up and count nothing.
        ok: Buckets of the latencies answered 200; also in `by_status`.
    """

    __slots__ = (
        "by_status",
        "bytes_in",
        "bytes_out",
        "errors",
        "lag",
        "n_done",
        "n_held",
        "n_late",
        "n_reconnects",
        "n_sent",
        "ok",
        "since",
    )

    def __init__(self, since: int = 0) -> None:
        self.since = since
        self.n_done = self.n_held = self.n_late = self.n_sent = self.n_reconnects = self.bytes_in = self.bytes_out = 0
        self.clear(since)

    def clear(self, since: int) -> None:
        """Forget all outcomes; from now on only requests intended at or after `since` have one. The running counts go on."""
        self.since = since
        self.ok = [0] * N_BUCKETS
        self.by_status: dict[bytes, list[int]] = {b"200": self.ok}
        self.lag = [0] * N_BUCKETS
        self.errors: dict[str, int] = {}

    def fail(self, kind: str, begun: int) -> None:
        """Count one request without an answer."""
        if begun >= self.since:
            self.errors[kind] = self.errors.get(kind, 0) + 1


class Connection(asyncio.Protocol):
    """Writes requests and takes their answers in order.

    Attributes:
        queue: Intended moments of the requests that wait for an answer, oldest first.
        dead: How many at the head of `queue` were given up; their answers are thrown away.
        usable: Whether requests may be written.
        listed: Whether the generator knows that there is room.
    """

    __slots__ = (
        "_body", "_closing", "_generator", "_need", "_spelling", "_started", "_status", "_tail", "_tally", "_transport",
        "dead", "listed", "queue", "usable", "write",
    )  # fmt: skip
    write: Callable[[bytes], None]

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._tally = generator.tally
        self._transport: asyncio.Transport | None = None
        self.queue: deque[int] = deque()
        self.dead = 0
        self.usable = False
        self.listed = False
        self._spelling = _SPELLINGS[0]
        # An answer on its way: its status, and what is still to come of it.
        self._started = False
        self._status = b""
        self._tail = b""
        self._need = 0
        self._body: Chunks | str | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """Count the answers that are whole in `data`, and keep what is not."""
        now = clock()
        self._tally.bytes_in += len(data)
        try:
            if self._started:
                rest = self._resume(data, now)
                if not rest:
                    return
                data = rest
            at, end = 0, len(data)
            while at < end and self.usable:
                at = self._scan(data, at, end, now)
        except MalformedError:
            self._break("malformed")

    def _scan(self, data: bytes, at: int, end: int, now: int) -> int:
        """Count the answer that begins at `at`, and return where the next one begins."""
        head_end = data.find(_END, at)
        if head_end < 0:
            if end - at > MAX_HEAD_BYTES:
                raise MalformedError("a head without an end")
            self._tail, self._started = data[at:], True
            return end
        length_at = data.find(self._spelling, at, head_end)
        if length_at < 0 or data.find(b"lose", at, head_end) >= 0 or not data.startswith(b"HTTP/1.1 ", at):
            return self._scan_slowly(data, at, head_end, now)
        try:
            length_at += _WIDTH
            body_end = head_end + 4 + int(data[length_at : data.find(b"\r", length_at)])
        except ValueError as error:
            raise MalformedError("a content-length that is no number") from error
        if body_end < head_end + 4:
            raise MalformedError("a negative content-length")
        if body_end > end:
            self._status, self._need, self._started = data[at + 9 : at + 12], body_end - end, True
            return end
        self._answered(data[at + 9 : at + 12], now)
        return body_end

    def _answered(self, status: bytes, now: int) -> None:
        tally, queue = self._tally, self.queue
        if not queue:
            raise MalformedError("an answer nobody asked for")
        begun = queue.popleft()
        tally.n_done += 1
        if self.dead:
            self.dead -= 1
            tally.n_late += 1
        elif begun >= tally.since:
            if status == b"200":
                counts = tally.ok
            else:
                counts = tally.by_status.get(status)
                if counts is None:
                    if not status.isdigit():
                        raise MalformedError("a status that is no number")
                    counts = tally.by_status[status] = [0] * N_BUCKETS
            # `histogram.bucket_of`, written out: a call costs more than the bucket.
            took = now - begun
            shift = took.bit_length() - _STEP
            bucket = took if shift <= 0 else (shift << BITS) + (took >> shift)
            counts[bucket] += 1
        if self._closing:
            self.close("reset")
        else:
            self._generator.answered(self, now)

    def _scan_slowly(self, data: bytes, at: int, head_end: int, now: int) -> int:
        head = Head(data[at:head_end])
        at = head_end + 4
        if head.body == "interim":
            return at
        if not head.closing:
            self._spelling = next((s for s in _SPELLINGS if data.find(s, 0, head_end) >= 0), self._spelling)
        self._status, self._closing, self._started = head.status, head.closing, True
        if head.body == "chunks":
            self._body = Chunks()
        elif head.body == "end":
            self._body = "end"
        self._need = head.length
        rest = self._resume(data[at:], now)
        return len(data) - len(rest)

    def _resume(self, data: bytes, now: int) -> bytes:
        """Go on with an answer that has begun, and return what follows it."""
        if self._tail:
            data, self._tail, self._started = self._tail + data, b"", False
            return data
        if self._body == "end":
            return b""
        if isinstance(self._body, Chunks):
            rest = self._body.feed(data)
            if rest is None:
                return b""
        else:
            taken = min(self._need, len(data))
            self._need -= taken
            if self._need:
                return b""
            rest = data[taken:]
        self._started, self._body = False, None
        self._answered(self._status, now)
        return rest if self.usable else b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was still to be answered, and have another connection opened."""
        if not self.usable:
            return
        if self._body == "end" and exc is None:
            self._started, self._body = False, None
            self._answered(self._status, clock())
            return
        self.close("short" if self._started else "reset")

    def close(self, kind: str) -> None:
        """Give the connection up: the first unanswered request counts as `kind`, those behind it as `reset`."""
        if not self.usable:
            return
        self.usable = False
        for begun in list(self.queue)[self.dead :]:
            self._tally.fail(kind, begun)
            kind = "reset"
        self.queue.clear()
        self.dead = 0
        if self._transport is not None:
            self._transport.abort()
        self._generator.gone(self)

    def _break(self, kind: str) -> None:
        if not self.queue:
            # Bytes nobody asked for: they belong to no request, but they are counted.
            self._tally.fail(kind, clock())
        self.close(kind)
