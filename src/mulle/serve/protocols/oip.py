"""Requests, answers and tensors of the Open Inference Protocol, version 2, as REST and gRPC both understand them.

A tensor arrives as a claim (`InputSpec`: name, datatype, shape) and as data. The claim is checked by arithmetic alone,
before anything is allocated for it; the data is then *looked at*, never copied, unless its address does not suit its
type. Elements of `BYTES` are taken apart late, after the shape was compared with the model: they cost an object each.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.rows import shown

Parameter: TypeAlias = bool | int | float | str
Parameters: TypeAlias = dict[str, Parameter]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Every datatype that is spoken here, and its elements in memory."""

GRAPH_DATATYPES: dict[str, str] = {
    "double": "FP64",
    "float": "FP32",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "string": "BYTES",
    "bool": "BOOL",
}
"""A graph's element type to its datatype."""

MAX_RANK = 16
MAX_TENSORS = 4_096
MAX_TEXTS = 1 << 18
"""Elements of one BYTES tensor: each becomes an object."""
MAX_ID_CHARACTERS = 256
_MAX_ELEMENTS = 1 << 40
_LENGTH = struct.Struct("<I")


class InputSpec:
    """What a request claims about one tensor, checked for sense.

    Attributes:
        name: Of the tensor.
        datatype: A key of `DATATYPES`.
        shape: Every dimension at least 1.
        dtype: The elements in memory.
        n_elements: The product of the shape.
        n_bytes: What the data must be long; -1 where elements have lengths of their own.
        fits: What of a model it was found to fit, when it was last compared.
    """

    __slots__ = ("datatype", "dtype", "fits", "n_bytes", "n_elements", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        self.name = name
        self.datatype = datatype
        self.dtype = dtype_of(datatype, name)
        self.shape = tuple(shape)
        self.n_elements = count_elements(self.shape, name)
        self.fits: TensorInfo | None = None
        self.n_bytes = -1 if datatype == "BYTES" else self.n_elements * self.dtype.itemsize
        if self.n_bytes < 0 and self.n_elements > MAX_TEXTS:
            raise SpecError(
                "oip-shape",
                f"input {shown(name)} has {self.n_elements:,} BYTES elements; the limit is {MAX_TEXTS:,}",
                fix="send fewer rows at a time",
                where=f"inputs, {shown(name)}",
            )


class Tensor:
    """A claim and its data.

    Attributes:
        spec: The claim.
        raw: The data as it came, or None when `values` were given.
    """

    __slots__ = ("_values", "raw", "spec")

    def __init__(self, spec: InputSpec, raw: memoryview | None, values: NDArray[Any] | None = None) -> None:
        self.spec = spec
        self.raw = raw
        self._values = values

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.spec.shape

    def values(self) -> NDArray[Any]:
        """Return the elements in the tensor's shape; of BYTES `bytes` or `str` objects (None: missing, JSON only).

        Raises:
            SpecError: `oip-data`: the lengths of BYTES elements do not add up to the data.
        """
        if self._values is None:
            self._values = _read(self.spec, self.raw if self.raw is not None else memoryview(b""))
        return self._values


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output the client asked for.

    Attributes:
        name: Of the output.
        binary: Whether it wants the elements behind the JSON; None: as the request says for all.
        classification: Answer the best so many classes as text instead of the numbers; 0: no.
    """

    name: str
    binary: bool | None = None
    classification: int = 0


@dataclass(slots=True)
class InferRequest:
    """One request for inference, whichever transport brought it; `outputs` None asks for all."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, Parameter]
    inputs: Sequence[Tensor]
    outputs: Sequence[RequestedOutput] | None = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One answered tensor: `values` are C-contiguous; of BYTES `str` objects."""

    name: str
    datatype: str
    values: NDArray[Any]


@dataclass(slots=True)
class InferResponse:
    """One answer, whichever transport carries it."""

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]
    parameters: Parameters = field(default_factory=dict[str, Parameter])


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a model takes or gives: a dimension of -1 is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        """Return it as the REST protocol spells it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def dtype_of(datatype: str, name: str) -> np.dtype[Any]:
    """Return the elements of a datatype.

    Raises:
        SpecError: `oip-datatype`.
    """
    found = DATATYPES.get(datatype)
    if found is None:
        hint = "convert it to FP32 first" if datatype == "BF16" else f"use one of {', '.join(DATATYPES)}"
        raise SpecError(
            "oip-datatype",
            f"input {shown(name)} has the datatype {shown(datatype)}, which is not spoken here",
            fix=hint,
            where=f"inputs, {shown(name)}",
        )
    return found


def count_elements(shape: Sequence[int], name: str) -> int:
    """Return the product of `shape`; nothing is allocated, and no size overflows.

    Raises:
        SpecError: `oip-shape`: too many dimensions, one below 1, or a product no machine holds; `rows-empty`: no rows.
    """
    if len(shape) > MAX_RANK or not shape:
        raise _bad_shape(name, f"has {len(shape):,} dimensions", f"send 1 to {MAX_RANK} dimensions, the first of them the rows")
    if min(shape) < 1:
        if shape[0] == 0 and min(shape[1:], default=1) > 0:
            raise SpecError("rows-empty", f"input {shown(name)} holds no rows", fix="send at least one row", where=f"inputs, {shown(name)}")
        raise _bad_shape(name, f"has the shape {shown(list(shape))}", "send the actual dimensions, each at least 1")
    n = math.prod(shape)
    if n > _MAX_ELEMENTS:
        raise _bad_shape(name, f"has the shape {shown(list(shape))}: more elements than fit in a request", "send fewer rows at a time")
    return n


def require_raw(spec: InputSpec, n_bytes: int) -> None:
    """Raise unless `n_bytes` of raw data is what the claim says.

    Raises:
        SpecError: `oip-data`.
    """
    if n_bytes == spec.n_bytes or (spec.n_bytes < 0 and n_bytes >= spec.n_elements * _LENGTH.size):
        return
    wanted = f"{spec.n_bytes:,} bytes" if spec.n_bytes >= 0 else f"at least {spec.n_elements * _LENGTH.size:,} bytes (a length before each)"
    raise SpecError(
        "oip-data",
        f"input {shown(spec.name)} brings {n_bytes:,} bytes of data",
        fix=f"send {wanted}: shape {shown(list(spec.shape))} of {spec.datatype}",
        where=f"inputs, {shown(spec.name)}",
    )


def encode_texts(values: NDArray[Any]) -> bytes:
    """Return text elements as BYTES travel: each behind its length, four bytes, little end first."""
    parts: list[bytes] = []
    for value in values.ravel().tolist():
        data = value.encode() if isinstance(value, str) else bytes(value)
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def raw_of(tensor: OutputTensor) -> bytes | memoryview:
    """Return an answered tensor's elements as they travel; a view of its memory where that is possible."""
    if tensor.datatype == "BYTES":
        return encode_texts(tensor.values)
    values = np.ascontiguousarray(tensor.values, dtype=DATATYPES[tensor.datatype])
    # A view of 8,192 bytes costs more to carry along than to copy.
    return values.tobytes() if values.nbytes <= 1 << 13 else values.reshape(-1).view(np.uint8).data


def text_of(value: object, spec: InputSpec, i: int) -> str | None:
    """Return one BYTES element as text.

    Raises:
        SpecError: `oip-data`: not UTF-8.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return cast("bytes", value).decode()
    except UnicodeDecodeError as error:
        raise SpecError(
            "oip-data",
            f"input {shown(spec.name)}: element {i:,} is not UTF-8 at byte {error.start}",
            fix="send text in UTF-8",
            where=f"inputs, {shown(spec.name)}",
        ) from error


def _read(spec: InputSpec, raw: memoryview) -> NDArray[Any]:
    require_raw(spec, len(raw))
    if spec.n_bytes < 0:
        return _read_texts(spec, raw).reshape(spec.shape)
    if spec.datatype == "BOOL":
        bits = np.frombuffer(raw, dtype=np.uint8)
        if int(bits.max(initial=0)) > 1:
            # Anything but 0 and 1 in a boolean's byte is undefined behaviour further down.
            raise SpecError(
                "oip-data",
                f"input {shown(spec.name)}: a BOOL byte is {int(bits.max())}",
                fix="send one byte per element: 0 or 1",
                where=f"inputs, {shown(spec.name)}",
            )
        return bits.view(np.bool_).reshape(spec.shape)
    values = np.frombuffer(raw, dtype=spec.dtype)
    if not values.flags.aligned:
        # Vector code that peels a loop to an aligned address never reaches one from here, and crashes.
        values = values.copy()
    return values.reshape(spec.shape)


def _read_texts(spec: InputSpec, raw: memoryview) -> NDArray[Any]:
    data = bytes(raw)
    end = len(data)
    out = np.empty(spec.n_elements, dtype=object)
    at = 0
    unpack = _LENGTH.unpack_from
    for i in range(spec.n_elements):
        start = at + 4
        if start > end:
            raise _bad_lengths(spec, f"the data ends before the length of element {i:,}")
        at = start + cast("int", unpack(data, start - 4)[0])
        if at > end:
            raise _bad_lengths(spec, f"element {i:,} says it has {at - start:,} bytes; {end - start:,} are left")
        out[i] = data[start:at]
    if at != end:
        raise _bad_lengths(spec, f"{end - at:,} bytes are left behind the last element")
    return out


def _bad_lengths(spec: InputSpec, what: str) -> SpecError:
    return SpecError(
        "oip-data",
        f"input {shown(spec.name)}: {what}",
        fix="put the length of each element before it: 4 bytes, little end first",
        where=f"inputs, {shown(spec.name)}",
    )


def _bad_shape(name: str, what: str, fix: str) -> SpecError:
    return SpecError("oip-shape", f"input {shown(name)} {what}", fix=fix, where=f"inputs, {shown(name)}")
