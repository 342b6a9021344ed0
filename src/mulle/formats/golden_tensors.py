"""Golden requests of pictures and tensors: raw bytes in and out, so that decoding is proven with the graph.

    golden.bin   MessagePack: format, version, cases, tolerance; a tensor is its dtype, shape and little-endian bytes

Plain data: reading it runs nothing. Texts are lists of strings.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.formats.bundle import TensorType
from mulle.formats.envelope import read_limited
from mulle.formats.golden import MAX_GOLDEN_BYTES

FORMAT = "mulle.golden-tensors"
VERSION = 1
MAX_CASES = 64
DEFAULT_TOLERANCE = 1e-4
"""Convolutions are summed in another order by another processor: looser than for columns."""
_PLAIN: dict[TensorType, str] = {
    "double": "<f8",
    "float": "<f4",
    "float16": "<f2",
    "int64": "<i8",
    "int32": "<i4",
    "int8": "<i1",
    "uint8": "<u1",
    "bool": "|b1",
}
_NAMES: dict[str, TensorType] = {np.dtype(code).name: name for name, code in _PLAIN.items()}


class GoldenTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor: `data` holds its bytes in C order, or for texts `texts` its elements."""

    dtype: TensorType
    shape: tuple[int, ...]
    data: bytes = b""
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: NDArray[Any]) -> "GoldenTensor":
        """Return the tensor an array holds.

        Raises:
            SpecError: `golden-dtype`: elements no bundle carries.
        """
        if value.dtype.kind in "OUT":
            return cls("string", value.shape, texts=tuple(map(str, cast("list[object]", value.ravel().tolist()))))
        name = _NAMES.get(value.dtype.name)
        if name is None:
            raise SpecError(
                "golden-dtype", f"no bundle carries tensors of {value.dtype.name}", fix=f"use one of {', '.join(_PLAIN)}, string"
            )
        return cls(name, value.shape, np.ascontiguousarray(value, dtype=_PLAIN[name]).tobytes())

    def to_array(self) -> NDArray[Any]:
        """Return the tensor as an array.

        Raises:
            ValueError: the bytes are not as many as the shape says.
        """
        if any(side < 0 for side in self.shape):
            raise ValueError("a negative dimension")
        if self.dtype == "string":
            if len(self.texts) != math.prod(self.shape):
                raise ValueError("another number of texts than the shape says")
            return np.array(self.texts, dtype=object).reshape(self.shape)
        return np.frombuffer(self.data, dtype=_PLAIN[self.dtype]).reshape(self.shape).astype(np.dtype(_PLAIN[self.dtype]).newbyteorder("="))


class GoldenCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request and its answer.

    Attributes:
        outputs: Output name to the tensor the sealed graph answered.
        inputs: Input name to tensor; empty for a picture.
        image: The encoded picture; empty for tensors.
    """

    outputs: dict[str, GoldenTensor]
    inputs: dict[str, GoldenTensor] = {}
    image: bytes = b""


class GoldenTensors(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A few requests and their answers.

    Attributes:
        cases: Each is asked by itself.
        tolerance: Largest difference that still counts as reproduced, relative to the largest value of the output where that is above 1.
    """

    format: Literal["mulle.golden-tensors"] = FORMAT
    version: Literal[1] = VERSION
    cases: tuple[GoldenCase, ...]
    tolerance: float = DEFAULT_TOLERANCE

    def to_bytes(self) -> bytes:
        """Return the document's bytes: the same cases give the same bytes.

        Raises:
            SpecError: `golden-too-large`: more than a bundle may carry.
        """
        data = msgspec.msgpack.encode(self, order="deterministic")
        if len(data) > MAX_GOLDEN_BYTES or len(self.cases) > MAX_CASES:
            raise SpecError(
                "golden-too-large",
                f"{len(self.cases)} golden requests have {len(data):,} bytes; the limits are {MAX_CASES} and {MAX_GOLDEN_BYTES:,}",
                fix="give fewer or smaller samples",
            )
        return data


def golden_case(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], *, image: bytes = b"") -> GoldenCase:
    """Return a case of arrays, or of an encoded picture."""
    return GoldenCase(
        {name: GoldenTensor.of(value) for name, value in outputs.items()},
        {name: GoldenTensor.of(value) for name, value in inputs.items()},
        image,
    )


def read_golden_tensors(path: Path) -> GoldenTensors:
    """Return the golden requests at `path`.

    Raises:
        SpecError: missing or too large.
        CheckError: `format-unreadable`: not this format, or fields that do not fit; `format-unknown`: a newer version.
    """
    data = read_limited(path, max_bytes=MAX_GOLDEN_BYTES)
    try:
        head = msgspec.msgpack.decode(data, type=_Head)
        if head.format == FORMAT and head.version > VERSION:
            raise CheckError(
                "format-unknown",
                f"the golden requests are version {head.version}",
                fix="upgrade Mulle: a newer one wrote them",
                where=str(path),
            )
        found = msgspec.msgpack.decode(data, type=GoldenTensors)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckError(
            "format-unreadable",
            f"this is not a {FORMAT} document: {error}",
            fix="restore the file from where it was made; it may be truncated",
            where=str(path),
        ) from error
    if len(found.cases) > MAX_CASES:
        raise CheckError(
            "format-unreadable", f"{len(found.cases)} cases; the limit is {MAX_CASES}", fix="seal the bundle again", where=str(path)
        )
    return found


class _Head(msgspec.Struct):
    format: str
    version: int
