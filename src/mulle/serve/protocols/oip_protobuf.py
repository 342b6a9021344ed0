"""Protocol buffers on the wire: fields, varints, blocks. Bounded, so that no message holds the loop for long.

As the wire format asks, numbers may come packed or not, and what is unknown can be skipped; groups, which nobody has
written for a decade, are refused.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError

VARINT, FIXED64, BLOCK, FIXED32 = 0, 1, 2, 5
MORE = 0x80
MAX_NUMBERS = 1 << 20
_MAX_FIELDS = 1 << 18
_MAX_VARINT = 10
_WORD = 0xFFFF_FFFF_FFFF_FFFF
Field: TypeAlias = "tuple[int, int, int, memoryview]"


def fields(data: memoryview) -> Iterator[Field]:
    """Yield (number, wire type, integer, bytes) of each field: the integer of a varint, the bytes of any other.

    Raises:
        SpecError: `oip-malformed`.
    """
    at, end = 0, len(data)
    empty = data[:0]
    n_fields = 0
    while at < end:
        n_fields += 1
        if n_fields > _MAX_FIELDS:
            raise malformed(f"a message has more than {_MAX_FIELDS:,} fields")
        tag, at = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise malformed("a field has the number 0")
        if wire == VARINT:
            integer, at = varint(data, at, end)
            yield number, wire, integer, empty
            continue
        if wire == BLOCK:
            size, at = varint(data, at, end)
        elif wire in {FIXED64, FIXED32}:
            size = 8 if wire == FIXED64 else 4
        else:
            raise malformed("a field is a group")
        if size > end - at:
            raise malformed(f"a field says it has {size:,} bytes; {end - at:,} are left")
        yield number, wire, 0, data[at : at + size]
        at += size


def varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends.

    Raises:
        SpecError: `oip-malformed`.
    """
    value = shift = 0
    while at < end and shift < 7 * _MAX_VARINT:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < MORE:
            return value & _WORD, at
        shift += 7
    raise malformed("a number is cut off" if at >= end else "a number is longer than ten bytes")


def varints(data: memoryview) -> NDArray[np.uint64]:
    """Return packed varints, all at once: one by one, a full message would hold the loop for seconds.

    Raises:
        SpecError: `oip-malformed`.
    """
    raw = np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, dtype=np.uint8)
    if int(np.count_nonzero(raw < MORE)) > MAX_NUMBERS:
        raise malformed(f"a packed field has more than {MAX_NUMBERS:,} numbers")
    last = np.flatnonzero(raw < MORE)
    if (int(last[-1]) + 1 if len(last) else 0) != len(raw):
        raise malformed("a number is cut off")
    first = np.concatenate([np.zeros(1, dtype=np.int64), last[:-1] + 1]) if len(last) else last
    length = last - first + 1
    longest = int(length.max(initial=0))
    if longest > _MAX_VARINT:
        raise malformed("a number is longer than ten bytes")
    out = np.zeros(len(last), dtype=np.uint64)
    for k in range(longest):
        has = length > k
        out[has] |= (raw[first[has] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return out


def signed(value: int) -> int:
    """Return a varint's 64 bits as a signed number."""
    return value - (1 << 64) if value >= 1 << 63 else value


def size_of(value: int) -> bytes:
    """Return a number, taken as 64 bits, as a varint."""
    value &= _WORD
    if value < MORE:
        return _SMALL[value]
    out = bytearray()
    while value >= MORE:
        out.append((value & 0x7F) | MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def block(number: int, data: bytes | memoryview) -> bytes:
    """Return bytes as a field."""
    return b"".join((size_of(number << 3 | BLOCK), size_of(len(data)), data))


def text(number: int, value: str) -> bytes:
    """Return text as a field; nothing where it is empty, as the wire format has it."""
    return block(number, value.encode()) if value else b""


def malformed(what: str) -> SpecError:
    """Return the refusal of a message that is none."""
    return SpecError("oip-malformed", f"the message is not a request of this protocol: {what}", fix="check the client", where="message")


_SMALL = [bytes([value]) for value in range(MORE)]
