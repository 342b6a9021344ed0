"""Numbers of one worker in a memory-mapped file, which its siblings read while it counts.

A file is a row of chunks of 64 KiB, a chunk a row of records, a record a series: its key and its float64 cells. Only the worker
that holds the file's lock writes, and only by storing whole, aligned numbers: a reader sees a number before or after, never half
of it. A record becomes visible when the chunk's `committed` offset passes it, and is checked by its CRC all the same: processors
other than x86 may show the two stores in another order.

The kernel drops the lock when its holder dies, however it dies; the pages stay. The worker that takes the dead one's place takes
its file over and counts on. So nothing is lost by a kill, nothing ever goes down, and there are never more files than workers
that lived at once.

Chunk: magic (8 bytes), committed (u64), worker (i64), process (u64), start in ns (u64), reserved (24 bytes), records.
Record: CRC-32 of what follows up to the key's end (u32), bytes of the key (u16), cells (u16), state (f64; 1 told, 0 forgotten),
key padded to 8 bytes, cells.
"""

import contextlib
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

CHUNK_BYTES = 65_536
MAX_CHUNKS = 1_024
SUFFIX = ".cells"
MAGIC = int.from_bytes(b"MULLEM01", sys.byteorder)
SUPERVISOR = -1
_HEADER_BYTES = 64
_MAGIC, _COMMITTED = 0, 1  # words of the chunk's header
_IDENTITY = struct.Struct("=qQQ")
_IDENTITY_AT = 16
_RECORD = struct.Struct("=IHH")
_SIZES = struct.Struct("=HH")
_STATE_AT = 8
_RECORD_BYTES = 16
_MAX_TAKEOVERS = 64
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.002
Cells: TypeAlias = "memoryview[float]"


class Record(NamedTuple):
    """One series in a chunk: `view[first : first + n_cells]` are its numbers, `view[state]` says whether it is told."""

    key: bytes
    view: Cells
    state: int
    first: int
    n_cells: int


class NoFileError(Exception):
    """It is a folder, a pipe or a device."""


class Chunk:
    """One mapped chunk; `read` returns the records that appeared since it was last called."""

    __slots__ = ("_bytes", "_seen", "_words", "cells")

    def __init__(self, mapped: mmap.mmap) -> None:
        self._bytes = memoryview(mapped)
        self._words: memoryview[int] = self._bytes.cast("Q")
        self.cells: Cells = self._bytes.cast("d")
        self._seen = _HEADER_BYTES

    @property
    def blank(self) -> bool:
        """Whether nobody has begun to write it."""
        return self._words[_MAGIC] == 0

    @property
    def identity(self) -> tuple[int, int, int]:
        """Worker, process id and start in ns of who wrote it last."""
        return _IDENTITY.unpack_from(self._bytes, _IDENTITY_AT)

    def begin(self, worker: int) -> None:
        """Say whose chunk this is; its magic is written last."""
        _IDENTITY.pack_into(self._bytes, _IDENTITY_AT, worker, os.getpid(), time.time_ns())
        if self.blank:
            self._words[_COMMITTED] = _HEADER_BYTES
            self._words[_MAGIC] = MAGIC

    def read(self) -> tuple[list[Record], bool]:
        """Return the records not returned before, and whether what follows them is damaged, or the chunk none of ours."""
        records: list[Record] = []
        committed = self._words[_COMMITTED]
        if self._words[_MAGIC] != MAGIC or not self._seen <= committed <= CHUNK_BYTES:
            return records, True
        while self._seen < committed:
            found = self._record_at(self._seen, committed)
            if found is None:
                return records, True
            records.append(found[0])
            self._seen = found[1]
        return records, False

    def append(self, key: bytes, n_cells: int) -> Record | None:
        """Return a new record whose cells are 0, or None when there is no room."""
        start = self._words[_COMMITTED]
        padded = -(-len(key) // 8) * 8
        end = start + _RECORD_BYTES + padded + 8 * n_cells
        if end > CHUNK_BYTES:
            return None
        # A writer that was killed here before committing has left bytes behind.
        self._bytes[start:end] = bytes(end - start)
        sizes = _SIZES.pack(len(key), n_cells)
        _RECORD.pack_into(self._bytes, start, zlib.crc32(key, zlib.crc32(sizes)), len(key), n_cells)
        self._bytes[start + _RECORD_BYTES : start + _RECORD_BYTES + len(key)] = key
        record = Record(key, self.cells, (start + _STATE_AT) // 8, (start + _RECORD_BYTES + padded) // 8, n_cells)
        self.cells[record.state] = 1.0
        self._words[_COMMITTED] = end
        self._seen = end
        return record

    def _record_at(self, start: int, committed: int) -> tuple[Record, int] | None:
        """Return the record and where it ends."""
        if start + _RECORD_BYTES > committed:
            return None
        crc, n_key, n_cells = _RECORD.unpack_from(self._bytes, start)
        key_at = start + _RECORD_BYTES
        first = key_at + -(-n_key // 8) * 8
        end = first + 8 * n_cells
        if end > committed:
            return None
        key = bytes(self._bytes[key_at : key_at + n_key])
        if zlib.crc32(key, zlib.crc32(_SIZES.pack(n_key, n_cells))) != crc:
            return None
        return Record(key, self.cells, (start + _STATE_AT) // 8, first // 8, n_cells), end


class CellWriter:
    """The cells of this process.

    Args:
        folder: Where the siblings' files are; None keeps the numbers in this process alone.
        worker: Slot of this worker, from 0; `SUPERVISOR` for the process above them.

    Raises:
        OSError: the folder cannot be used, or has no room.
    """

    def __init__(self, folder: Path | None, worker: int) -> None:
        self.worker = worker
        self.path: Path | None = None
        self.records: list[Record] = []
        self._chunks: list[Chunk] = []
        self._descriptor = -1
        if folder is not None:
            self._open(folder)
        if not self._chunks:
            self._grow()

    def add(self, key: bytes, n_cells: int) -> Record:
        """Return a new series of `n_cells` zeros; visible to the siblings from now on.

        Note:
            Without room on the disk the series lives in this process alone: counting must not stop answers.
        """
        record = self._chunks[-1].append(key, n_cells)
        if record is None:
            self._grow()
            record = self._chunks[-1].append(key, n_cells)
        if record is None:
            raise ValueError(f"a key of {len(key)} bytes with {n_cells} cells does not fit a chunk")
        self.records.append(record)
        return record

    def close(self) -> None:
        """Let the file go: its counts stay, its gauges are told no more."""
        if self._descriptor >= 0:
            # Every mapping holds a duplicate of the descriptor, and would hold the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, folder: Path) -> None:
        name = "supervisor" if self.worker == SUPERVISOR else f"worker-{self.worker}"
        for number in range(_MAX_TAKEOVERS):
            path = folder / f"{name}-{number}{SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            taken = False
            try:
                taken = _lock(descriptor) and self._take_over(descriptor)
            finally:
                if not taken:
                    # Mappings first: each holds a duplicate of the descriptor, and with it the lock.
                    self._chunks.clear()
                    self.records.clear()
                    self._descriptor = -1
                    os.close(descriptor)
            if taken:
                self.path = path
                self._descriptor = descriptor
                return
        raise OSError(f"no free file for {name} in {folder}")

    def _take_over(self, descriptor: int) -> bool:
        """Return whether the file could be mapped and holds what it should; a damaged one is left to the readers."""
        n_chunks = os.fstat(descriptor).st_size // CHUNK_BYTES
        if n_chunks > MAX_CHUNKS:
            return False
        for number in range(n_chunks):
            chunk = Chunk(mmap.mmap(descriptor, CHUNK_BYTES, offset=number * CHUNK_BYTES))
            fresh = chunk.blank
            if not fresh:
                records, damaged = chunk.read()
                if damaged:
                    return False
                self.records += records
            self._chunks.append(chunk)
            if fresh:
                break
        for chunk in self._chunks:
            chunk.begin(self.worker)
        if not self._chunks:
            self._descriptor = descriptor
            self._grow()
        return True

    def _grow(self) -> None:
        mapped = self._map_next() if self._descriptor >= 0 and len(self._chunks) < MAX_CHUNKS else None
        chunk = Chunk(mapped or mmap.mmap(-1, CHUNK_BYTES))
        chunk.begin(self.worker)
        self._chunks.append(chunk)

    def _map_next(self) -> mmap.mmap | None:
        offset = len(self._chunks) * CHUNK_BYTES
        try:
            # Written, not truncated to size: a store into a page the disk has no room for would kill the process.
            if os.pwrite(self._descriptor, bytes(CHUNK_BYTES), offset) != CHUNK_BYTES:
                return None
            return mmap.mmap(self._descriptor, CHUNK_BYTES, offset=offset)
        except OSError:
            if offset == 0:
                raise
            return None


class CellReader:
    """Another worker's file, read while it is written.

    Args:
        path: The file.

    Raises:
        NoFileError: it is a folder, a pipe or a device.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self.damaged = False
        self._chunks: list[Chunk] = []
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise NoFileError

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)

    @property
    def identity(self) -> tuple[int, int, int] | None:
        """Worker, process id and start in ns; None while nothing is written yet."""
        return self._chunks[0].identity if self._chunks else None

    def refresh(self) -> Iterator[Record]:
        """Yield the records that appeared since the last call; `damaged` says whether any could not be read."""
        n_chunks = min(os.fstat(self._descriptor).st_size // CHUNK_BYTES, MAX_CHUNKS)
        for number in range(len(self._chunks), n_chunks):
            chunk = Chunk(mmap.mmap(self._descriptor, CHUNK_BYTES, offset=number * CHUNK_BYTES, access=mmap.ACCESS_READ))
            if chunk.blank:
                break
            self._chunks.append(chunk)
        self.damaged = False
        for chunk in self._chunks:
            fresh, damaged = chunk.read()
            self.damaged |= damaged
            self.records += fresh
            yield from fresh

    def is_alive(self) -> bool:
        """Return whether a process is writing the file."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False


def _lock(descriptor: int) -> bool:
    """Return whether the file is ours now. A reader asking who is alive holds it for a microsecond: ask again."""
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if attempt < _LOCK_ATTEMPTS - 1:
                time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False
