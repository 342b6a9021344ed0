"""The protocol's REST bodies: JSON, and the binary tensors that may stand behind it.

With the header `inference-header-content-length: N` the first N bytes are JSON, and the tensors that say
`binary_data_size` follow in the order of the inputs. Answers are built the same way. Numbers in JSON are flat or nested
as the shape says; null is a missing number or text; NaN and Infinity are not JSON.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.rows import shown
from mulle.serve.protocols.oip import (
    MAX_TENSORS,
    InferRequest,
    InferResponse,
    InputSpec,
    Parameters,
    RequestedOutput,
    Tensor,
    raw_of,
    require_raw,
)
from mulle.serve.protocols.oip_parameters import requested_output, require_no_shared_memory

HEADER_LENGTH = "inference-header-content-length"
_MAX_VALUES = 1 << 20
_SPACE = b" \t\r\n"
_MAX_PLANS = 256
_MAX_REMEMBERED_BYTES = 1 << 13


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Request)
_ENCODER = msgspec.json.Encoder()


class BodyDecoder:
    """Reads bodies of `…/infer` and remembers the JSON of those whose tensors all stand behind it: a client repeats it byte for byte."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan] = {}

    def __call__(self, body: bytes | memoryview, header_length: str | None, *, model: str, version: str) -> InferRequest:
        """Return the request in a body; binary tensors are views of it.

        Args:
            body: JSON, and what follows it.
            header_length: The header of that name; None where all of the body is JSON.
            model: From the path.
            version: From the path; empty where it names none.

        Raises:
            SpecError: `oip-malformed`, and what `InputSpec`, the data and the parameters refuse.
        """
        view = memoryview(body)
        n_json = _json_length(header_length, len(view))
        head = bytes(view[:n_json]) if n_json <= _MAX_REMEMBERED_BYTES and header_length is not None else None
        plan = None if head is None else self._plans.get(head)
        if plan is None:
            plan = _read_plan(view[:n_json])
            if head is not None and not any(plan.values):
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[head] = plan
        at = n_json
        tensors: list[Tensor] = []
        for spec, size, data in zip(plan.specs, plan.sizes, plan.values, strict=True):
            if data is not None:
                tensors.append(Tensor(spec, None, _values(spec, data)))
                continue
            if size > len(view) - at:
                raise _bad_size(spec, size, len(view) - at)
            tensors.append(Tensor(spec, view[at : at + size]))
            at += size
        if at != len(view):
            raise SpecError(
                "oip-data",
                f"{len(view) - at:,} bytes stand behind the last tensor",
                fix=f"check {HEADER_LENGTH}, and binary_data_size of each input",
                where="body",
            )
        return InferRequest(model, version, plan.id, plan.parameters, tensors, plan.outputs)


class _Plan(NamedTuple):
    """What a request's JSON says: per input the claim, the size of its binary data, and its JSON data where it has any."""

    id: str
    parameters: Parameters
    specs: list[InputSpec]
    sizes: list[int]
    values: list[bytes | None]
    outputs: list[RequestedOutput] | None


def _read_plan(data: memoryview) -> _Plan:
    request = _parse(data)
    if len(request.inputs) > MAX_TENSORS or len(request.outputs or ()) > MAX_TENSORS:
        raise _malformed(f"more than {MAX_TENSORS:,} tensors")
    plan = _Plan(request.id, _parameters(request.parameters), [], [], [], None)
    for item in request.inputs:
        spec = InputSpec(item.name, item.datatype, item.shape)
        size = None
        if item.parameters:
            require_no_shared_memory(item.parameters, item.name)
            size = item.parameters.get("binary_data_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise _bad_size(spec, size, -1)
            require_raw(spec, size)
        plan.specs.append(spec)
        plan.sizes.append(size or 0)
        plan.values.append(None if size is not None else bytes(item.data))
    return plan._replace(outputs=[requested_output(item.name, item.parameters or {}) for item in request.outputs or ()] or None)


def encode_infer(response: InferResponse, asked: Sequence[RequestedOutput] | None, *, all_binary: bool) -> tuple[bytes, int | None]:
    """Return a body and the length of its JSON, or None where all of it is JSON.

    Args:
        response: What to say.
        asked: What the client wants of each output.
        all_binary: Put every output behind the JSON that does not say otherwise.
    """
    wishes = {item.name: item.binary for item in asked or ()}
    described: list[dict[str, Any]] = []
    raws: list[bytes | memoryview] = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.values.shape}
        wish = wishes.get(tensor.name)
        if all_binary if wish is None else wish:
            raw = raw_of(tensor)
            raws.append(raw)
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            entry["data"] = tensor.values.ravel().tolist()
        described.append(entry)
    content: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": described}
    if response.id:
        content["id"] = response.id
    if response.parameters:
        content["parameters"] = response.parameters
    head = _ENCODER.encode(content)
    if not raws:
        return head, None
    return b"".join([head, *raws]), len(head)


def _json_length(header: str | None, n_body: int) -> int:
    if header is None:
        return n_body
    # More digits than a body has are not worth converting.
    if not (header.isascii() and header.isdigit() and len(header) <= len(str(n_body)) and int(header) <= n_body):
        raise SpecError(
            "header-invalid",
            f"{HEADER_LENGTH} is {shown(header)}, and the body has {n_body:,} bytes",
            fix="send the length of the JSON in bytes",
            where=HEADER_LENGTH,
        )
    return int(header)


def _parse(data: memoryview) -> _Request:
    try:
        return _DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise SpecError("body-too-deep", "the body is nested too deeply", fix="send tensors as flat lists", where="body") from error
    except msgspec.DecodeError as error:
        raise _malformed(str(error)[:200]) from error


def _parameters(found: dict[str, Any] | None) -> Parameters:
    if not found:
        return {}
    wrong = next((name for name, value in found.items() if not isinstance(value, bool | int | float | str)), None)
    if wrong is not None:
        raise SpecError(
            "oip-parameter",
            f"the parameter {shown(wrong)} is {shown(found[wrong])}",
            fix="send text, a number, true or false",
            where="parameters",
        )
    return found


def _values(spec: InputSpec, raw: bytes) -> NDArray[Any]:
    if not raw:
        raise _bad_data(spec, "brings no data", "send data, or binary_data_size and the bytes behind the JSON")
    if spec.n_elements > _MAX_VALUES:
        raise _bad_data(spec, f"has {spec.n_elements:,} elements in JSON; the limit is {_MAX_VALUES:,}", "send it as binary data")
    # Between n numbers stand n - 1 commas, however they are nested: counted before anything is made of them.
    n_commas = raw.count(b",")
    if n_commas < spec.n_elements - 1 or (spec.datatype != "BYTES" and n_commas != spec.n_elements - 1):
        raise _bad_data(spec, f"brings {n_commas + 1:,} elements", f"send {spec.n_elements:,}: shape {shown(list(spec.shape))}")
    depth = _depth(raw)
    if depth not in {1, len(spec.shape)}:
        raise _bad_data(spec, f"brings data nested {depth} deep", "send a flat list, or one nested as the shape says")
    try:
        values = cast("list[Any]", _decoder(_KINDS[spec.datatype], depth).decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_data(spec, f"brings data that is not {spec.datatype}: {str(error)[:120]}", "send values of the datatype") from error
    for length in spec.shape[:-1] if depth > 1 else ():
        if len(values) != length or any(len(part) != len(values[0]) for part in values):
            raise _bad_data(spec, "brings lists of other lengths than its shape", f"send them as {shown(list(spec.shape))}")
        values = list(itertools.chain.from_iterable(values))
    if len(values) != spec.n_elements:
        raise _bad_data(spec, f"brings {len(values):,} elements", f"send {spec.n_elements:,}: shape {shown(list(spec.shape))}")
    return _array(spec, values).reshape(spec.shape)


def _array(spec: InputSpec, values: list[Any]) -> NDArray[Any]:
    if spec.datatype == "BYTES":
        texts = np.empty(len(values), dtype=object)
        texts[:] = values
        return texts
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=spec.dtype)
    except OverflowError as error:
        raise _bad_data(spec, f"brings a number {spec.datatype} cannot hold", "send values the datatype can hold") from error
    if spec.dtype.kind == "f" and bool(np.isinf(array).any()):
        raise _bad_data(spec, f"brings {shown(values[int(np.argmax(np.isinf(array)))])}, which {spec.datatype} cannot hold", "send FP64")
    return array


_KINDS: dict[str, Any] = {
    "BOOL": bool,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), int),
    **dict.fromkeys(("FP16", "FP32", "FP64"), float | None),
    "BYTES": str | None,
}


@cache
def _decoder(kind: Any, depth: int) -> msgspec.json.Decoder[Any]:
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _depth(raw: bytes) -> int:
    depth = 0
    for byte in raw:
        if byte == ord("["):
            depth += 1
        elif byte not in _SPACE:
            break
    return depth


def _bad_size(spec: InputSpec, size: object, n_left: int) -> SpecError:
    return _bad_data(
        spec, f"says binary_data_size {shown(size)}; {n_left:,} bytes are left of the body", "send the size of its data in bytes"
    )


def _bad_data(spec: InputSpec, what: str, fix: str) -> SpecError:
    return SpecError("oip-data", f"input {shown(spec.name)} {what}", fix=fix, where=f"inputs, {shown(spec.name)}")


def _malformed(what: str) -> SpecError:
    return SpecError("oip-malformed", f"the body is not a request of this protocol: {what}", fix="see /docs", where="body")
