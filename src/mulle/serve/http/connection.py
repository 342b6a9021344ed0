"""HTTP/1.1 on an asyncio protocol: parsing, limits, answers in order. It knows requests and answers, no models.

What the parser (httptools) does not do is done here, each found by trying:

- trailers arrive like headers, after the body: ignored, or a trailer could forge a header that was checked before;
- ten megabytes of one header cause no callback: raw bytes are counted while a head is unfinished;
- `Upgrade` swallows the body (Java's client asks for h2c on every first request): the head is replayed without it;
- a missing Host passes; data behind a `Connection: close` request is an error *after* that valid request.

Answers leave in the order of their requests: one request of a connection is worked on at a time, the rest wait.
"""

import asyncio
import email.utils
import http
import logging
import time
from collections import deque
from collections.abc import Awaitable
from typing import cast

import httptools

from mulle.serve.http.checks import Head, Limits, check_head, too_large_body
from mulle.serve.http.messages import Handler, Request, Response, problem

LOG = logging.getLogger("mulle.serve")
_PER_TICK = 16
_MAX_REPLAYS = 16
_MAX_HEADERS = 100
_LINGER_S = 2.0
_CHUNK_OVERHEAD = 8
_BODY_SLACK_BYTES = 64 << 10
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_DROPPED_ON_REPLAY = frozenset({"upgrade", "connection", "http2-settings"})


class HttpServer:
    """All connections of one listening socket.

    Args:
        handler: Gives the answer to a request, at once or to be awaited; it does not raise.
        limits: See `Limits`.
        allowed_hosts: Names the Host and Origin headers may carry, against DNS rebinding; None: any.
    """

    def __init__(self, handler: Handler, *, limits: Limits, allowed_hosts: frozenset[str] | None) -> None:
        self.handler = handler
        self.limits = limits
        self.allowed_hosts = allowed_hosts
        self.draining = False
        self.connections: set[Connection] = set()
        self.empty = asyncio.Event()
        self._date = ""
        self._date_s = 0

    def __call__(self) -> "Connection":
        """Return the protocol of a new connection."""
        return Connection(self)

    @property
    def n_in_flight(self) -> int:
        """Requests received and not yet answered."""
        return sum(connection.n_in_flight for connection in self.connections)

    def sweep(self, now: float) -> None:
        """End the connections whose time is over; call it a few times a second."""
        for connection in list(self.connections):
            connection.expire(now)

    def drain(self) -> None:
        """Close idle connections now, and every other after its current request."""
        self.draining = True
        if not self.connections:
            self.empty.set()
        for connection in list(self.connections):
            connection.close_if_idle()

    def forget(self, connection: "Connection") -> None:
        """Take note of a connection that has ended; `empty` is set when the last one has, while draining."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.empty.set()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.abort()

    def date(self) -> str:
        """Return the Date header, formatted once a second."""
        now = int(time.time())
        if now != self._date_s:
            self._date_s, self._date = now, email.utils.formatdate(now, usegmt=True)
        return self._date


class Connection(asyncio.Protocol):
    """One connection: bytes to requests, answers to bytes."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._phase = "idle"
        self._deadline: float | None = self._loop.time() + self._limits.idle_timeout_s
        self._waiting: deque[tuple[Request | Response, bool]] = deque()
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._last = False
        self._lingering = False
        self._message_ended = False
        self._reset()

    @property
    def n_in_flight(self) -> int:
        """Requests of this connection received and not yet answered."""
        return len(self._waiting) + self._busy

    # ---- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        if len(self._server.connections) > self._limits.connections:
            self._reject(
                503, "http-too-many-connections", "the server has no room for another connection", "try again in a moment", retry=True
            )
            self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; what was already logged stays logged."""
        del exc
        self._transport = None
        self._waiting.clear()
        self._server.forget(self)

    def eof_received(self) -> bool:
        """Answer what was asked before the other side stopped talking."""
        if self._lingering or not (self._busy or self._waiting):
            return False
        self._last = True
        return True

    def pause_writing(self) -> None:
        """Stop working for a client that does not read."""
        self._paused = True
        self._deadline = self._loop.time() + self._limits.write_timeout_s

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._deadline = self._loop.time() + (self._limits.idle_timeout_s if self._phase == "idle" else self._limits.body_timeout_s)
        self._work()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then work on what came out."""
        if self._lingering or self._last:
            return
        if self._phase == "idle":
            self._begin_head()
        self._message_ended = False
        in_head = self._phase == "head"
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._replay(data[int(upgrade.args[0]) :])
        except httptools.HttpParserError as error:
            self._malformed(error)
        self._count(len(data), in_head=in_head)
        self._work()

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reset()
        self._begin_head()

    def on_url(self, piece: bytes) -> None:
        """Collect the target, which may come in pieces."""
        self._url += piece
        if len(self._url) > self._limits.head_bytes:
            self._too_large_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; after the body it is a trailer, and ignored."""
        if self._phase == "body":
            return
        self._head_bytes += len(name) + len(value)
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))
        if self._head_bytes > self._limits.head_bytes or len(self._headers) > _MAX_HEADERS:
            self._too_large_head()

    def on_headers_complete(self) -> None:
        """Check the head before any of the body is taken."""
        self._method = self._parser.get_method().decode("ascii")
        if self._parser.should_upgrade():
            return
        self._phase = "body"
        self._raw_bytes = 0
        self._deadline = self._loop.time() + self._limits.body_timeout_s
        if self._rejected:
            return
        head = Head(self._method, bytes(self._url), self._parser.get_http_version(), self._headers)
        refusal = check_head(head, self._limits, self._server.allowed_hosts)
        if refusal is not None:
            self._put_last(refusal)
        elif any(name == "expect" for name, _ in self._headers) and self._transport is not None and not (self._waiting or self._busy):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        """Collect the body up to its limit."""
        if self._rejected:
            return
        self._n_body += len(piece)
        if self._n_body > self._limits.body_bytes:
            self._pieces.clear()
            self._put_last(too_large_body(self._limits))
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Put the whole request in line."""
        if self._parser.should_upgrade():
            return
        self._phase = "idle"
        self._message_ended = True
        self._deadline = None
        if self._rejected:
            return
        keep = bool(self._parser.should_keep_alive())
        url = httptools.parse_url(bytes(self._url))
        query = cast("bytes | None", url.query) or b""
        path = cast("bytes | None", url.path) or b"/"
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        request = Request(self._method, path.decode("latin-1"), query.decode("latin-1"), dict(self._headers), body)
        self._pieces = []
        self._waiting.append((request, keep))
        if not keep:
            self._last = True

    # ---- called by the server

    def expire(self, now: float) -> None:
        """End the connection if its time is over."""
        if self._deadline is None or now < self._deadline or self._transport is None:
            return
        if self._paused or self._lingering:
            self._transport.abort()
        elif self._phase == "idle":
            self._transport.close()
        else:
            self._reject(
                408, "http-timeout", f"the {self._phase} of the request did not arrive in time", "send it faster, or in smaller pieces"
            )
            self._work()

    def close_if_idle(self) -> None:
        """Close unless a request is on its way."""
        if self._transport is not None and self._phase == "idle" and not self.n_in_flight:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    # ---- inside

    def _reset(self) -> None:
        self._url = bytearray()
        self._headers: list[tuple[str, str]] = []
        self._method = ""
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._n_body = 0
        self._raw_bytes = 0

    @property
    def _rejected(self) -> bool:
        return self._lingering or (self._last and bool(self._waiting) and isinstance(self._waiting[-1][0], Response))

    def _begin_head(self) -> None:
        self._phase = "head"
        self._raw_bytes = 0
        self._deadline = self._loop.time() + self._limits.head_timeout_s

    def _count(self, n_bytes: int, *, in_head: bool) -> None:
        """Count raw bytes: what the parser swallows without a callback must not be free."""
        if self._message_ended or self._rejected:
            return
        self._raw_bytes += n_bytes
        if self._phase == "head" and in_head and self._raw_bytes > self._limits.head_bytes:
            self._too_large_head()
        elif (
            self._phase == "body"
            and self._raw_bytes > _CHUNK_OVERHEAD * self._n_body + _BODY_SLACK_BYTES + self._limits.head_bytes + n_bytes
        ):
            self._reject(413, "body-too-large", "the chunked body is mostly framing", "send larger chunks, or a content-length")

    def _replay(self, rest: bytes) -> None:
        """Read a request that asked for another protocol as if it had not: the answer in HTTP/1.1 is allowed."""
        for _ in range(_MAX_REPLAYS):
            if self._method == "CONNECT":
                self._reject(405, "method-not-allowed", "this is not a proxy", "use GET or POST")
                return
            data = self._head_without_upgrade() + rest
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # One more, pipelined behind the first.
                rest = data[int(upgrade.args[0]) :]
                continue
            except httptools.HttpParserError as error:
                self._malformed(error)
            return
        self._reject(400, "http-malformed", "too many pipelined requests ask for another protocol", "leave the header Upgrade out")

    def _head_without_upgrade(self) -> bytes:
        kept = [f"{name}: {value}" for name, value in self._headers if name not in _DROPPED_ON_REPLAY]
        if any(name == "connection" and "close" in value.lower() for name, value in self._headers):
            kept.append("connection: close")
        lines = [f"{self._method} {bytes(self._url).decode('latin-1')} HTTP/1.1", *kept, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def _malformed(self, error: Exception) -> None:
        # Bytes behind the last request of a connection are an error of the parser, and none of the request.
        if not self._last:
            self._reject(400, "http-malformed", f"this is not HTTP/1.1: {str(error)[:100]}", "check the client")

    def _too_large_head(self) -> None:
        self._reject(
            431, "http-head-too-large", f"the head is larger than {self._limits.head_bytes:,} bytes", "send fewer or shorter headers"
        )

    def _reject(self, status: int, code: str, what: str, fix: str, *, retry: bool = False) -> None:
        if not self._rejected:
            self._put_last(problem(status, code, what, fix=fix, headers={"retry-after": "1"} if retry else None))

    def _put_last(self, response: Response) -> None:
        """Answer `response` after everything that waits, and end."""
        self._waiting.append((response, False))
        self._last = True

    def _work(self) -> None:
        """Answer what waits, in order; after some requests let other connections have their turn."""
        for _ in range(_PER_TICK):
            if self._busy or self._paused or not self._waiting or self._transport is None:
                break
            item, keep = self._waiting.popleft()
            if isinstance(item, Response):
                self._write(item, keep=False, head_only=False)
                self._linger()
                break
            answer = self._server.handler(item)
            if isinstance(answer, Response):
                self._finish(answer, item, keep=keep)
            else:
                self._busy = True
                self._task = self._loop.create_task(self._await(answer, item, keep=keep))
        else:
            self._loop.call_soon(self._work)
        self._throttle()

    async def _await(self, answer: Awaitable[Response], request: Request, *, keep: bool) -> None:
        try:
            response = await answer
        finally:
            self._busy = False
        self._finish(response, request, keep=keep)
        self._work()

    def _finish(self, response: Response, request: Request, *, keep: bool) -> None:
        # A draining server still answers what this connection has sent already.
        keep = keep and not (self._server.draining and not self._waiting)
        self._write(response, keep=keep, head_only=request.method == "HEAD")
        if not keep and self._transport is not None:
            self._transport.close()
        elif self._phase == "idle" and not self.n_in_flight and not self._paused:
            self._deadline = self._loop.time() + self._limits.idle_timeout_s

    def _write(self, response: Response, *, keep: bool, head_only: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        lines = [
            f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}",
            f"content-type: {response.content_type}",
            f"content-length: {len(response.body)}",
            f"date: {self._server.date()}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        if not keep:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self._transport.write(head if head_only else head + response.body)

    def _linger(self) -> None:
        """Let the refusal arrive before closing: closing on unread bytes would reset the connection and lose it."""
        self._lingering = True
        self._deadline = self._loop.time() + _LINGER_S
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._lingering:
            return
        if len(self._waiting) > self._limits.pipelined or self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
