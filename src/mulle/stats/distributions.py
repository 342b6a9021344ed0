"""Tail probabilities of the distributions the tests need. The only module of `stats` that touches scipy, on first use."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false

import math

import numpy as np

from mulle.stats.types import FloatArray


def kolmogorov_sf(x: float) -> float:
    """Return P(K > x) for Kolmogorov's limit distribution, in [0, 1]."""
    from scipy import special

    return float(special.kolmogorov(x))


def chi2_sf(x: float, df: float) -> float:
    """Return P(X > x) for a chi-square variable with `df` > 0 degrees of freedom, in [0, 1]."""
    from scipy import special

    return float(special.chdtrc(df, x))


def chi2_isf(p: float, df: float) -> float:
    """Return the x with P(X > x) = `p` for a chi-square variable with `df` > 0 degrees of freedom."""
    from scipy import special

    return float(special.chdtri(df, p))


def normal_two_sided(z: float) -> float:
    """Return P(|Z| > |z|) for a standard normal variable, in [0, 1]."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def log_choose(n: FloatArray | float, k: FloatArray | float) -> FloatArray:
    """Return the natural logarithm of n choose k, element by element; 0 <= k <= n."""
    from scipy import special

    result = special.gammaln(np.add(n, 1.0)) - special.gammaln(np.add(k, 1.0)) - special.gammaln(np.subtract(n, k) + 1.0)
    return np.asarray(result, dtype=np.float64)
