"""The protocol's gRPC messages, read and written by hand.

Of a ModelInferRequest everything but the id and the raw tensors is the same from one request of a client to the next:
the bytes before the first raw tensor, less the id, are a key to what they meant the last time. What is left per request
is a walk over the outermost fields. Generated classes would copy every tensor once more, and cost the server a
dependency whose versions fight.

Field numbers are those of `inference.GRPCInferenceService`. As the wire format asks: unknown fields are skipped, the last
of a repeated single field wins.
"""

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.rows import shown
from mulle.serve.protocols.oip import (
    DATATYPES,
    MAX_TENSORS,
    InferRequest,
    InferResponse,
    InputSpec,
    Parameter,
    Parameters,
    RequestedOutput,
    Tensor,
    TensorInfo,
    raw_of,
    require_raw,
)
from mulle.serve.protocols.oip_parameters import requested_output, require_no_shared_memory
from mulle.serve.protocols.oip_protobuf import (
    BLOCK,
    FIXED32,
    FIXED64,
    MAX_NUMBERS,
    MORE,
    VARINT,
    block,
    fields,
    malformed,
    signed,
    size_of,
    text,
    varint,
    varints,
)

_ID, _RAW = 0x1A, 0x3A
_MAX_HEADS = 1_024
_MAX_HEAD_BYTES = 1 << 13
_DOUBLE = struct.Struct("<d")
_Head: TypeAlias = "tuple[str, str, Parameters, list[InputSpec], list[RequestedOutput] | None]"

_TYPED = {
    "BOOL": 1,
    **dict.fromkeys(("INT8", "INT16", "INT32"), 2),
    "INT64": 3,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), 4),
    "UINT64": 5,
    "FP32": 6,
    "FP64": 7,
    "BYTES": 8,
}
"""Datatype to the field of InferTensorContents that holds its elements."""


class InferDecoder:
    """Reads ModelInferRequests and remembers their heads; one per server, for one thread."""

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head] = {}

    def __call__(self, data: bytes) -> InferRequest:
        """Return the request in `data`; its tensors are views of it.

        Raises:
            SpecError: `oip-malformed`, and what `InputSpec` and the parameters refuse.
        """
        try:
            found = _outline(data)
            if found is None:
                return _decode_in_full(data)
            key, request_id, raws = found
            model, version, parameters, specs, outputs = self._head(key)
            if len(specs) != len(raws):
                raise _raw_count(len(raws), len(specs))
            view = memoryview(data)
            tensors: list[Tensor] = []
            for spec, (start, stop) in zip(specs, raws, strict=True):
                if stop - start != spec.n_bytes:
                    require_raw(spec, stop - start)
                tensors.append(Tensor(spec, view[start:stop]))
            return InferRequest(model, version, request_id.decode(), parameters, tensors, outputs)
        except UnicodeDecodeError as error:
            raise malformed("a name or an id is not UTF-8") from error

    def _head(self, key: bytes) -> _Head:
        head = self._heads.get(key)
        if head is None:
            head = _decode_head(key)
            if len(key) <= _MAX_HEAD_BYTES:
                if len(self._heads) >= _MAX_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        return head


def decode_names(data: bytes) -> tuple[str, str]:
    """Return the first two text fields: model and version of ModelReadyRequest and ModelMetadataRequest.

    Raises:
        SpecError: `oip-malformed`.
    """
    name = version = ""
    try:
        for number, wire, _, value in fields(memoryview(data)):
            match number, wire:
                case 1, 2:
                    name = str(value, "utf-8")
                case 2, 2:
                    version = str(value, "utf-8")
                case _:
                    pass
    except UnicodeDecodeError as error:
        raise malformed("a name is not UTF-8") from error
    return name, version


def encode_flag(*, value: bool) -> bytes:
    """Return a message whose first field is a boolean: live, or ready."""
    return b"\x08\x01" if value else b""


def encode_server(name: str, version: str, extensions: Sequence[str]) -> bytes:
    """Return a ServerMetadataResponse."""
    return b"".join([text(1, name), text(2, version), *(text(3, extension) for extension in extensions)])


def encode_model(name: str, versions: Sequence[str], platform: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bytes:
    """Return a ModelMetadataResponse."""
    return b"".join(
        [
            text(1, name),
            *(text(2, version) for version in versions),
            text(3, platform),
            *(block(4, _tensor_info(info.name, info.datatype, info.shape)) for info in inputs),
            *(block(5, _tensor_info(info.name, info.datatype, info.shape)) for info in outputs),
        ]
    )


class ResponseEncoder:
    """Writes ModelInferResponses and remembers the descriptions of their tensors; one per server, for one thread."""

    def __init__(self) -> None:
        self._described: dict[tuple[str, str, tuple[int, ...]], bytes] = {}
        self._begun: dict[tuple[str, str], bytes] = {}
        self._named: dict[tuple[str, int], bytes] = {}

    def __call__(self, response: InferResponse) -> bytes:
        """Return the message, its tensors as raw outputs."""
        parts: list[bytes | memoryview] = [self._begin((response.model, response.version)), text(3, response.id)]
        parts += [self._parameter(name, value) for name, value in response.parameters.items()]
        parts += [self._describe((tensor.name, tensor.datatype, tensor.values.shape)) for tensor in response.outputs]
        for tensor in response.outputs:
            raw = raw_of(tensor)
            parts += (b"\x32", size_of(len(raw)), raw)
        return b"".join(parts)

    def _begin(self, key: tuple[str, str]) -> bytes:
        found = self._begun.get(key)
        if found is None:
            if len(self._begun) >= _MAX_HEADS:
                self._begun.clear()
            found = self._begun[key] = text(1, key[0]) + text(2, key[1])
        return found

    def _parameter(self, name: str, value: Parameter) -> bytes:
        if not isinstance(value, str) or not value.isascii():
            return encode_parameter(name, value)
        # The value stands last: what is before it depends on its length alone.
        key = (name, len(value))
        found = self._named.get(key)
        if found is None:
            if len(self._named) >= _MAX_HEADS:
                self._named.clear()
            found = self._named[key] = encode_parameter(name, value)[: -len(value) or None]
        return found + value.encode()

    def _describe(self, key: tuple[str, str, tuple[int, ...]]) -> bytes:
        found = self._described.get(key)
        if found is None:
            if len(self._described) >= _MAX_HEADS:
                self._described.clear()
            found = self._described[key] = block(5, _tensor_info(*key))
        return found


def encode_parameter(name: str, value: Parameter) -> bytes:
    """Return an entry of a message's parameters."""
    if isinstance(value, bool):
        inner = b"\x08" + size_of(value)
    elif isinstance(value, int):
        inner = b"\x10" + size_of(value)
    elif isinstance(value, float):
        inner = b"\x21" + _DOUBLE.pack(value)
    else:
        inner = block(3, value.encode())
    return block(4, text(1, name) + block(2, inner))


def _outline(data: bytes) -> tuple[bytes, bytes, list[tuple[int, int]]] | None:
    """Return head without id, id, and where each raw tensor is; None where the message is not a head followed by raw tensors."""
    at, end = 0, len(data)
    id_at = id_from = id_to = 0
    head_to = 0
    raws: list[tuple[int, int]] = []
    while at < end - 1:
        begin, tag, size = at, data[at], data[at + 1]
        at += 2
        if size >= MORE:
            size, at = varint(data, begin + 1, end)
        if tag == _RAW:
            head_to = head_to if raws else begin
            raws.append((at, at + size))
        elif raws or tag & 7 != BLOCK or tag >= MORE or (tag == _ID and id_to):
            return None
        elif tag == _ID:
            id_at, id_from, id_to = begin, at, at + size
        at += size
    if at != end or not raws:
        return None
    if not id_to:
        return data[:head_to], b"", raws
    return data[:id_at] + data[id_to:head_to], data[id_from:id_to], raws


def _decode_in_full(data: bytes) -> InferRequest:
    head = bytearray()
    request_id = ""
    raws: list[memoryview] = []
    contents: list[memoryview | None] = []
    for number, wire, _, value in fields(memoryview(data)):
        match number, wire:
            case 3, 2:
                request_id = str(value, "utf-8")
            case 7, 2:
                raws.append(value)
            case 5, 2:
                bare, typed = _without_contents(value)
                head += block(5, bare)
                contents.append(typed)
            case _, 2:
                head += block(number, value)
            case _:
                pass
    model, version, parameters, specs, outputs = _decode_head(bytes(head))
    if not raws:
        tensors = [Tensor(spec, None, _typed_values(spec, typed)) for spec, typed in zip(specs, contents, strict=True)]
    elif any(typed is not None for typed in contents):
        raise _mixed()
    elif len(raws) != len(specs):
        raise _raw_count(len(raws), len(specs))
    else:
        for spec, raw in zip(specs, raws, strict=True):
            require_raw(spec, len(raw))
        tensors = [Tensor(spec, raw) for spec, raw in zip(specs, raws, strict=True)]
    return InferRequest(model, version, request_id, parameters, tensors, outputs)


def _decode_head(data: bytes) -> _Head:
    model = version = ""
    parameters: Parameters = {}
    specs: list[InputSpec] = []
    outputs: list[RequestedOutput] = []
    for number, wire, _, value in fields(memoryview(data)):
        match number, wire:
            case 1, 2:
                model = str(value, "utf-8")
            case 2, 2:
                version = str(value, "utf-8")
            case 4, 2:
                _read_parameter(value, parameters)
            case 5, 2:
                specs.append(_decode_input(value))
            case 6, 2:
                outputs.append(_decode_output(value))
            case _:
                pass
        if len(specs) + len(outputs) > 2 * MAX_TENSORS:
            raise malformed(f"more than {2 * MAX_TENSORS:,} tensors")
    return model, version, parameters, specs, outputs or None


def _decode_input(data: memoryview) -> InputSpec:
    name = datatype = ""
    shape: list[int] = []
    parameters: Parameters = {}
    for number, wire, integer, value in fields(data):
        match number, wire:
            case 1, 2:
                name = str(value, "utf-8")
            case 2, 2:
                datatype = str(value, "utf-8")
            case 3, 0:
                shape.append(signed(integer))
            case 3, 2:
                shape += varints(value).view(np.int64).tolist()
            case 4, 2:
                _read_parameter(value, parameters)
            case 5, 2:
                raise _mixed()
            case _:
                pass
    require_no_shared_memory(parameters, name)
    return InputSpec(name, datatype, shape)


def _decode_output(data: memoryview) -> RequestedOutput:
    name = ""
    parameters: Parameters = {}
    for number, wire, _, value in fields(data):
        match number, wire:
            case 1, 2:
                name = str(value, "utf-8")
            case 2, 2:
                _read_parameter(value, parameters)
            case _:
                pass
    return requested_output(name, parameters)


def _read_parameter(data: memoryview, into: Parameters) -> None:
    name = ""
    found: Parameter | None = None
    for number, wire, _, value in fields(data):
        match number, wire:
            case 1, 2:
                name = str(value, "utf-8")
            case 2, 2:
                found = _parameter_value(value)
            case _:
                pass
    if found is not None:
        into[name] = found


def _parameter_value(data: memoryview) -> Parameter | None:
    found: Parameter | None = None
    for number, wire, integer, value in fields(data):
        match number, wire:
            case 1, 0:
                found = bool(integer)
            case 2, 0:
                found = signed(integer)
            case 3, 2:
                found = str(value, "utf-8")
            case 4, 1:
                found = float(_DOUBLE.unpack(value)[0])
            case 5, 0:
                found = integer
            case _:
                pass
    return found


def _without_contents(data: memoryview) -> tuple[bytes, memoryview | None]:
    """Return an input's fields but its contents, and the contents."""
    kept: list[bytes] = []
    contents: list[memoryview] = []
    for number, wire, integer, value in fields(data):
        match number, wire:
            case 5, 2:
                contents.append(value)
            case _, 2:
                kept.append(block(number, value))
            case _, 0:
                kept.append(size_of(number << 3) + size_of(integer))
            case _:
                pass
    if len(contents) > 1:
        return b"".join(kept), memoryview(b"".join(contents))
    return b"".join(kept), contents[0] if contents else None


def _typed_values(spec: InputSpec, contents: memoryview | None) -> NDArray[Any]:
    wanted = _TYPED.get(spec.datatype)
    if wanted is None or spec.n_elements > MAX_NUMBERS:
        raise SpecError(
            "oip-data",
            f"input {shown(spec.name)}: {spec.n_elements:,} elements of {spec.datatype} do not travel as typed contents",
            fix="send raw_input_contents, which are also many times faster",
            where=f"inputs, {shown(spec.name)}",
        )
    n_found = 0
    pieces: list[Any] = []
    for number, wire, integer, value in fields(memoryview(b"") if contents is None else contents):
        piece = _typed_piece(spec, wire, integer, value) if number == wanted else ()
        n_found += len(piece)
        if n_found > spec.n_elements:
            break
        pieces.append(piece)
    if n_found != spec.n_elements:
        raise SpecError(
            "oip-data",
            f"input {shown(spec.name)} brings {n_found:,}{' or more' if n_found > spec.n_elements else ''} elements of {spec.datatype}",
            fix=f"send {spec.n_elements:,} in the field for {spec.datatype}: shape {shown(list(spec.shape))}",
            where=f"inputs, {shown(spec.name)}",
        )
    if spec.datatype == "BYTES":
        texts = np.empty(n_found, dtype=object)
        texts[:] = [element for piece in pieces for element in piece]
        return texts.reshape(spec.shape)
    return _narrowed(spec, np.concatenate([piece for piece in pieces if len(piece)])).reshape(spec.shape)


def _typed_piece(spec: InputSpec, wire: int, integer: int, value: memoryview) -> Any:
    if spec.datatype == "BYTES":
        return [bytes(value)] if wire == BLOCK else []
    if spec.dtype.kind == "f":
        if wire not in {BLOCK, FIXED32, FIXED64} or len(value) % spec.dtype.itemsize:
            raise malformed(f"input {shown(spec.name)}: contents of {spec.datatype} are cut off")
        return np.frombuffer(bytes(value), dtype=spec.dtype)
    if wire == VARINT:
        return np.array([integer], dtype=np.uint64)
    return varints(value) if wire == BLOCK else ()


def _narrowed(spec: InputSpec, wide: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as the datatype's own elements; one that does not fit is refused, not cut."""
    if spec.dtype.kind == "f":
        return wide
    if spec.dtype.kind == "b":
        return wide != 0
    values = wide if spec.dtype.kind == "u" else wide.view(np.int64)
    narrow = values.astype(DATATYPES[spec.datatype])
    if not np.array_equal(narrow, values):
        i = int(np.argmax(narrow != values))
        raise SpecError(
            "oip-data",
            f"input {shown(spec.name)}: element {i:,} is {int(values[i])}, which {spec.datatype} cannot hold",
            fix="send values the datatype can hold",
            where=f"inputs, {shown(spec.name)}",
        )
    return narrow


def _tensor_info(name: str, datatype: str, shape: Sequence[int]) -> bytes:
    return text(1, name) + text(2, datatype) + block(3, b"".join(size_of(dim) for dim in shape))


def _raw_count(found: int, wanted: int) -> SpecError:
    return SpecError(
        "oip-data",
        f"{found:,} raw_input_contents for {wanted:,} inputs",
        fix="send the raw data of every input, in the order of the inputs",
        where="raw_input_contents",
    )


def _mixed() -> SpecError:
    return malformed("inputs carry typed contents beside raw_input_contents")
