"""Reading a versioned JSON document: size first, then name and version, then every field."""

from pathlib import Path
from typing import TypeVar

import msgspec

from mulle.core.errors import CheckError, SpecError

S = TypeVar("S", bound=msgspec.Struct)


class _Head(msgspec.Struct):
    format: str
    version: int


def decode_document(data: bytes, kind: type[S], *, name: str, version: int, where: str) -> S:
    """Return the document in `data` as `kind`.

    Args:
        data: UTF-8 JSON with `format` and `version` among its fields.
        kind: The struct to decode into; it should forbid unknown fields.
        name: The `format` expected.
        version: The newest version this reader knows (and the only one, so far).
        where: The file or URL, for the error.

    Raises:
        CheckError: not JSON, another format, a newer version, or fields that do not fit.
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckError(
            "format-unreadable",
            f"this is not a {name} document: {error}",
            fix="restore the file from where it was made; it may be truncated",
            where=where,
        ) from error
    if head.format != name or head.version != version:
        newer = head.format == name and head.version > version
        raise CheckError(
            "format-unknown",
            f"expected {name} version {version}, found {head.format!r} version {head.version}",
            fix="upgrade Mulle: the document was written by a newer one" if newer else f"point at a {name} document",
            where=where,
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckError(
            "format-unreadable",
            f"a field of this {name} document does not fit: {error}",
            fix="restore the file from where it was made; do not edit it by hand",
            where=where,
        ) from error


def read_limited(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file, refusing links out, folders and anything above `max_bytes`.

    Raises:
        SpecError: the file is missing, not regular, or too large.
    """
    try:
        if not path.is_file():
            raise SpecError("file-missing", f"there is no file {path.name!r}", fix="check the path", where=str(path))
        size = path.stat().st_size
        if size > max_bytes:
            raise SpecError(
                "file-too-large",
                f"{path.name!r} has {size:,} bytes; the limit is {max_bytes:,}",
                fix="point at the right file",
                where=str(path),
            )
        return path.read_bytes()
    except OSError as error:
        raise SpecError(
            "file-unreadable", f"{path.name!r} cannot be read: {error.strerror}", fix="check its permissions", where=str(path)
        ) from error
