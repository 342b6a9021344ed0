"""A look into ONNX bytes before any runtime sees them: is it ONNX at all, and does it point outside itself?

ONNX may keep tensors in other files, named by paths inside the model: an invitation to read `../../etc/…`. Bundles
never do. This walks the protobuf's wire format and looks at the few fields that matter; nothing is executed, and
large tensors are stepped over.
"""

from collections.abc import Iterator

from mulle.core.errors import CheckError

# Field numbers of onnx.proto: where a message can hold a tensor, and what marks one as external.
_MODEL_GRAPH, _MODEL_FUNCTIONS, _MODEL_OPSETS, _MODEL_IR_VERSION = 7, 25, 8, 1
_TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 13, 14
_GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION = "graph", "node", "attribute", "tensor", "sparse", "function"
_CHILDREN: dict[str, dict[int, str]] = {
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TENSOR: {},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64
_PICKLE_OPCODE = 0x80


class _MalformedError(Exception):
    pass


def require_plain_onnx(data: bytes | memoryview, *, where: str) -> None:
    """Return if `data` is an ONNX model that holds all of its tensors itself.

    Raises:
        CheckError: `model-not-onnx` (named: a pickle, a ZIP …) or `model-external-data`.
    """
    view = memoryview(data)
    try:
        external = _find_external(view)
    except (_MalformedError, RecursionError) as error:
        raise CheckError(
            "model-not-onnx",
            f"this is not an ONNX model: {_guess(bytes(view[:8]))}",
            fix="export the model to ONNX (`mulle run` does, `mulle adopt` checks one); Mulle never loads pickles",
            where=where,
        ) from error
    if external:
        raise CheckError(
            "model-external-data",
            "the model keeps tensors in other files",
            fix="save it as one file: onnx.save(model, path, save_as_external_data=False)",
            where=where,
        )


def _guess(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head[0] == _PICKLE_OPCODE:
        return "it begins like a Python pickle"
    if head.startswith(b"PK"):
        return "it is a ZIP archive (a PyTorch or Keras file?)"
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file"
    return "its bytes are damaged, or of another format"


def _find_external(model: memoryview) -> bool:
    if not {number for number, _, _ in _fields(model)} >= {_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSETS}:
        raise _MalformedError
    stack = [
        (_GRAPH if number == _MODEL_GRAPH else _FUNCTION, value, 0)
        for number, kind, value in _fields(model)
        if kind == _BYTES and number in {_MODEL_GRAPH, _MODEL_FUNCTIONS} and isinstance(value, memoryview)
    ]
    while stack:
        what, message, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise _MalformedError
        children = _CHILDREN[what]
        for number, kind, value in _fields(message):
            if what == _TENSOR and (number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value)):
                return True
            if kind == _BYTES and number in children and isinstance(value, memoryview):
                stack.append((children[number], value, depth + 1))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            if kind == _BYTES:
                length, at = _varint(message, at)
            elif kind in {_FIXED32, _FIXED64}:
                length = 8 if kind == _FIXED64 else 4
            else:
                raise _MalformedError
            if number == 0 or at + length > end:
                raise _MalformedError
            value, at = message[at : at + length], at + length
        yield number, kind, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _MalformedError
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _PICKLE_OPCODE:
            return value, at
    raise _MalformedError
