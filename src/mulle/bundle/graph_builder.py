# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""A graph under construction: equal operators are emitted once, constants are named once, what nothing reads is dropped."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from mulle.core.canonical import digest_value

OPSET = 20
"""The first version of ai.onnx with strings in Equal, StringSplit and StringConcat."""
OPSET_ML = 3
IR_VERSION = 9
PRODUCER = "mulle"


@dataclass
class GraphBuilder:
    """Emits nodes; every value has a generated name that cannot be a column's.

    Args:
        reserved: Names that are taken: the inputs, which are named exactly as the columns.
    """

    reserved: Collection[str]
    prefix: str = field(init=False)
    nodes: list[NodeProto] = field(default_factory=list[NodeProto])
    constants: dict[str, TensorProto] = field(default_factory=dict[str, TensorProto])
    _known: dict[str, str] = field(default_factory=dict[str, str])
    _n_names: int = 0

    def __post_init__(self) -> None:
        # Columns may be called anything, `v1` included.
        self.prefix = free_name("v", self.reserved, starts=True)

    def emit(self, op: str, inputs: Sequence[str], *, domain: str = "", n_outputs: int = 1, **attributes: Any) -> str:
        """Return the name of the first output of an operator on `inputs`; an equal operator emitted before is used again."""
        body = attributes.pop("body", None)
        shown = {name: _plain(value) for name, value in attributes.items()}
        key = digest_value([op, list(inputs), domain, shown, "" if body is None else body.SerializeToString(deterministic=True).hex()])
        if key in self._known:
            return self._known[key]
        outputs = [self._next() for _ in range(n_outputs)]
        if body is not None:
            attributes["body"] = body
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"{op}:{outputs[0]}", domain=domain, **attributes))
        self._known[key] = outputs[0]
        return outputs[0]

    def doubles(self, values: Sequence[float], shape: Sequence[int] = (1, 1)) -> str:
        """Return the name of a constant of float64."""
        return self._constant(np.array(values, dtype=np.float64).reshape(tuple(shape)))

    def floats(self, values: Sequence[float], shape: Sequence[int] = (1, 1)) -> str:
        """Return the name of a constant of float32."""
        return self._constant(np.array(values, dtype=np.float32).reshape(tuple(shape)))

    def integers(self, values: Sequence[int], shape: Sequence[int] = (1, 1)) -> str:
        """Return the name of a constant of int64."""
        return self._constant(np.array(values, dtype=np.int64).reshape(tuple(shape)))

    def booleans(self, values: Sequence[bool], shape: Sequence[int] = (1, 1)) -> str:
        """Return the name of a constant of booleans."""
        return self._constant(np.array(values, dtype=np.bool_).reshape(tuple(shape)))

    def texts(self, values: Sequence[str], shape: Sequence[int] = (1, 1)) -> str:
        """Return the name of a constant of texts."""
        key = digest_value(["text", list(shape), list(values)])
        if key not in self._known:
            name = self._next()
            self.constants[name] = numpy_helper.from_array(np.array(values, dtype=np.object_).reshape(tuple(shape)), name)
            self._known[key] = name
        return self._known[key]

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        # The bytes, so that minus zero and zero stay two constants.
        key = digest_value([str(array.dtype), list(array.shape), array.tobytes().hex()])
        if key not in self._known:
            name = self._next()
            self.constants[name] = numpy_helper.from_array(array, name)
            self._known[key] = name
        return self._known[key]

    def _next(self) -> str:
        self._n_names += 1
        return f"{self.prefix}{self._n_names}"

    def finish(self, inputs: Sequence[ValueInfoProto], result: str, output: ValueInfoProto) -> bytes:
        """Return the model whose only output is `result`, renamed to `output`; unread operators and constants are gone."""
        live = {result}
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                kept.append(node)
                live.update(node.input)
                # What a loop's body reads from outside is an input of the loop in all but name.
                live.update(name for attribute in node.attribute for inner in attribute.g.node for name in inner.input)
        kept.reverse()
        kept.append(helper.make_node("Identity", [result], [output.name], name=f"Identity:{output.name}"))
        constants = [tensor for name, tensor in self.constants.items() if name in live]
        graph = helper.make_graph(kept, "mulle", list(inputs), [output], initializer=constants)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
        model = helper.make_model(graph, opset_imports=imports, producer_name=PRODUCER, ir_version=IR_VERSION)
        return model.SerializeToString(deterministic=True)


def free_name(wanted: str, taken: Collection[str], *, starts: bool = False) -> str:
    """Return `wanted`, or `wanted` with underscores behind it: the first that no taken name equals (or, with `starts`, starts with)."""
    while any(re.match(re.escape(wanted), name) if starts else name == wanted for name in taken):
        wanted += "_"
    return wanted


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value.hex()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
