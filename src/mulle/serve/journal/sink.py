"""The port of a place that keeps encoded segments for good, and how a file is measured."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mulle.core.errors import ConflictError


@dataclass(frozen=True, slots=True)
class Stored:
    """What a sink holds under a name.

    Attributes:
        n_bytes: Its size.
        sha256: 64 hexadecimal digits.
    """

    n_bytes: int
    sha256: str


class Sink(Protocol):
    """A place that keeps files under names and never changes one.

    One process, one thread. `put` may be interrupted at any instruction and repeated: afterwards the name holds the whole
    file or nothing. Names are relative, with `/` between their parts.
    """

    def put(self, name: str, path: Path, sha256: str) -> None:
        """Keep the file at `path` under `name`; return when the sink holds exactly these bytes.

        Raises:
            CheckError: `log-sink-verify`: what was sent does not read back.
            ConflictError: `log-sink-conflict`: the name holds something else.
            SpecError: `log-sink-refused`: the sink does not let us; trying again will not help by itself.
            UnavailableError: `log-sink-unavailable`: try again later.
        """
        ...

    def exists(self, name: str) -> Stored | None:
        """Return what `name` holds; None where it holds nothing. Raises as `put`."""
        ...

    def describe(self) -> str:
        """Return where this is, for people and for markers: never a secret in it."""
        ...


def file_digest(path: Path) -> Stored:
    """Return size and SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        return Stored(source.tell(), digest)


def require_same(name: str, there: Stored, sha256: str, place: str) -> None:
    """Return if a sink holds the same bytes already.

    Raises:
        ConflictError: `log-sink-conflict`.
    """
    if there.sha256 != sha256:
        raise ConflictError(
            "log-sink-conflict",
            f"{name!r} is there already, and is another file",
            fix="give every host its own prefix or folder; nothing was overwritten",
            where=place,
            facts={"there": f"{there.sha256[:12]}, {there.n_bytes:,} bytes", "here": sha256[:12]},
        )
