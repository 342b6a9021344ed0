"""Rate limits that all workers of a server share: one number per key in a memory-mapped file.

The generic cell rate algorithm keeps the *theoretical arrival time* `tat`: when the key's bucket would be full again. A
request is admitted if that time, moved on by one interval, is at most `burst` intervals away.

Reading and writing the number is not one step, and a lock would cost ten times as much as the rest. So two workers may both
admit a request on the strength of the same number. What holds whatever happens: every worker remembers the latest time it
has written itself and never goes back behind it, so **each worker alone** admits at most `burst + rate · t` in any time t,
and n workers together n times that. What happens in practice is nearer to once than to twice; a test with four processes
that do nothing else states how near.

    bytes 0-15    "MULLRATE", version as uint64
    then 16 each  uint64 key id, float64 tat in seconds of the machine's monotonic clock; id 0 is a free row
"""

import fcntl
import logging
import mmap
import os
from pathlib import Path

from mulle.core.errors import UnavailableError

LOG = logging.getLogger("mulle.serve")
MAGIC = b"MULLRATE"
VERSION = 1
N_ROWS = 16_384
_HEADER_BYTES = 16
_ROW_BYTES = 16
_WORDS_BEFORE = _HEADER_BYTES // 8
_N_BYTES = _HEADER_BYTES + N_ROWS * _ROW_BYTES
_AHEAD_S = 60.0
"""How far beyond a full bucket a time may be and still be believed: a worker may have looked at the clock, and been kept from going on."""
_SLACK = 1e-3
"""Share of an interval by which a request may be early: sums of intervals are rounded."""


def gcra(tat: float, now: float, interval: float, tolerance: float) -> tuple[float, float]:
    """Return the new theoretical arrival time and 0.0 if a request is admitted; else the old one and the seconds to wait.

    Args:
        tat: As it was kept; 0.0 for a key that has never asked. What lies in the past, a minute further ahead than a full bucket
            can be (a file from before a reboot) or is no number counts as now.
        now: Seconds, never falling.
        interval: Seconds between requests at the allowed rate: 1 / rate.
        tolerance: How far ahead of now `tat` may get: (burst + 0.001) / rate.

    Note:
        In any t seconds at most burst + 0.001 + rate · t requests are admitted.

    Source: ITU-T I.371, generic cell rate algorithm, virtual scheduling.
    """
    base = tat if now < tat <= now + tolerance + _AHEAD_S else now
    wait = base + interval - now - tolerance
    return (tat, wait) if wait > 0 else (base + interval, 0.0)


class Limiter:
    """The limit of one key in one worker.

    Args:
        view: The shared numbers.
        index: Which of them is this key's.
        rate_per_s: Requests per second in the long run, above 0.
        burst: Requests that may come at once, at least 1.
    """

    __slots__ = ("_ahead", "_index", "_interval", "_own", "_tolerance", "_view")

    def __init__(self, view: "memoryview[float]", index: int, rate_per_s: float, burst: int) -> None:
        self._view = view
        self._index = index
        self._interval = 1 / rate_per_s
        self._tolerance = (burst + _SLACK) / rate_per_s
        self._ahead = self._tolerance + _AHEAD_S
        self._own = 0.0

    def wait_s(self, now: float) -> float:
        """Return 0.0 and count the request if it is admitted; else how many seconds to wait, above 0.

        Args:
            now: Seconds of the machine's monotonic clock, the same for all workers.
        """
        # The same as `gcra`, written out: a call and a tuple would double its cost.
        view, index = self._view, self._index
        while True:
            tat = seen = view[index]
            if not seen >= self._own:  # also true for what is no number
                tat = self._own
            if not now < tat <= now + self._ahead:
                tat = now
            tat += self._interval
            wait = tat - now - self._tolerance
            if wait > 0:
                return wait
            # Looked at again just before writing: what is left of the race is tens of nanoseconds, not the whole decision.
            again = view[index]
            if again == seen or again != again:  # noqa: PLR0124 - no number
                view[index] = self._own = tat
                return 0.0


class RateTable:
    """The shared file, mapped. One per worker; it is open until the process ends.

    Args:
        path: The same for all workers of one server, in a folder only they write; None: memory of this process alone.

    Raises:
        UnavailableError: the file cannot be made, or is another one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is None:
            memory = mmap.mmap(-1, _N_BYTES)
            memory[:_HEADER_BYTES] = _header()
        else:
            memory = _map(path)
        self._ids = memoryview(memory).cast("Q")
        self._times = memoryview(memory).cast("d")

    def limiter(self, key_id: str, rate_per_s: float, burst: int | None) -> Limiter:
        """Return the limit of a key; workers that ask for the same id share it.

        Args:
            key_id: 12 hexadecimal digits.
            rate_per_s: Requests per second in the long run, above 0.
            burst: Requests that may come at once; None: as many as one second brings, at least 1.
        """
        burst = max(1, round(rate_per_s)) if burst is None else burst
        # Id 0 marks a free row, and is a key's id too: the highest bit is beyond every id.
        row = self._claim(int(key_id, 16) | 1 << 63)
        if row is None:
            LOG.warning("the table of rate limits is full: the limit of key %s is counted per worker until the server is restarted", key_id)
            return Limiter(memoryview(bytearray(8)).cast("d"), 0, rate_per_s, burst)
        return Limiter(self._times, _WORDS_BEFORE + 2 * row + 1, rate_per_s, burst)

    def _claim(self, marked: int) -> int | None:
        """Return the row of an id, taken under the lock if it has none yet; keys are loaded seldom."""
        if self.path is None:
            return self._find_or_take(marked)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return self._find_or_take(marked)
        finally:
            os.close(descriptor)

    def _find_or_take(self, marked: int) -> int | None:
        for step in range(N_ROWS):
            row = (marked + step) % N_ROWS
            word = _WORDS_BEFORE + 2 * row
            if self._ids[word] == marked:
                return row
            if self._ids[word] == 0:
                self._ids[word] = marked
                return row
        return None


def _header() -> bytes:
    return MAGIC + VERSION.to_bytes(8, "little")


def _map(path: Path) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not any(os.pread(descriptor, _HEADER_BYTES, 0)):  # new, or whoever made it was killed before its first word
                os.ftruncate(descriptor, _N_BYTES)
                os.pwrite(descriptor, _header(), 0)
            if os.fstat(descriptor).st_size != _N_BYTES or os.pread(descriptor, _HEADER_BYTES, 0) != _header():
                raise UnavailableError(
                    "rates-file", "the file of rate limits is another one", fix=f"remove {path} and start again", where=str(path)
                )
            return mmap.mmap(descriptor, _N_BYTES)
        finally:
            # The map keeps a copy of the descriptor, and the lock would live as long as that.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
    except OSError as error:
        raise UnavailableError(
            "rates-file", f"the file of rate limits cannot be used: {error.strerror}", fix="make its folder writable", where=str(path)
        ) from error
