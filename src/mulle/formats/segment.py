"""Framed append-only files: what the prediction log and the feedback log are both written in.

    file   = MAGIC  frame*
    frame  = SYNC(2)  kind u8  reserved u8  length u32  crc32(payload) u32  crc32(the 12 bytes before) u32  payload

All numbers little-endian. One frame, or several together, is one `write`: a process killed between two leaves whole
frames, a host that crashed within one leaves a torn tail. A payload that fails its checksum is skipped and counted; a
frame head that fails ends the file, because nothing says where the next frame begins.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mulle.core.errors import CheckError, UnavailableError

MAGIC = b"MULLESEG\x01\x00\x00\x00"
"""Eight letters, then the version of the framing as u32."""
_SYNC = 0x4C4D
_HEAD = struct.Struct("<HBBII")
_CHECK = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CHECK.size
MAX_FRAME_BYTES = 1 << 30


@dataclass(slots=True)
class Damage:
    """What of a set of segments could not be read.

    Attributes:
        torn_tails: Files that end inside a frame: a crash of the host, or a writer at work.
        corrupt_frames: Frames whose bytes were changed after they were written.
        lost_bytes: Bytes in torn tails and behind broken frame heads.
        files: The files concerned.
    """

    torn_tails: int = 0
    corrupt_frames: int = 0
    lost_bytes: int = 0
    files: list[str] = field(default_factory=list[str])

    def note(self, path: Path, kind: Literal["torn", "corrupt"], lost_bytes: int) -> None:
        """Count one damage in `path`."""
        if kind == "torn":
            self.torn_tails += 1
        else:
            self.corrupt_frames += 1
        self.lost_bytes += lost_bytes
        if path.name not in self.files:
            self.files.append(path.name)


def frame(kind: int, payload: bytes) -> bytes:
    """Return `payload` framed."""
    head = _HEAD.pack(_SYNC, kind, 0, len(payload), zlib.crc32(payload))
    return head + _CHECK.pack(zlib.crc32(head)) + payload


def read_frames(path: Path, damage: Damage) -> Iterator[tuple[int, memoryview]]:
    """Yield (kind, payload) of every whole frame of `path`; what cannot be read is noted in `damage`.

    Raises:
        CheckError: `segment-unknown`: the file is not a segment, or was written by a newer Mulle.
    """
    data = memoryview(path.read_bytes())
    if len(data) < len(MAGIC):
        if data:
            damage.note(path, "torn", len(data))
        return
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise CheckError(
            "segment-unknown",
            f"{path.name!r} is not a log segment this version can read",
            fix="upgrade Mulle if a newer one wrote it, or move the file out of the log's folder",
            where=str(path),
        )
    at = len(MAGIC)
    while at < len(data):
        rest = len(data) - at
        if rest < HEAD_BYTES:
            damage.note(path, "torn", rest)
            return
        sync, kind, _, length, crc = _HEAD.unpack_from(data, at)
        (check,) = _CHECK.unpack_from(data, at + _HEAD.size)
        if sync != _SYNC or check != zlib.crc32(data[at : at + _HEAD.size]) or length > MAX_FRAME_BYTES:
            damage.note(path, "corrupt", rest)
            return
        start = at + HEAD_BYTES
        if start + length > len(data):
            damage.note(path, "torn", rest)
            return
        payload = data[start : start + length]
        if zlib.crc32(payload) == crc:
            yield kind, payload
        else:
            damage.note(path, "corrupt", HEAD_BYTES + length)
        at = start + length


class SegmentFile:
    """One segment being written: whole frames or nothing.

    Not safe for two threads; `sync` alone may run beside `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._broken = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _unavailable(path, error) from error
        try:
            self.append([MAGIC])
        except UnavailableError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    @property
    def broken(self) -> bool:
        """Whether half a frame could not be taken back: write on in another file."""
        return self._broken

    def append(self, frames: Iterable[bytes]) -> int:
        """Hand `frames` to the kernel in one write and return their length in bytes.

        Raises:
            UnavailableError: `log-unavailable`: the disk is full or failing. Nothing of the frames stays in the file.
        """
        data = b"".join(frames)
        try:
            _write_whole(self._descriptor, data)
        except OSError as error:
            # Half a frame in the middle would hide everything behind it from readers.
            try:
                os.ftruncate(self._descriptor, self.n_bytes)
            except OSError:
                self._broken = True
            raise _unavailable(self.path, error) from error
        self.n_bytes += len(data)
        return len(data)

    def sync(self) -> None:
        """Return when what was appended is on the disk.

        Raises:
            UnavailableError: `log-unavailable`.
        """
        try:
            # macOS has no fdatasync.
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            # Closed beside a sync in another thread: whoever closes has synced.
            if error.errno == errno.EBADF:
                return
            raise _unavailable(self.path, error) from error

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write_whole(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unavailable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        "log-unavailable",
        f"the log cannot be written: {error.strerror}",
        fix="make room on the disk (`mulle gc`), or mend the permissions of the log's folder",
        where=path.name,
    )
