# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""ONNX files from anywhere: read without trust, inlined into one file, pruned to what leads to one output."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from mulle.core.errors import SpecError

MAX_MODEL_BYTES = (2 << 30) - 1
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_PICKLE_HEADS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OTHER_HEADS = (
    (b"PK\x03\x04", "a ZIP archive (PyTorch, Keras and skops files are)"),
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "a web page or XML"),
    (b"{", "JSON (an XGBoost or LightGBM dump?)"),
    (b"tree\n", "a LightGBM text model"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not fetched"),
)


def load_onnx(path: Path) -> Any:
    """Return the ONNX model at `path` with all external data brought inside, checked, nothing executed.

    External tensors may only lie in plain files beside or below the model: an absolute location, `..`, a link on the
    way, or a range outside the file is refused before a byte is read.

    Raises:
        SpecError: not an ONNX model (what it is instead is said), larger than 2 GiB in all, operators that are not
            standard ONNX, or external data that leaves the folder.
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError("file-missing", f"there is no file {path.name!r}", fix="check the path", where=str(path))
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise SpecError(
            "onnx-too-large", f"{path.name!r} has {size:,} bytes; ONNX files end at 2 GiB", fix="use a smaller model", where=str(path)
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(
            "file-unreadable", f"{path.name!r} cannot be read: {error.strerror}", fix="check its permissions", where=str(path)
        ) from error
    model = parse_onnx(data, where=str(path))
    inline_external_data(model, path.parent, where=str(path))
    check_model(model, where=str(path))
    return model


def parse_onnx(data: bytes, *, where: str = "") -> Any:
    """Return the ONNX model in `data`; nothing in it is trusted yet.

    Raises:
        SpecError: the bytes are something else; a pickle is called one.
    """
    if data.startswith(_PICKLE_HEADS):
        raise SpecError(
            "onnx-is-pickle",
            "this is a Python pickle, not an ONNX model; loading it would run whatever code is inside, so it was not loaded",
            fix=f"in the process that trained it: {PASTE}",
            where=where,
        )
    for head, what in _OTHER_HEADS:
        if data.startswith(head):
            raise SpecError("onnx-unreadable", f"this is not an ONNX model but {what}", fix="export the model to ONNX first", where=where)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise SpecError(
            "onnx-unreadable", "this is not an ONNX model: its bytes do not parse", fix="export or copy the file again", where=where
        ) from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise SpecError("onnx-unreadable", "this is not an ONNX model: it has no graph", fix="export or copy the file again", where=where)
    return model


def check_model(model: Any, *, where: str = "") -> None:
    """Return if `model` is valid ONNX made of standard operators only.

    Raises:
        SpecError: an operator of another domain, a function of its own, or a graph the checker refuses.
    """
    # Functions a model brings along are made of operators themselves, which are checked like the graph's own.
    own = {(function.domain, function.name) for function in model.functions}
    inside = (node for function in model.functions for outer in function.node for node in (outer, *nested_nodes(outer)))
    for node in (*all_nodes(model.graph), *inside):
        if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in own:
            raise SpecError(
                "onnx-custom-op",
                f"the model uses the operator {node.op_type[:80]!r} of {node.domain[:80]!r}, which is not standard ONNX",
                fix="export it without custom or vendor operators (for onnxruntime: without fused or quantised contrib operators)",
                where=where,
            )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        text = str(error).strip().splitlines()
        raise SpecError(
            "onnx-invalid",
            f"the ONNX model is not valid: {text[0][:200] if text else 'no reason given'}",
            fix="export it again",
            where=where,
        ) from error


def inline_external_data(model: Any, folder: Path, *, where: str = "") -> None:
    """Bring every external tensor of `model` inside, reading only plain files in `folder` or below.

    Raises:
        SpecError: a location that leaves the folder (absolute, `..`, a link, empty), a missing file, a range outside
            it, or more than 2 GiB in all.
    """
    total = int(model.ByteSize())
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        if set(info) - {"location", "offset", "length", "checksum"}:
            raise _external(tensor, "has settings of an unknown kind", where)
        data = _read_external(tensor, info, folder, where)
        total += len(data)
        if total > MAX_MODEL_BYTES:
            raise SpecError("onnx-too-large", "the model and its external data exceed 2 GiB", fix="use a smaller model", where=where)
        tensor.raw_data = data
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def prune(model: Any) -> None:
    """Drop nodes, initializers and value infos that lead to no output, in place; names of operators stay."""
    graph = model.graph
    wanted = {output.name for output in graph.output}
    kept: list[Any] = []
    for node in _backwards(graph):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(_outer_inputs(node))
    kept.reverse()
    keep = [initializer for initializer in graph.initializer if initializer.name in wanted]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    held = [type(initializer).FromString(initializer.SerializeToString()) for initializer in keep]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(copies)
    graph.initializer.extend(held)


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph, those of nested graphs (loops, branches) too."""
    for node in graph.node:
        yield node
        yield from nested_nodes(node)


def nested_nodes(node: Any) -> Iterator[Any]:
    """Yield every node in the graphs that are attributes of `node`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from all_nodes(attribute.g)
        for inner in attribute.graphs:
            yield from all_nodes(inner)


def quiet_session(model: bytes) -> Any:
    """Return an onnxruntime session on one thread that prints errors only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


PASTE = (
    "from mulle.bundle.adopt import adopt_estimator; from mulle.loop.adopt import seal_adopted; "
    "seal_adopted(adopt_estimator(model, sample), name='my-model')"
)
"""What to paste into the process that has the fitted model: the way in without a pickle."""


def _backwards(graph: Any) -> list[Any]:
    """Return the nodes so that every user comes before what it uses, whatever order the file has them in."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    state: dict[int, int] = {}
    for root in range(len(graph.node)):
        stack = [(root, False)]
        while stack:
            i, done = stack.pop()
            if done:
                order.append(i)
                continue
            if state.get(i):
                continue
            state[i] = 1
            stack.append((i, True))
            node = graph.node[i]
            stack += [
                (producer[name], False)
                for name in (*node.input, *_outer_inputs(node))
                if name in producer and not state.get(producer[name])
            ]
    return [graph.node[i] for i in reversed(order)]


def _outer_inputs(node: Any) -> set[str]:
    """Return what nested graphs of `node` may read from outside: every name they mention."""
    graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    return {name for graph in graphs for inner in all_nodes(graph) for name in inner.input} | {
        o.name for graph in graphs for o in graph.output
    }


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor in the model: initializers and constants, of nested graphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        # An unset message field reads as an empty tensor, which has no external data: it does no harm here.
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _read_external(tensor: Any, info: dict[str, str], folder: Path, where: str) -> bytes:
    location = info.get("location", "")
    pure = PurePosixPath(location)
    hostile = (
        not location
        or location != location.strip()
        or pure.is_absolute()
        or ".." in pure.parts
        or any(c in location for c in "\\:\x00")
        or not pure.parts
    )
    if hostile:
        raise _external(tensor, f"points at {location[:80]!r}, outside the model's folder", where)
    base = folder.resolve()
    target = base
    for part in pure.parts:
        target = target / part
        if target.is_symlink():
            raise _external(tensor, f"reaches its data over the link {part[:80]!r}", where)
    try:
        # O_NOFOLLOW holds even if the file is swapped for a link after the check above.
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise _external(tensor, f"needs {location[:80]!r}, which cannot be opened ({error.strerror})", where) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _external(tensor, f"needs {location[:80]!r}, which is not a plain file of its own", where)
        try:
            offset, length = int(info.get("offset", "0")), int(info.get("length", str(status.st_size - int(info.get("offset", "0")))))
        except ValueError as error:
            raise _external(tensor, "has an offset or length that is no number", where) from error
        if offset < 0 or length < 0 or offset + length > status.st_size:
            raise _external(tensor, f"reads {length:,} bytes at {offset:,} of a file of {status.st_size:,}", where)
        if length > MAX_MODEL_BYTES:
            raise SpecError("onnx-too-large", "the model's external data exceeds 2 GiB", fix="use a smaller model", where=where)
        file.seek(offset)
        return file.read(length)


def _external(tensor: Any, problem: str, where: str) -> SpecError:
    return SpecError(
        "onnx-external-data",
        f"the tensor {tensor.name[:80]!r} {problem}",
        fix="save the model as one file: onnx.save_model(model, path, save_as_external_data=False)",
        where=where,
    )
