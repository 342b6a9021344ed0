# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Golden requests on this host: a bundle serves only what it still answers as it did when it was sealed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import CheckError, SpecError
from mulle.formats.golden import Golden, read_golden
from mulle.formats.golden_tensors import GoldenTensors, read_golden_tensors
from mulle.formats.image_read import preprocess
from mulle.formats.rows import encode_rows, shown

if TYPE_CHECKING:
    from mulle.serve.runtimes.onnx import OnnxRuntime


def require_golden(folder: Path, runtime: "OnnxRuntime") -> int:
    """Return the number of golden requests after all of them reproduced on this host.

    For tensors and pictures each is asked once more beside a row of zeros: a graph whose answers depend on their
    neighbours is not `batchable`, whatever its shapes say.

    Raises:
        CheckError: `golden-differs`, with the worst one; `golden-empty`: a bundle without any proves nothing.
        SpecError: the pictures library is not installed.
    """
    path = folder / runtime.manifest.golden_file
    if runtime.manifest.kind == "columns":
        return _require_rows(read_golden(path), runtime, str(path))
    return _require_cases(read_golden_tensors(path), runtime, str(path))


def _require_rows(golden: Golden, runtime: "OnnxRuntime", where: str) -> int:
    if not golden.rows or len(golden.rows) != len(golden.outputs):
        raise _empty(where)
    try:
        scores = runtime.run(encode_rows(golden.rows, runtime.manifest.columns, absent_is_missing=True))
        expected = np.array(golden.outputs, dtype=np.float64).reshape(len(golden.rows), runtime.n_outputs)
    except (SpecError, ValueError) as error:
        raise _unfit(error, where) from error
    gaps = np.abs(scores - expected).max(axis=1)
    worst = int(np.argmax(gaps))
    if gaps[worst] > golden.tolerance:
        raise _differs(
            f"{int((gaps > golden.tolerance).sum())} of {len(golden.rows)} golden requests do not reproduce on this host",
            where,
            {
                "worst row": str(worst),
                "sealed": shown([round(v, 6) for v in expected[worst].tolist()], 120),
                "found": shown([round(v, 6) for v in scores[worst].tolist()], 120),
                "allowed": f"{golden.tolerance:g}",
            },
        )
    return len(golden.rows)


def _require_cases(golden: GoldenTensors, runtime: "OnnxRuntime", where: str) -> int:
    if not golden.cases:
        raise _empty(where)
    alone = not runtime.batchable
    for i, case in enumerate(golden.cases):
        try:
            tensors = {name: tensor.to_array() for name, tensor in case.inputs.items()}
            expected = {name: tensor.to_array() for name, tensor in case.outputs.items()}
            if runtime.manifest.image is not None:
                tensors = {runtime.tensor_inputs[0].name: preprocess(runtime.manifest.image, case.image)[None]}
            found = runtime.run_tensors(tensors)
        except (SpecError, ValueError) as error:
            if isinstance(error, SpecError) and error.code == "extra-missing":
                raise
            raise _unfit(error, where) from error
        problem = _difference(expected, found, golden.tolerance)
        if problem is not None:
            raise _differs(f"golden request {i} of {len(golden.cases)} does not reproduce on this host", where, problem)
        alone = alone or _depends_on_neighbours(runtime, tensors, found, golden.tolerance)
    runtime.batchable = not alone
    return len(golden.cases)


def _difference(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], tolerance: float, n_rows: int | None = None
) -> dict[str, str] | None:
    """Return the facts of the first output that differs, or None; with `n_rows` only the first rows of `found` are compared."""
    if expected.keys() != found.keys():
        return {"sealed": shown(sorted(expected), 120), "found": shown(sorted(found), 120)}
    for name, want in expected.items():
        have = found[name][:n_rows]
        if want.shape != have.shape:
            return {"output": name, "sealed": f"shape {list(want.shape)}", "found": f"shape {list(have.shape)}"}
        if want.dtype.kind in "OU" or have.dtype.kind in "OU":
            if want.tolist() != have.tolist():
                return {"output": name, "sealed": shown(want.tolist(), 120), "found": shown(have.tolist(), 120)}
            continue
        a, b = want.astype(np.float64), have.astype(np.float64)
        # NaN and infinities reproduce as such.
        with np.errstate(invalid="ignore"):
            gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        finite = np.abs(a[np.isfinite(a)])
        allowed = tolerance * max(1.0, float(finite.max()) if finite.size else 1.0)
        worst = float(gap.max()) if gap.size else 0.0
        if not worst <= allowed:
            return {"output": name, "largest difference": f"{worst:.6g}", "allowed": f"{allowed:.6g}"}
    return None


def _depends_on_neighbours(
    runtime: "OnnxRuntime", tensors: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], tolerance: float
) -> bool:
    try:
        joined = runtime.run_tensors({name: np.concatenate([value, _blank(value)]) for name, value in tensors.items()})
    except CheckError:
        return True
    n_rows = next(iter(tensors.values())).shape[0]
    return _difference(found, joined, tolerance, n_rows) is not None


def _blank(value: NDArray[Any]) -> NDArray[Any]:
    return np.full(value.shape, "", dtype=object) if value.dtype.kind == "O" else np.zeros_like(value)


def _empty(where: str) -> CheckError:
    return CheckError("golden-empty", "the bundle carries no golden requests", fix="seal the bundle again", where=where)


def _unfit(error: Exception, where: str) -> CheckError:
    text = " ".join(str(error).split())[:300]
    return CheckError(
        "golden-differs", f"the golden requests do not fit the bundle's own inputs: {text}", fix="seal the bundle again", where=where
    )


def _differs(what: str, where: str, facts: Mapping[str, str]) -> CheckError:
    fix = "compare the versions (`mulle doctor`), or seal the bundle again here"
    return CheckError("golden-differs", what, fix=fix, where=where, facts=facts)
