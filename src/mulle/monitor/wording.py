"""How a monitor says numbers: short, the same everywhere, never more digits than they carry."""

import math
from datetime import UTC, datetime

SMALLEST_P = 1e-9
_THOUSAND = 1_000.0
_SMALL = 0.001


def say_number(value: float) -> str:
    """Return a number in three or four significant digits: `70.4`, `1,840`, `0.00012`, `∞`."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:  # noqa: PLR2004 - whole numbers below a million are said whole
        return f"{int(value):,}"
    if abs(value) >= 1e6:  # noqa: PLR2004
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= _THOUSAND else f"{value:.3g}"


def say_exact(value: float) -> str:
    """Return a number in six significant digits, so that a value just beyond a bound reads beyond it: `118.75`, `∞`."""
    return say_number(value) if math.isnan(value) or math.isinf(value) else f"{value:,.6g}"


def say_share(share: float) -> str:
    """Return a share as per cent: `12 %`, `3.4 %`, `< 0.1 %`, `0 %`."""
    if share == 0:
        return "0 %"
    if share < _SMALL:
        return "< 0.1 %"
    per_cent = share * 100
    return f"{per_cent:.0f} %" if per_cent >= 10 or per_cent == int(per_cent) else f"{per_cent:.1f} %"  # noqa: PLR2004


def say_p(p_value: float) -> str:
    """Return a p-value: `p < 1e-9`, `p = 0.0013`, `p = 0.31`, `p = 1`."""
    if p_value < SMALLEST_P:
        return "p < 1e-9"
    return f"p = {p_value:.1e}" if p_value < _SMALL else f"p = {p_value:.2g}"


def say_value(value: str, *, limit: int = 40) -> str:
    """Return a category in quotes, cut to `limit` characters, control characters escaped."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def say_time(seconds: float) -> str:
    """Return seconds since 1970-01-01 UTC as `2026-11-20 05:30:00Z`; as a plain number when no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return say_number(seconds)
