"""Feature expressions: written once, compiled to the table engine and into the served graph, equal in both.

An expression says how one value of a row is computed from columns of the *same* row. It is an immutable value;
nothing is computed until a compiler (`data/expr_polars.py`, `bundle/expr_onnx.py`) is given it. What follows is the
meaning both compilers obey; `tests/property/test_expressions.py` holds them to it.

Types
    number (float64), boolean, datetime (seconds since 1970-01-01 UTC), text, and category, which ends an expression.
    A boolean where a number is needed counts as 0 or 1. An ISO text beside a date is that date.

Missing
    Null and NaN are one thing: missing. Every operator given a missing number yields missing, and so does every
    operation that has no value (0 / 0, the logarithm or root of a negative number, infinity minus infinity).
    A comparison with missing is missing. `&`, `|` and `~` follow Kleene: `False & missing` is False, `True | missing`
    is True, otherwise missing stays missing. `when` takes `otherwise` where its condition is missing. `is_null` and
    `fill_null` are the only ways out of missing.

Infinity
    Inside an expression infinities are ordinary float64 values: 1 / 0 is +inf, and +inf > 5 is True. At the end a
    number feature is rounded to float32, and an infinity, also one that arose from that rounding, becomes missing.

Zero
    Zero has no sign: dividing by -0.0 gives what dividing by 0.0 gives.

Exactness
    Both compilers agree bit for bit on everything except `log`, `log1p`, `exp` and powers other than 2, 3, 0.5, 0, 1 and
    -1 (x ** 0.5 is `sqrt(x)`), where two mathematics libraries may differ in the last places: at most 4 units in the
    last place of float64.

What there is
    + - * / // % ** and unary -, abs, min, max, clip, floor, ceil, round, sqrt, log, log1p, exp, bucket; == != < <= > >=,
    between, isin; & | ~; is_null, fill_null, `when().then().otherwise()`, where; lower, squeeze, map_values; year, month, day,
    weekday, hour, minute, days_since; category. Dates subtract to seconds.

What there is not: anything that looks at other rows (means, windows, ranks), and text operations ONNX cannot carry out
in the same way everywhere (Unicode case, regular expressions that capture, lengths). Those belong into the source.
"""

from collections.abc import Mapping
from typing import Literal

from mulle.core.errors import SpecError
from mulle.core.expr_nodes import bounded
from mulle.core.expr_rules import resolve
from mulle.core.expr_typed import Typed
from mulle.core.expr_value import Expr, Then, When, col, lit, when
from mulle.core.schema import Schema

__all__ = ["Expr", "FeatureKind", "Then", "When", "check_features", "col", "lit", "resolve_features", "when"]

FeatureKind = Literal["number", "category"]


def resolve_features(features: Mapping[str, Expr], schema: Schema, *, target: str | None = None) -> dict[str, Typed]:
    """Return each feature in the typed language, for the compilers.

    Raises:
        SpecError: whatever `check_features` raises.
    """
    if not features:
        raise SpecError("features-empty", "there are no features", fix='return at least one, such as {"tenure": mulle.col("tenure")}')
    for name, expression in features.items():
        _require_feature(name, expression, target)
    typed = resolve({name: expression.node for name, expression in features.items()}, schema)
    for name, value in typed.items():
        if value.type in ("text", "datetime"):
            fix = "add .category()" if value.type == "text" else "take .year(), .month(), .weekday() or .days_since(…) of it"
            raise SpecError(
                "features-type", f"the feature {bounded(name)} is {value.type}: no model takes that", fix=fix, where=features[name].location
            )
    return typed


def check_features(features: Mapping[str, Expr], schema: Schema, *, target: str | None = None) -> dict[str, FeatureKind]:
    """Return what each feature becomes: `number` (booleans too) or `category`.

    Args:
        features: Name to expression, in the order of the model's inputs.
        schema: The columns there are.
        target: The column to predict; no feature may read it.

    Raises:
        SpecError: no features; a name that is no text; a value that is no expression; a feature that reads the target or no
            column at all; text without `.category()`, a date without a part taken; an unknown column; a type that does not fit.
    """
    typed = resolve_features(features, schema, target=target)
    return {name: "category" if value.type == "category" else "number" for name, value in typed.items()}


def _require_feature(name: object, expression: object, target: str | None) -> None:
    if not isinstance(name, str) or not name:
        raise SpecError("features-name", f"a feature is called {bounded(name)}", fix="use a text as its name")
    if isinstance(expression, Then):
        raise SpecError(
            "features-value", f"the feature {bounded(name)} ends after .then(…)", fix="add .otherwise(…); None stands for missing"
        )
    if not isinstance(expression, Expr):
        raise SpecError(
            "features-value",
            f"the feature {bounded(name)} is {type(expression).__module__}.{type(expression).__name__}, not a mulle expression",
            fix="write it with mulle.col; what that cannot say belongs into the source function",
            where=_place_of(expression),
        )
    columns = expression.columns()
    if not columns:
        raise SpecError(
            "features-constant",
            f"the feature {bounded(name)} reads no column",
            fix="leave it out: it is the same in every row",
            where=expression.location,
        )
    if target is not None and target in columns:
        raise SpecError(
            "features-target",
            f"the feature {bounded(name)} reads the target {bounded(target)}: it would know the answer",
            fix="leave the target out of the features",
            where=expression.location,
        )


def _place_of(value: object) -> str:
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""
