"""Freshness tokens: how planning knows, without reading it, that a source is what it was.

Every read of `data/sources.py` leaves a `Freshness` behind. Planning calls `current_token` on it: the same token means
the source need not be read again, another one that it must, None that nobody can tell. Only the standard library is
imported here; the clients of S3 and SQL are imported when such a source is asked.

Tokens are `file` size, change time, inode and SHA-256 (a touched file with the same bytes keeps its token), `s3` version
or ETag, `sql` the answer of the user's own freshness query.
"""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from mulle.core.errors import MulleError, SpecError
from mulle.data.place import current_folder, project_folder

__all__ = [
    "Freshness",
    "Reads",
    "current_token",
    "file_freshness",
    "file_token",
    "project_folder",
    "record_read",
    "traced_reads",
]

SourceKind = Literal["file", "s3", "sql"]
KINDS: tuple[SourceKind, ...] = ("file", "s3", "sql")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Freshness:
    """What one read saw.

    Attributes:
        kind: `file`, `s3` or `sql`.
        location: A path (relative to the project where it lies inside), `s3://…`, or the database's URI with its secrets as
            references. Never a secret.
        token: What the source looked like; None when it cannot be told.
        options: What asking again needs: the freshness query, the endpoint, references to credentials.
    """

    kind: SourceKind
    location: str
    token: str | None
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {"kind": self.kind, "location": self.location, "token": self.token, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Freshness":
        """Return the freshness that `to_dict` wrote.

        Raises:
            SpecError: not one, or of a kind this version of Mulle does not know.
        """
        kind, location, token = data.get("kind"), data.get("location"), data.get("token")
        options: object = data.get("options") or {}
        if (
            kind not in KINDS
            or not isinstance(location, str)
            or not (token is None or isinstance(token, str))
            or not isinstance(options, dict)
        ):
            raise SpecError(
                "freshness-unknown", f"this is not a freshness token: {str(dict(data))[:120]!r}", fix="mulle run --from snapshot"
            )
        return cls(kind, location, token, {str(k): str(v) for k, v in cast("dict[object, object]", options).items()})


class Reads(list[Freshness]):
    """What was read while it was traced, in order; `notes` are sentences a person should see."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


_reads: ContextVar[Reads | None] = ContextVar("mulle_reads", default=None)


@contextmanager
def traced_reads() -> Generator[Reads]:
    """Gather the freshness of every read inside the block; an outer trace sees the inner ones too."""
    reads, outer = Reads(), _reads.get()
    token = _reads.set(reads)
    try:
        yield reads
    finally:
        _reads.reset(token)
        if outer is not None:
            outer.extend(reads)
            outer.notes.extend(reads.notes)


def record_read(freshness: Freshness, notes: tuple[str, ...] = ()) -> None:
    """Tell the trace around this call, if there is one, what was read."""
    reads = _reads.get()
    if reads is not None:
        reads.append(freshness)
        reads.notes.extend(notes)


def file_token(path: Path) -> str | None:
    """Return the token of a file: size, change time, inode and SHA-256; None if it changed while it was read."""
    before = _stat_part(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{before}:{digest.hexdigest()}" if _stat_part(path) == before else None


def file_freshness(path: Path) -> Freshness:
    """Return the freshness of a file that is about to be read, its location relative to the project where possible."""
    full, root = path.resolve(), current_folder()
    location = str(full.relative_to(root)) if full.is_relative_to(root) else str(full)
    return Freshness("file", location, file_token(full))


def current_token(freshness: Freshness) -> str | None:
    """Return the token the source would give now; equal to `freshness.token` means: unchanged.

    Cheap: a `stat` for an unchanged file, one HEAD for S3, one query for SQL. A source that does not answer gives None:
    it will be read again, and the read will say what is wrong.
    """
    if freshness.token is None:
        return None
    try:
        if freshness.kind == "file":
            return _current_file_token(current_folder() / freshness.location, freshness.token)
        if freshness.kind == "s3":
            from mulle.data.s3 import head_token

            return head_token(freshness.location, freshness.options)
        from mulle.data.sql import freshness_token

        return freshness_token(freshness.location, freshness.options)
    except (MulleError, OSError):
        return None


def _current_file_token(path: Path, token: str) -> str | None:
    stat_part, _, _ = token.rpartition(":")
    if _stat_part(path) == stat_part:
        return token
    if token.split(":", 1)[0] != str(path.stat().st_size):
        return f"{_stat_part(path)}:?"
    current = file_token(path)
    return token if current is not None and current.rpartition(":")[2] == token.rpartition(":")[2] else current


def _stat_part(path: Path) -> str:
    info = path.stat()
    return f"{info.st_size}:{info.st_mtime_ns}:{info.st_ino}"
