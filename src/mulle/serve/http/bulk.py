"""A large body, received into one buffer of its own."""

from collections.abc import Mapping

import numpy as np

_ALIGNMENT = 16
_DIGITS = 10


class Bulk:
    """A body whose length is known before it comes.

    Args:
        n_bytes: Its length.
        padding: Where in the buffer it begins: what follows a head of odd length inside it is then aligned, and needs no copy.
    """

    __slots__ = ("_at", "_buffer", "view")

    def __init__(self, n_bytes: int, padding: int = 0) -> None:
        # Not zeroed: every byte is written before anybody reads it.
        self._buffer = np.empty(n_bytes + padding, dtype=np.uint8).data
        self.view = self._buffer[padding:]
        self._at = 0

    @property
    def full(self) -> bool:
        """Whether all of it is here."""
        return self._at == len(self.view)

    def add(self, data: bytes) -> int:
        """Take what belongs to the body from the front of `data`, and return how many bytes that were."""
        view, at = self.view, self._at
        n = len(view) - at
        if len(data) <= n:
            self._at = at + len(data)
            view[at : self._at] = data
            return len(data)
        view[at:] = memoryview(data)[:n]
        self._at = len(view)
        return n


def padding_of(headers: Mapping[str, str]) -> int:
    """Return where in its buffer a body begins, so that raw tensors behind its JSON are aligned and need no copy."""
    length = headers.get("inference-header-content-length", "")
    return -int(length) % _ALIGNMENT if length.isascii() and length.isdigit() and len(length) < _DIGITS else 0
