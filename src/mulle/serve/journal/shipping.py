"""Sends encoded segments to the sink: once each, oldest first, later when the sink is not well."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mulle.core.errors import MulleError
from mulle.formats.prediction_frames import SHIPPED_SUFFIX
from mulle.formats.segment import sync_folder
from mulle.serve.journal.sink import Sink, file_digest

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 300.0


class Marker(msgspec.Struct, frozen=True):
    """Beside an encoded segment: a sink holds it.

    Attributes:
        sink: Which one, as it describes itself.
        n_bytes: Size of the segment.
        sha256: Its digest.
        time_ns: When it was shipped.
    """

    sink: str
    n_bytes: int
    sha256: str
    time_ns: int


def read_marker(segment: Path) -> Marker | None:
    """Return the marker of an encoded segment; None where there is none, or a damaged one: it is shipped again."""
    try:
        return msgspec.json.decode(marker_path(segment).read_bytes(), type=Marker)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def marker_path(segment: Path) -> Path:
    """Return where the marker of a segment lies."""
    return segment.with_name(segment.name + SHIPPED_SUFFIX)


@dataclass(slots=True)
class Shipper:
    """Ships to one sink; remembers when it may be asked again.

    Attributes:
        sink: Where to.
        jitter: Returns a number in [0, 1): many hosts must not come back at once.
        n_failed: Tries that failed in a row.
        not_before_s: Monotonic moment of the next try.
    """

    sink: Sink
    jitter: Callable[[], float]
    n_failed: int = 0
    not_before_s: float = 0.0
    _held: set[Path] = field(default_factory=set[Path])

    def holds(self, segment: Path) -> bool:
        """Return whether the marker says that this sink holds the segment."""
        if segment not in self._held:
            marker = read_marker(segment)
            if marker is None or marker.sink != self.sink.describe():
                return False
            self._held.add(segment)
        return True

    def forget(self, segment: Path) -> None:
        """Take notice that a segment was deleted here."""
        self._held.discard(segment)

    def ship(self, segment: Path, *, now_ns: int, monotonic_s: float) -> int:
        """Return the bytes of a segment once the sink holds it and the marker says so.

        Raises:
            MulleError: as `Sink.put`; the next try is put off, each time for twice as long.
            OSError: the segment cannot be read, or the marker not written.
        """
        try:
            here = file_digest(segment)
            self.sink.put(f"{segment.parent.name}/{segment.name}", segment, here.sha256)
            _write_marker(segment, Marker(self.sink.describe(), here.n_bytes, here.sha256, now_ns))
        except (MulleError, OSError):
            delay_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(self.n_failed, 20))
            self.n_failed += 1
            self.not_before_s = monotonic_s + delay_s * (0.5 + self.jitter())
            raise
        self.n_failed, self.not_before_s = 0, 0.0
        return here.n_bytes


def _write_marker(segment: Path, marker: Marker) -> None:
    target = marker_path(segment)
    draft = target.with_name(f".{target.name}.tmp")
    try:
        with draft.open("wb") as out:
            out.write(msgspec.json.encode(marker))
            out.flush()
            os.fsync(out.fileno())
        draft.replace(target)
        sync_folder(target.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
