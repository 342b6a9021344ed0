"""Tensors a request or a sample carries, compared with those a graph takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.bundle import GraphInput
from mulle.formats.rows import nearest, shown

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "string": np.dtype(object),
}
"""The manifest's element types; texts are arrays of `str` objects."""


def check_tensors(tensors: Mapping[str, NDArray[Any]], inputs: Sequence[GraphInput], fixed_rows: int | None) -> int:
    """Return the number of rows of tensors that fit a graph's inputs.

    Args:
        tensors: By name; the batch axis is the first.
        inputs: What the graph takes.
        fixed_rows: The only number of rows it takes, or None. One means that more are asked one by one.

    Raises:
        SpecError: `tensor-unknown`, `tensor-missing`, `tensor-dtype`, `tensor-shape`.
    """
    if len(tensors) != len(inputs) or any(tensor.name not in tensors for tensor in inputs):
        _refuse_names(tensors, inputs)
    n_rows = -1
    for tensor in inputs:
        value = tensors[tensor.name]
        wanted = NUMPY_TYPES[tensor.dtype]
        if value.dtype != wanted:
            raise SpecError(
                "tensor-dtype",
                f"the input {tensor.name!r} takes {tensor.dtype}, not {value.dtype.name}",
                fix=f"send {tensor.dtype}",
                where=tensor.name,
            )
        shape = tensor.shape or ()
        free = -1 if fixed_rows in {None, 1} else fixed_rows
        rows = value.shape[0] if value.ndim else 0
        fits = value.ndim == len(shape) + 1 and all(want in {-1, have} for want, have in zip(shape, value.shape[1:], strict=True))
        if not fits or rows == 0 or free not in {-1, rows}:
            raise SpecError(
                "tensor-shape",
                f"the input {tensor.name!r} takes shape {_spelt((-1 if free is None else free, *shape))}, not {list(value.shape)}",
                fix="send that shape; the first dimension counts the rows, at least one; -1 stands for any",
                where=tensor.name,
            )
        if n_rows not in {-1, rows}:
            raise SpecError(
                "tensor-shape",
                f"the input {tensor.name!r} has {rows} rows, and another has {n_rows}",
                fix="send as many rows in every input",
                where=tensor.name,
            )
        n_rows = rows
    return n_rows


def _refuse_names(tensors: Mapping[str, NDArray[Any]], inputs: Sequence[GraphInput]) -> None:
    known = [tensor.name for tensor in inputs]
    strange = next((name for name in tensors if name not in known), None)
    if strange is not None:
        like = nearest(strange, known)
        fix = f"did you mean {like!r}?" if like else f"use the model's inputs: {', '.join(known)[:300]}"
        raise SpecError("tensor-unknown", f"there is no input {shown(strange)}", fix=fix, where=strange[:100])
    missing = next(name for name in known if name not in tensors)
    raise SpecError("tensor-missing", f"the input {missing!r} is not there", fix=f"send {', '.join(known)[:300]}", where=missing)


def _spelt(shape: tuple[int, ...]) -> str:
    return str(list(shape))
