# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One matrix of numbers into the tensors of a graph, planned once: no loop over columns, no dictionary of arrays.

Small graphs are asked through buffers that ONNX Runtime holds bound for each number of rows: over a call with fresh
arrays that saves about 1.2 µs of 5.6 at one row, and about 1.4 of 42 at 32 rows (200 trees, 30 numbers).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import GraphInput, Manifest
from mulle.formats.rows import feeds

MAX_BOUND_ROWS = 64
"""Beyond this many rows the work of the graph hides what binding saves."""
MAX_BOUND_BYTES = 256 << 10
_DTYPES: dict[str, np.dtype[Any]] = {
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of the matrix: one tensor of several columns, or one tensor of one column for each name."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    columns: slice | NDArray[np.intp]
    width: int
    stacked: bool

    @property
    def exact(self) -> bool:
        """Whether only some numbers fit: integers and truth values."""
        return self.dtype.kind in "ib"

    def take(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        part = numbers[:, self.columns]
        return part if self.stacked else part.T

    def tensors(self, block: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return input name to (n, columns) views of a block `take` filled."""
        if self.stacked:
            return {self.names[0]: block}
        return {name: row[:, None] for name, row in zip(self.names, block, strict=True)}


class BlockPlan:
    """How the numeric columns, side by side in the manifest's order, enter the graph.

    Attributes:
        number_columns: The columns of the matrix: all but texts, in the manifest's order.
        text_columns: The others.

    Raises:
        CheckError: `model-interface`: an input mixes texts and numbers.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.number_columns = tuple(c.name for c in manifest.columns if c.type is not ColumnType.TEXT)
        self.text_columns = tuple(c.name for c in manifest.columns if c.type is ColumnType.TEXT)
        place = {name: i for i, name in enumerate(self.number_columns)}
        texts = set(self.text_columns)
        inputs = manifest.graph.inputs if manifest.kind == "columns" else ()
        self.texts = [(tensor.name, tensor.columns) for tensor in inputs if tensor.dtype == "string"]
        numeric = [tensor for tensor in inputs if tensor.dtype != "string"]
        fits = all(texts.issuperset(columns) for _, columns in self.texts) and all(
            tensor.dtype in _DTYPES and place.keys() >= set(tensor.columns) for tensor in numeric
        )
        if not fits:
            raise CheckError("model-interface", "an input of the graph mixes texts and numbers", fix="seal the bundle again")
        self.cuts = _plan(numeric, place)
        self.guarded = any(cut.dtype != np.float64 for cut in self.cuts)

    def feeds(self, numbers: NDArray[np.float64], texts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the graph's tensors; blocks that fit as they are are not copied.

        Raises:
            SpecError: `rows-out-of-range`, with its row and column.
        """
        found: dict[str, NDArray[Any]] = {}
        for cut in self.cuts:
            part = cut.take(numbers)
            block = np.empty(part.shape, cut.dtype) if cut.dtype != np.float64 else np.ascontiguousarray(part)
            if block.dtype != np.float64:
                self.fill([cut], [block], numbers, texts)
            found.update(cut.tensors(block))
        for name, columns in self.texts:
            found[name] = texts[columns[0]][:, None] if len(columns) == 1 else np.column_stack([texts[c] for c in columns])
        return found

    def fill(self, cuts: list[_Cut], blocks: list[NDArray[Any]], numbers: NDArray[np.float64], texts: Mapping[str, NDArray[Any]]) -> None:
        """Write each cut of `numbers` into its block.

        Raises:
            SpecError: `rows-out-of-range`, with its row and column.
        """
        if not self.guarded:
            for cut, block in zip(cuts, blocks, strict=True):
                block[...] = cut.take(numbers)
            return
        try:
            # The processor's own flags say whether anything overflowed: cheaper than looking at every number.
            with np.errstate(over="raise", invalid="raise"):
                for cut, block in zip(cuts, blocks, strict=True):
                    part = cut.take(numbers)
                    block[...] = part
                    if cut.exact and not bool((block == part).all()):
                        self._explain(numbers, texts)
        except FloatingPointError:
            self._explain(numbers, texts)

    def _explain(self, numbers: NDArray[np.float64], texts: Mapping[str, NDArray[Any]]) -> None:
        arrays: dict[str, NDArray[Any]] = {name: numbers[:, i] for i, name in enumerate(self.number_columns)}
        feeds({**arrays, **texts}, self.manifest.graph)


class BoundBlocks:
    """Buffers bound to a session, a set for each number of rows; only for graphs of numbers on the processor.

    Several threads may ask at once: a set that is in use is not handed out twice.
    """

    def __init__(self, session: Any, plan: BlockPlan, output: str, n_outputs: int) -> None:
        self._session = session
        self._plan = plan
        self._output = output
        self._n_outputs = n_outputs
        self._row_bytes = 8 * (len(plan.number_columns) + n_outputs)
        self._free: list[list[_Bound]] = [[] for _ in range(MAX_BOUND_ROWS + 1)]

    def run(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the scores, a copy of shape (n, n_outputs); `fits(n)` said yes before.

        Raises:
            SpecError: `rows-out-of-range`.
            Exception: whatever ONNX Runtime says.
        """
        free = self._free[numbers.shape[0]]
        try:
            bound = free.pop()
        except IndexError:
            bound = _Bound(self._session, self._plan, self._output, (numbers.shape[0], self._n_outputs))
        try:
            self._plan.fill(self._plan.cuts, bound.blocks, numbers, {})
            self._session.run_with_iobinding(bound.binding)
            return bound.scores.copy()
        finally:
            free.append(bound)

    def fits(self, n_rows: int) -> bool:
        """Return whether this many rows are worth bound buffers."""
        return 0 < n_rows <= MAX_BOUND_ROWS and n_rows * self._row_bytes <= MAX_BOUND_BYTES


class _Bound:
    """Input blocks and an output of one number of rows, known to ONNX Runtime by their addresses."""

    __slots__ = ("binding", "blocks", "scores")

    def __init__(self, session: Any, plan: BlockPlan, output: str, shape: tuple[int, int]) -> None:
        self.binding = session.io_binding()
        self.blocks: list[NDArray[Any]] = []
        for cut in plan.cuts:
            block = np.zeros((shape[0], cut.width) if cut.stacked else (cut.width, shape[0]), cut.dtype)
            self.blocks.append(block)
            for name, tensor in cut.tensors(block).items():
                self.binding.bind_input(name, "cpu", 0, cut.dtype, tensor.shape, tensor.ctypes.data)
        self.scores = np.zeros(shape, np.float32)
        self.binding.bind_output(output, "cpu", 0, np.float32, shape, self.scores.ctypes.data)


def _plan(numeric: list[GraphInput], place: Mapping[str, int]) -> list[_Cut]:
    cuts: list[_Cut] = []
    singles: dict[str, list[GraphInput]] = {}
    for tensor in numeric:
        if len(tensor.columns) == 1:
            singles.setdefault(tensor.dtype, []).append(tensor)
        else:
            places = [place[name] for name in tensor.columns]
            cuts.append(_Cut((tensor.name,), _DTYPES[tensor.dtype], _selector(places), len(places), stacked=True))
    for dtype, tensors in singles.items():
        places = [place[tensor.columns[0]] for tensor in tensors]
        names = tuple(tensor.name for tensor in tensors)
        cuts.append(_Cut(names, _DTYPES[dtype], _selector(places), len(places), stacked=False))
    return cuts


def _selector(places: list[int]) -> slice | NDArray[np.intp]:
    first = places[0]
    # A slice is a view; a list of places is a copy.
    return slice(first, first + len(places)) if places == list(range(first, first + len(places))) else np.array(places, dtype=np.intp)
