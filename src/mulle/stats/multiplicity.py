"""Many tests at once: p-values adjusted so that one threshold holds for all of them together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.stats.types import FloatArray


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Return Holm's adjusted p-values, shape (k,), in [0, 1], in the order given.

    Rejecting where the adjusted value is <= alpha keeps the probability of *any* false rejection <= alpha, whatever
    the dependence between the tests.

    Args:
        p_values: Shape (k,), each in [0, 1]; k may be 0.

    Raises:
        SpecError: a value outside [0, 1], or NaN.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.
    """
    p = _require_p_values(p_values)
    order = np.argsort(p, kind="stable")
    factors = np.arange(p.size, 0, -1, dtype=np.float64)
    stepped = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0) if p.size else p
    return _unsorted(stepped, order)


def benjamini_hochberg(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Return Benjamini and Hochberg's adjusted p-values, shape (k,), in [0, 1], in the order given.

    Rejecting where the adjusted value is <= alpha keeps the expected *share* of false ones among the rejected <= alpha
    when the tests are independent or positively dependent. When nothing is wrong anywhere that is the probability of
    any alarm, too; when something is, more false names stand beside it than with `holm`.

    Args:
        p_values: Shape (k,), each in [0, 1]; k may be 0.

    Raises:
        SpecError: a value outside [0, 1], or NaN.

    Source: Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, J. R. Statist. Soc. B 57 (1995), 289-300.
    """
    p = _require_p_values(p_values)
    order = np.argsort(p, kind="stable")
    factors = p.size / np.arange(1, p.size + 1, dtype=np.float64)
    stepped = np.minimum(np.minimum.accumulate((p[order] * factors)[::-1])[::-1], 1.0) if p.size else p
    return _unsorted(stepped, order)


def _require_p_values(p_values: Sequence[float] | FloatArray) -> FloatArray:
    p = np.asarray(p_values, dtype=np.float64)
    bad = ~((p >= 0.0) & (p <= 1.0))
    if bad.any():
        raise SpecError("p-value-range", f"{float(p[bad][0])!r} is not a p-value", fix="pass probabilities between 0 and 1")
    return p


def _unsorted(stepped: FloatArray, order: NDArray[np.intp]) -> FloatArray:
    result = np.empty_like(stepped)
    result[order] = stepped
    return result
