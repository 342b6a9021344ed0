"""Framed append-only files: what the prediction log and the feedback log are both written in.

    file   = MAGIC  frame*
    frame  = SYNC(2)  kind u8  reserved u8  length u32  crc32(payload) u32  crc32(the 12 bytes before) u32  payload

All numbers little-endian. One frame, or several together, is one `write`: a process killed between two leaves whole
frames, a host that crashed within one leaves a torn tail. A payload that fails its checksum is skipped and counted; a
frame head that fails ends the file, because nothing says where the next frame begins.

While a segment is written its writer holds an exclusive lock on the open file. The kernel lets go of it when the writer
closes the file or dies, however it dies: a segment whose lock can be had has got its last byte (`lock_closed`).
"""

import errno
import fcntl
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

    def add(self, other: "Damage") -> None:
        """Add what `other` counted."""
        self.torn_tails += other.torn_tails
        self.corrupt_frames += other.corrupt_frames
        self.lost_bytes += other.lost_bytes
        self.files += [name for name in other.files if name not in self.files]


def frame(kind: int, payload: bytes) -> bytes:
    """Return `payload` framed."""
    head = _HEAD.pack(_SYNC, kind, 0, len(payload), zlib.crc32(payload))
    return head + _CHECK.pack(zlib.crc32(head)) + payload


def read_frames(path: Path, damage: Damage) -> Iterator[tuple[int, memoryview]]:
    """Yield (kind, payload) of every whole frame of `path`; what cannot be read is noted in `damage`.

    Raises:
        CheckError: `segment-unknown`: the file is not a segment, or was written by a newer Mulle.
        FileNotFoundError: there is no such file.
    """
    yield from iter_frames(path.read_bytes(), path, damage)


def iter_frames(content: bytes, path: Path, damage: Damage) -> Iterator[tuple[int, memoryview]]:
    """Yield as `read_frames` from the content of `path`, read before.

    Raises:
        CheckError: `segment-unknown`.
    """
    data = memoryview(content)
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


def lock_closed(path: Path) -> int | None:
    """Return a descriptor that holds the lock of `path` once nobody writes to it; None while somebody does, or when it is gone.

    The caller closes the descriptor, and with it lets go of the lock.

    Raises:
        UnavailableError: `log-unavailable`: the file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unavailable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise unavailable(path, error) from error
    return descriptor


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk.

    Raises:
        OSError: the folder cannot be opened or the disk is failing.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SegmentFile:
    """One segment being written: whole frames or nothing.

    Not safe for two threads; `sync` alone may run beside `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._broken = False
        self._lost = False
        self._named = False
        self._descriptor = -1
        # Locked before it has its name: nobody who looks for closed segments ever sees it open and unlocked.
        draft = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_whole(self._descriptor, MAGIC)
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            draft.rename(path)
        except OSError as error:
            if self._descriptor >= 0:
                self.close()
                draft.unlink(missing_ok=True)
            raise unavailable(path, error) from error
        self.n_bytes = len(MAGIC)

    @property
    def broken(self) -> bool:
        """Whether half a frame could not be taken back, or a sync failed: write on in another file."""
        return self._broken or self._lost

    @property
    def lost(self) -> bool:
        """Whether a sync failed: what was appended may not survive the host, whatever a later sync says."""
        return self._lost

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
            raise unavailable(self.path, error) from error
        self.n_bytes += len(data)
        return len(data)

    def sync(self) -> None:
        """Return when what was appended is on the disk, the file's name included.

        Raises:
            UnavailableError: `log-unavailable`. The kernel may have thrown away what it could not write, and says so only
                once: the file is `broken` from now on.
        """
        try:
            # macOS has no fdatasync.
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
            if not self._named:
                sync_folder(self.path.parent)
                sync_folder(self.path.parent.parent)
                self._named = True
        except OSError as error:
            # Closed beside a sync in another thread: whoever closes has synced.
            if error.errno == errno.EBADF:
                return
            self._lost = True
            raise unavailable(self.path, error) from error

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write_whole(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unavailable(path: Path, error: OSError) -> UnavailableError:
    """Return the error for a log that cannot be written, or made ready to be."""
    return UnavailableError(
        "log-unavailable",
        f"the log cannot be written: {error.strerror}",
        fix="make room on the disk (`mulle gc`), or mend the permissions of the log's folder",
        where=path.name,
    )
