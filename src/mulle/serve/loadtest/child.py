"""One generator process: `python -m mulle.serve.loadtest.child`, told what to do and telling what came back through its pipes.

Frames are a letter, a length and MessagePack: `c` connected, `s` a second, `r` the result, `e` an error of ours.
"""

import struct
import sys
from typing import Any, BinaryIO

import msgspec

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.serve.loadtest.generator import run_load
from mulle.serve.loadtest.result import Load, Second

HEAD = struct.Struct("<cI")
MOMENT = struct.Struct("<q")


def write_frame(to: BinaryIO, kind: bytes, value: Any = None) -> None:
    """Write one frame, at once."""
    payload = msgspec.msgpack.encode(value)
    to.write(HEAD.pack(kind, len(payload)) + payload)
    to.flush()


def read_frame(source: BinaryIO) -> tuple[bytes, bytes] | None:
    """Return kind and payload of the next frame; None at the end."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    kind, length = HEAD.unpack(head)
    return kind, source.read(length)


def error_of(payload: bytes) -> MulleError:
    """Return the error a frame of kind `e` carries."""
    found: dict[str, Any] = msgspec.msgpack.decode(payload)
    kind = UnavailableError if found.pop("unavailable") else SpecError
    return kind(found["code"], found["what"], fix=found["fix"], where=found["where"], facts=found["facts"])


def main() -> int:
    """Read the load, wait for the word, run it, and return the exit code."""
    source, to = sys.stdin.buffer, sys.stdout.buffer
    frame = read_frame(source)
    if frame is None:
        return 2
    load = msgspec.msgpack.decode(frame[1], type=Load)

    def connected() -> int:
        write_frame(to, b"c")
        # Without the word (whoever asked has gone) it begins, and ends with the first second it cannot tell.
        word = source.read(MOMENT.size)
        return int(MOMENT.unpack(word)[0]) if len(word) == MOMENT.size else 0

    def second(found: Second) -> None:
        write_frame(to, b"s", found)

    try:
        result = run_load(load, on_second=second, on_connected=connected)
    except MulleError as error:
        write_frame(to, b"e", {**error.to_dict(), "unavailable": isinstance(error, UnavailableError)})
        return error.exit_code
    write_frame(to, b"r", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
