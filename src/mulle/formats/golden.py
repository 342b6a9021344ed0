"""Golden requests: rows and the answers the sealed graph gave, which must reproduce before a bundle serves.

They catch what a digest cannot: another runtime version, another processor, a broken kernel.
"""

from pathlib import Path
from typing import Literal

import msgspec

from mulle.core.canonical import canonical_json
from mulle.formats.envelope import decode_document, read_limited

FORMAT = "mulle.golden"
VERSION = 1
MAX_GOLDEN_BYTES = 16 << 20
DEFAULT_TOLERANCE = 1e-5


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A few requests and their answers.

    Attributes:
        rows: One object per row: column name to JSON value; an absent column is missing.
        outputs: One list per row: the graph's output, k probabilities or one prediction.
        tolerance: Largest absolute difference that still counts as reproduced.
    """

    format: Literal["mulle.golden"] = FORMAT
    version: Literal[1] = VERSION
    rows: tuple[dict[str, str | float | bool | None], ...]
    outputs: tuple[tuple[float, ...], ...]
    tolerance: float = DEFAULT_TOLERANCE

    def to_bytes(self) -> bytes:
        """Return the canonical bytes of the document."""
        return canonical_json(msgspec.to_builtins(self))


def read_golden(path: Path) -> Golden:
    """Return the golden requests at `path`.

    Raises:
        SpecError: missing or too large.
        CheckError: not this format, or a newer version.
    """
    return decode_document(read_limited(path, max_bytes=MAX_GOLDEN_BYTES), Golden, name=FORMAT, version=VERSION, where=str(path))
