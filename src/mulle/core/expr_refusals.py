"""What expressions cannot do, answered with what to write instead."""

from collections.abc import Sequence

from mulle.core.errors import SpecError
from mulle.core.expr_nodes import bounded, user_location
from mulle.core.expr_rules import nearest

_ELSEWHERE = {
    "strip": ".squeeze(…)",
    "strip_chars": ".squeeze(…)",
    "upper": ".lower(…)",
    "to_lowercase": ".lower(…)",
    "is_in": ".isin(…)",
    "is_between": ".between(…)",
    "is_nan": ".is_null(…)",
    "isna": ".is_null(…)",
    "isnull": ".is_null(…)",
    "is_missing": ".is_null(…)",
    "fillna": ".fill_null(…)",
    "fill_nan": ".fill_null(…)",
    "coalesce": ".fill_null(…)",
    "replace": ".map_values(…)",
    "map": ".map_values(…)",
    "cut": ".bucket(…)",
    "dayofweek": ".weekday(…)",
    "power": "**",
    "pow": "**",
}
_OTHER_ROWS = frozenset({
    "mean", "sum", "std", "var", "median", "quantile", "rank", "shift", "diff", "cumsum", "cum_sum", "rolling", "rolling_mean",
    "over", "count", "n_unique", "mode", "first", "last", "sort",
})  # fmt: skip
_IN_SOURCE = frozenset({
    "len", "length", "len_chars", "str", "dt", "contains", "startswith", "endswith", "starts_with", "ends_with", "extract",
    "split", "slice", "apply", "map_elements", "cast",
})  # fmt: skip


class UnknownMethodError(SpecError, AttributeError):
    """A method expressions do not have; also an AttributeError, so that `hasattr` still answers."""


def unknown_method(name: str, methods: Sequence[str]) -> UnknownMethodError:
    """Return the error for `expression.name`, with the nearest thing that exists."""
    if name in _OTHER_ROWS:
        fix = "a feature sees its own row only: aggregate in the source, before the dataset is cut"
    elif name in _IN_SOURCE:
        fix = "do this in the source: it cannot be carried out in the served graph exactly as in a table"
    elif (known := _ELSEWHERE.get(name)) is not None:
        fix = f"use {known}"
    else:
        fix = nearest(name, methods, empty="see the methods of mulle.Expr")
    return UnknownMethodError("expression-method", f"an expression has no method {bounded(name)}", fix=fix, where=user_location())


def no_single_value(what: str, fix: str) -> SpecError:
    """Return the error for a use that would need the value of one row."""
    return SpecError("expression-value", f"an expression cannot be {what}", fix=fix, where=user_location())
