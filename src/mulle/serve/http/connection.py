"""HTTP/1.1 on an asyncio protocol: parsing, limits, answers in order. It knows requests and answers, no models.

A request whose head was met before (`heads.py`) and that is whole in what was received goes straight to its target.
Everything else goes through the parser (httptools). What the parser does not do is done here, each found by trying:

- trailers arrive like headers, after the body: ignored, or a trailer could forge a header that was checked before;
- ten megabytes of one header cause no callback: raw bytes are counted while a head is unfinished;
- `Upgrade` swallows the body (Java's client asks for h2c on every first request): the head is replayed without it;
- a missing Host passes; data behind a `Connection: close` request is an error *after* that valid request.

Answers leave in the order of their requests: each request holds a slot, and a slot's bytes wait for the slots before it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

from mulle.serve.http.bulk import Bulk, padding_of
from mulle.serve.http.checks import RawHead, check_head, is_plain, too_large_body, without_upgrade
from mulle.serve.http.heads import END, Head
from mulle.serve.http.messages import LastWord, Response, Slot, problem, render_response

if TYPE_CHECKING:
    from mulle.serve.http.listener import HttpServer

_PER_TICK = 16
_MAX_REPLAYS = 16
_MAX_HEADERS = 100
_MAX_NAMES = 256
_LINGER_S = 2.0
_CHUNK_OVERHEAD = 8
_BODY_SLACK_BYTES = 64 << 10
_EARLY_REFUSAL_BYTES = 64 << 10
_BULK_BYTES = 32 << 10
_VARY = "vary: Origin\r\n"
_NEVER_REMEMBERED = frozenset({"transfer-encoding", "expect", "upgrade", "trailer"})


class Connection(asyncio.Protocol):
    """One connection: bytes to requests, answers to bytes."""

    def __init__(self, server: "HttpServer") -> None:
        self.server = server
        self.slots: deque[Slot] = deque()
        self._limits = server.limits
        self._heads = server.heads
        self._names = server.names
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._phase = "idle"
        self._deadline: float | None = server.idle_deadline
        self._work: deque[Callable[[], None]] = deque()
        self._working = False
        self._paused = False
        self._reading = True
        self._last = False
        self._lingering = False
        self._message_ended = False
        self._refused = False
        self._receiving = False
        self._chunk: bytes | None = None
        self._rest = b""
        self._bulk: Bulk | None = None
        self._reset()

    # ---- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self.server.connections.add(self)
        self.server.n_accepted += 1
        if len(self.server.connections) > self._limits.connections:
            self._reject(
                503, "http-too-many-connections", "the server has no room for another connection", "try again in a moment", retry=True
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; what was already logged stays logged."""
        del exc
        self._transport = None
        for slot in self.slots:
            slot.cancel()
        self.slots.clear()
        self._work.clear()
        self._rest = b""
        self.server.forget(self)

    def eof_received(self) -> bool:
        """Answer what was asked before the other side stopped talking."""
        if not self.slots:
            return False
        self._last = True
        self.slots[-1].keep = False
        return True

    def pause_writing(self) -> None:
        """Stop working for a client that does not read."""
        self._paused = True
        self._deadline = self._loop.time() + self._limits.write_timeout_s
        self._throttle()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._deadline = self._loop.time() + (self._limits.idle_timeout_s if self._phase == "idle" else self._limits.body_timeout_s)
        self._run()
        self._throttle()

    def data_received(self, data: bytes) -> None:
        """Hand whole requests with known heads to their targets, the rest to the parser."""
        self.server.n_bytes_in += len(data)
        if self._lingering or self._last:
            return
        if self._bulk is not None:
            data = self._fill(data)
            if not data:
                return
        self._receiving = True
        fresh = self._phase == "idle"
        if fresh:
            data = self._take_known(data)
            if data:
                self._begin_head()
        if data:
            self._chunk = data if fresh else None  # it may be one whole message, whose head is worth remembering
            self._parse(data)
        self._received()

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
        known = self._names.get(name) or self._learn_name(name)
        self._headers.append((known, value.decode("latin-1").strip()))
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
        if self._refused:
            return
        url, version, server = bytes(self._url), self._parser.get_http_version(), self.server
        if (self._method, url) not in server.places or not is_plain(self._headers, version, server.plain_hosts, self._limits):
            raw = RawHead(self._method, url, version, self._headers)
            refusal = check_head(raw, self._limits, server.allowed_hosts, server.cors)
            if refusal is not None:
                self._refuse(refusal)
                return
            server.learn_host(raw)
        head = self._head = self._make_head(url)
        # A large body is not read for an answer that is no; a small one is, and the connection lives on.
        if not 0 <= head.n_body <= _EARLY_REFUSAL_BYTES:
            refusal = head.target.refuse_early(head)
            if refusal is not None:
                self._refuse(refusal)
                return
        if "expect" in head.headers and self._transport is not None and not self.slots:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.n_body > _BULK_BYTES:
            head.keep = bool(self._parser.should_keep_alive())
            self._bulk = Bulk(head.n_body, padding_of(head.headers))

    def on_body(self, piece: bytes) -> None:
        """Collect the body up to its limit."""
        if self._refused:
            return
        if self._bulk is not None:
            self._bulk.add(piece)
            return
        self._n_body += len(piece)
        if self._n_body > self._limits.body_bytes:
            self._pieces.clear()
            self._refuse(too_large_body(self._limits))
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Hand the whole request to its target."""
        if self._parser.should_upgrade():
            return
        self._phase = "idle"
        self._message_ended = True
        self._deadline = None
        head = self._head
        if self._refused or head is None:
            return
        if self._bulk is not None:
            self._begin_bulk(head, self._bulk)
            return
        head.keep = bool(self._parser.should_keep_alive())
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        chunk, self._chunk = self._chunk, None
        if not head.keep:
            self._last = True
        elif chunk is not None and not _NEVER_REMEMBERED & head.headers.keys():
            self._heads.offer(chunk, head)
        head.target.begin(self, head, body)

    # ---- called by targets

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do `work` soon, a few per turn of the loop, in order."""
        self._work.append(work)
        if not self._working and not self._receiving:
            self._run()

    def keeps(self, slot: Slot) -> bool:
        """Return whether the connection stays open after the answer of `slot`."""
        return slot.keep and not (self.server.draining and len(self.slots) == 1 and not self._rest)

    def respond(self, slot: Slot, response: Response, *, extra: str = "", head_only: bool = False) -> None:
        """Complete `slot` with a response."""
        keep = self.keeps(slot)
        self.complete(slot, render_response(response, date=self.server.date, extra=extra, keep=keep, head_only=head_only), keep=keep)

    def complete(self, slot: Slot, data: bytes, *, keep: bool = True) -> None:
        """Send `data` once everything before it has been sent.

        Args:
            slot: In `slots`; nothing happens when the client has gone.
            data: The whole answer.
            keep: From `keeps`. False: the answer says `connection: close`, and the connection ends behind it.
        """
        transport = self._transport
        slots = self.slots
        if transport is None or slot.cancelled:
            return
        slot.keep = keep
        if slots[0] is not slot:
            slot.data = data
            return
        slots.popleft()
        self.server.n_bytes_out += len(data)
        transport.write(data)
        if keep and not slots and self._reading and self._phase == "idle" and not self._lingering and not self._paused:
            # Nearly always: one question, one answer.
            self._deadline = self.server.idle_deadline
            return
        while slots and (following := slots[0].data) is not None:
            keep = slots.popleft().keep
            self.server.n_bytes_out += len(following)
            transport.write(following)
        if slots:
            return
        if self._lingering:
            self._begin_linger()
        elif not keep and self._phase == "idle" and not self._work:
            transport.close()
        elif self._phase == "idle" and not self._paused:
            self._deadline = self.server.idle_deadline
        if not self._reading:
            self._throttle()

    # ---- called by the server

    def expire(self, now: float) -> None:
        """End the connection if its time is over."""
        if self._deadline is None or now < self._deadline or self._transport is None:
            return
        if self._paused or self._lingering:
            self._transport.abort()
        elif self._phase == "idle":
            if not self.slots:
                self._transport.close()
        else:
            self._reject(
                408, "http-timeout", f"the {self._phase} of the request did not arrive in time", "send it faster, or in smaller pieces"
            )

    def close_if_idle(self) -> bool:
        """Close unless a request is on its way; return whether it was closed."""
        idle = self._transport is not None and self._phase == "idle" and not self.slots and not self._rest
        if idle and self._transport is not None:
            self._transport.close()
        return idle

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    # ---- inside

    def _take_known(self, data: bytes) -> bytes:
        """Hand whole requests with known heads to their targets, and return what is left for the parser."""
        at, size, is_full = 0, len(data), self.server.is_full
        while at < size:
            if is_full is not None and self.slots and is_full():
                self._rest = data[at:]
                return b""
            cut = data.find(END, at)
            if cut < 0:
                break
            head = self._heads.get(data[at:cut])
            if head is None:
                break
            start = cut + 4
            end = start + head.n_body
            if end > size:
                break
            self._deadline = None
            head.target.begin(self, head, data[start:end])
            at = end
        return data[at:] if at else data

    def _take_rest(self) -> None:
        """Go on where the server was too full: what this connection had asked before has been answered."""
        rest, self._rest = self._rest, b""
        self.server.n_bytes_in -= len(rest)
        self.data_received(rest)
        self._throttle()

    def _parse(self, data: bytes) -> None:
        self._message_ended = False
        in_head = self._phase == "head"
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._replay(data[int(upgrade.args[0]) :])
        except httptools.HttpParserError as error:
            self._malformed(error)
        self._chunk = None
        self._count(len(data), in_head=in_head)

    def _fill(self, data: bytes) -> bytes:
        """Take the rest of a large body as it is, past the parser, and return what lies behind it."""
        head, bulk = self._head, self._bulk
        if head is None or bulk is None or self._refused:
            return b""
        taken = bulk.add(data)
        if not bulk.full:
            return b""
        # The parser still waits for what it never saw.
        self._parser = httptools.HttpRequestParser(self)
        self._phase, self._deadline = "idle", None
        self._head_bytes = 0
        self._receiving = True
        self._begin_bulk(head, bulk)
        self._received()
        return b"" if self._last else data[taken:]

    def _begin_bulk(self, head: Head, bulk: Bulk) -> None:
        self._bulk = None
        self._last = not head.keep
        # What takes views of a body takes them as it takes bytes.
        head.target.begin(self, head, cast("bytes", bulk.view) if head.target.takes_views else bytes(bulk.view))

    def _received(self) -> None:
        """Begin what came in, now that it is known how much: a draining server answers all of it."""
        self._receiving = False
        if self._work and not self._working:
            self._run()
        if self._rest or len(self.slots) > self._limits.pipelined:
            self._throttle()

    def _reset(self) -> None:
        self._url = bytearray()
        self._headers: list[tuple[str, str]] = []
        self._head: Head | None = None
        self._method = ""
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._n_body = 0
        self._raw_bytes = 0

    def _make_head(self, url: bytes) -> Head:
        server = self.server
        place = server.places.get((self._method, url)) or server.find_place(self._method, url)
        head = Head(self._method, place.path, place.query, self._headers, n_body=0, target=place.target)
        headers = head.headers
        head.n_body = -1 if "transfer-encoding" in headers else int(headers.get("content-length", "0"))
        origin = headers.get("origin")
        if server.cors is not None:
            head.extra = (server.cors(origin) if origin is not None else None) or _VARY
        return head

    def _learn_name(self, name: bytes) -> str:
        known = name.decode("latin-1").lower()
        if len(self._names) < _MAX_NAMES:
            self._names[name] = known
        return known

    def _begin_head(self) -> None:
        self._phase = "head"
        self._raw_bytes = 0
        self._deadline = self._loop.time() + self._limits.head_timeout_s

    def _count(self, n_bytes: int, *, in_head: bool) -> None:
        """Count raw bytes: what the parser swallows without a callback must not be free."""
        if self._message_ended or self._refused:
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
        self._chunk = None
        for _ in range(_MAX_REPLAYS):
            if self._method == "CONNECT":
                self._reject(405, "method-not-allowed", "this is not a proxy", "use GET or POST")
                return
            data = without_upgrade(self._method, bytes(self._url), self._headers) + rest
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

    def _malformed(self, error: Exception) -> None:
        # Bytes behind the last request of a connection are an error of the parser, and none of the request.
        if not self._last:
            self._reject(400, "http-malformed", f"this is not HTTP/1.1: {str(error)[:100]}", "check the client")

    def _too_large_head(self) -> None:
        self._reject(
            431, "http-head-too-large", f"the head is larger than {self._limits.head_bytes:,} bytes", "send fewer or shorter headers"
        )

    def _reject(self, status: int, code: str, what: str, fix: str, *, retry: bool = False) -> None:
        self._refuse(problem(status, code, what, fix=fix, headers={"retry-after": "1"} if retry else None))

    def _refuse(self, response: Response) -> None:
        """Answer `response` after everything that waits, and end; only the first refusal of a connection counts."""
        if self._refused:
            return
        self._refused = self._last = self._lingering = True
        self._deadline = None
        slot = LastWord()
        self.slots.append(slot)
        data = render_response(response, date=self.server.date, extra="", keep=False, head_only=False)
        self.complete(slot, data, keep=False)

    def _begin_linger(self) -> None:
        """Let the refusal arrive before closing: closing on unread bytes would reset the connection and lose it."""
        self._deadline = self._loop.time() + _LINGER_S
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _run(self) -> None:
        """Do what waits, in order; after some of it let other connections have their turn."""
        self._working = True
        for _ in range(_PER_TICK):
            if self._paused or not self._work:
                self._working = False
                break
            self._work.popleft()()
        else:
            self._loop.call_soon(self._run)

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._lingering:
            return
        wanted = len(self.slots) <= (0 if self._rest else self._limits.pipelined) and not self._paused
        if wanted and self._rest:
            # Reading goes on behind it.
            self._loop.call_soon(self._take_rest)
            wanted = False
        if wanted and not self._reading:
            self._transport.resume_reading()
        elif not wanted and self._reading:
            self._transport.pause_reading()
        self._reading = wanted
