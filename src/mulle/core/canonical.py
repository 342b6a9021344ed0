"""One byte string per value: canonical JSON and SHA-256 digests over it.

Every digest in Mulle is 64 lower-case hexadecimal digits of SHA-256. Two values that are equal have equal canonical
bytes; a value that JSON cannot say exactly (NaN, infinities, bytes, sets) is refused instead of being approximated.
"""

import hashlib
import json
from pathlib import Path

from mulle.core.errors import SpecError

DIGEST_LENGTH = 64
_CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> bytes:
    """Return the one UTF-8 encoding of `value`: keys sorted, no spaces, no escapes beyond JSON's own.

    Raises:
        SpecError: `value` holds something JSON cannot say exactly.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise SpecError(
            "canonical-json", f"a value cannot be written canonically: {error}", fix="use finite numbers and plain JSON types"
        ) from error


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_value(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def is_digest(text: str) -> bool:
    """Return whether `text` has the form of a digest: 64 lower-case hexadecimal digits."""
    return len(text) == DIGEST_LENGTH and all(c in "0123456789abcdef" for c in text)
