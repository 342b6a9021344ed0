# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Whether a loaded graph is the one a manifest describes, and whether its first axis is one of rows."""

from collections.abc import Sequence
from typing import Any

from mulle.core.errors import CheckError
from mulle.formats.bundle import Manifest
from mulle.formats.rows import shown


def find_batch_axis(session: Any, outputs: Sequence[str]) -> tuple[bool, int | None]:
    """Return whether requests may be joined along the first axis, and the fixed number of rows where there is one.

    They may where the first dimension of every input and of the outputs that are asked for is free and, as far as it has a
    name, has one name only: an output that counts something else (the objects found) has its own.
    """
    inputs = [tensor.shape for tensor in session.get_inputs()]
    shapes = [*inputs, *(tensor.shape for tensor in session.get_outputs() if tensor.name in outputs)]
    firsts = [shape[0] if shape else 0 for shape in shapes]
    names = {first for first in firsts if isinstance(first, str)}
    batchable = len(names) <= 1 and not any(isinstance(first, int) for first in firsts)
    fixed = {shape[0] for shape in inputs if shape and isinstance(shape[0], int)}
    return batchable, min(fixed) if fixed else None


def require_interface(session: Any, manifest: Manifest, outputs: Sequence[str], where: str) -> None:
    """Return if the graph has the inputs and outputs the manifest describes.

    Raises:
        CheckError: `model-interface`.
    """
    wanted = {tensor.name: f"tensor({tensor.dtype})" for tensor in manifest.graph.inputs}
    found = {tensor.name: tensor.type for tensor in session.get_inputs()}
    shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    known = {tensor.name: tensor.type for tensor in session.get_outputs()}
    same = wanted == found and set(outputs) <= set(known)
    same = same and all(f"tensor({output.dtype})" == known[output.name] for output in manifest.graph.outputs)
    same = same and all(tensor.shape is None or _agrees(tensor.shape, shapes[tensor.name]) for tensor in manifest.graph.inputs)
    if not same:
        raise CheckError(
            "model-interface",
            "the graph is not the one the manifest describes",
            fix="seal the bundle again",
            where=where,
            facts={
                "manifest": f"{shown(wanted, 300)} -> {shown(list(outputs), 100)}",
                "graph": f"{shown(found, 300)} -> {shown(list(known), 100)}",
            },
        )


def _agrees(shape: tuple[int, ...], graph: Sequence[int | str | None]) -> bool:
    """Return whether the manifest's dimensions after the first are dimensions the graph can take."""
    if len(graph) != len(shape) + 1:
        return False
    return all(have == want for want, have in zip(shape, graph[1:], strict=True) if isinstance(have, int))
