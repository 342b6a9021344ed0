"""Heads that were parsed and checked before: a client repeats its head byte for byte, so that only the first one is parsed.

A head decides nothing but itself: the same bytes at a message's start always mean the same method, target, headers and
length. So the bytes are the key, and what the parser and every check made of them is the value.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mulle.serve.http.messages import Target

END = b"\r\n\r\n"
MAX_HEAD_BYTES = 2048
MAX_HEADS = 512


class Head:
    """One request's head after parsing and checking.

    Attributes:
        method: Upper-case.
        path: Not percent-decoded: no route needs it, and double decoding has opened doors elsewhere.
        query: Without the question mark.
        headers: Lower-case name to value; the last of repeated ones.
        pairs: The same in their order, repeated ones kept.
        keep: Whether the connection stays open after the answer, as far as the client is concerned.
        n_body: Bytes of the body; -1 where only its chunks tell.
        target: What answers.
        extra: Header lines every answer to this head carries, each ended by CRLF.
        memo: Belongs to the target: what it worked out for this head once (whose key it carries, which deployment it means).
    """

    __slots__ = ("extra", "headers", "keep", "memo", "method", "n_body", "pairs", "path", "query", "target")

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        pairs: Sequence[tuple[str, str]],
        *,
        n_body: int,
        target: "Target",
        extra: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.pairs = pairs
        self.headers: Mapping[str, str] = dict(pairs)
        self.keep = True
        self.n_body = n_body
        self.target = target
        self.extra = extra
        self.memo: Any = None


class HeadCache:
    """The heads met lately, in two generations: the older one goes when the younger is full.

    So neither a flood of heads that never repeat nor time makes it grow, and what is in use stays.
    """

    def __init__(self, max_heads: int = MAX_HEADS) -> None:
        self._max_heads = max_heads
        self._young: dict[bytes, Head] = {}
        self._old: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, raw: bytes) -> Head | None:
        """Return what `raw`, a head without its final empty line, was found to mean; None if it was not met lately."""
        head = self._young.get(raw)
        if head is None and self._old:
            head = self._old.pop(raw, None)
            if head is not None:
                self._put(raw, head)
        return head

    def offer(self, data: bytes, head: Head) -> None:
        """Remember `head` if `data` is exactly one whole message and its head can be told by its bytes alone.

        Bare line feeds, chunks and anything unusual in how the message ends stay with the parser.
        """
        cut = data.find(END)
        if not 0 < cut <= MAX_HEAD_BYTES or head.n_body < 0 or len(data) != cut + len(END) + head.n_body:
            return
        raw = data[:cut]
        n_lines = raw.count(b"\r\n")
        if not raw[:1].isalpha() or raw.count(b"\n") != n_lines or raw.count(b"\r") != n_lines:
            return
        self._put(raw, head)

    def clear(self) -> None:
        """Forget everything: what the checks would say has changed."""
        self._young, self._old = {}, {}

    def _put(self, raw: bytes, head: Head) -> None:
        if len(self._young) >= self._max_heads:
            self._old, self._young = self._young, {}
        self._young[raw] = head
