"""HTTP/1.1 answers as a stream of bytes, scanned with as little work as telling them apart takes.

The usual answer (a `content-length`, nothing closing) costs three searches in its head. Everything else (chunks, a
closing server, bodies until the end, interim answers) takes the slow way below.
"""

from typing import Literal

MAX_HEAD_BYTES = 64 << 10
_STATUS_DIGITS = 3


class MalformedError(Exception):
    """The bytes are no HTTP/1.1 answer; the message says why."""


class Head:
    """An answer's head, read whole.

    Attributes:
        status: Three digits, as bytes.
        body: How the body ends: after `length` bytes, with its last chunk, with the connection, or there is none and
            another answer follows (`interim`).
        length: Bytes of the body where `body` is `length`.
        closing: Whether the server will close the connection after it.
    """

    __slots__ = ("body", "closing", "length", "status")

    def __init__(self, data: bytes) -> None:
        lines = data.split(b"\r\n")
        self.status = lines[0][9:12]
        if not lines[0].startswith(b"HTTP/1.") or len(self.status) != _STATUS_DIGITS or not self.status.isdigit():
            raise MalformedError("no status line")
        fields: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise MalformedError("a header line without a colon")
            fields[name.strip().lower()] = value.strip().lower()
        connection = fields.get(b"connection", b"")
        self.closing = b"close" in connection or (lines[0].startswith(b"HTTP/1.0") and b"keep-alive" not in connection)
        self.length = 0
        self.body: Literal["length", "chunks", "end", "interim"] = "length"
        if self.status.startswith(b"1"):
            self.body = "interim"
        elif self.status in {b"204", b"304"}:
            return
        elif b"chunked" in fields.get(b"transfer-encoding", b""):
            self.body = "chunks"
        elif b"content-length" in fields:
            self.length = parse_length(fields[b"content-length"])
        else:
            self.body, self.closing = "end", True


class Chunks:
    """A chunked body on its way, in whatever pieces it comes."""

    __slots__ = ("_need", "_rest", "_trailer")

    def __init__(self) -> None:
        self._need = 0
        self._rest = b""
        self._trailer = False

    def feed(self, data: bytes) -> bytes | None:
        """Return what follows the body's end in `data`, or None when the body goes on.

        Raises:
            MalformedError: a chunk has no size.
        """
        data = self._rest + data
        self._rest = b""
        at = 0
        while True:
            if self._need:
                taken = min(self._need, len(data) - at)
                self._need -= taken
                at += taken
                if self._need:
                    return None
            end = data.find(b"\r\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > MAX_HEAD_BYTES:
                    raise MalformedError("a chunk's size without an end")
                return None
            line = data[at:end]
            at = end + 2
            if self._trailer:
                if not line:
                    return data[at:]
                continue
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError as error:
                raise MalformedError("a chunk without a size") from error
            if size < 0:
                raise MalformedError("a chunk of negative size")
            self._trailer = size == 0
            # The line break after a chunk belongs to it.
            self._need = size + 2 if size else 0


def parse_length(text: bytes) -> int:
    """Return the value of a `content-length`.

    Raises:
        MalformedError: it is no number.
    """
    text = text.strip()
    if not text.isdigit():
        raise MalformedError("a content-length that is no number")
    return int(text)
