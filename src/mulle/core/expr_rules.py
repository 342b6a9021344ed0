"""From what the user wrote to the typed language: types inferred, sugar lowered, every mistake at its line.

`resolve` is the only way in. It needs the schema, because only the schema knows what a column holds.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import cast

from mulle.core import expr_dates as dates
from mulle.core.errors import SpecError
from mulle.core.expr_nodes import Node, Param, bounded, to_seconds, walk
from mulle.core.expr_typed import (
    Typed,
    TypedOp,
    ValueType,
    add,
    constant,
    div,
    equal,
    floor_div,
    is_null,
    less,
    less_equal,
    literal_value,
    modulo,
    mul,
    negate,
    number,
    sub,
    to_number,
    typed,
    when,
)
from mulle.core.schema import Schema

Args = tuple[Typed, ...]
_ALL_WHOLE = 2.0**52
_LEAST_NORMAL = 2.0**-1022
_SCALE_BITS = 54


def resolve(roots: Mapping[str, Node], schema: Schema) -> dict[str, Typed]:
    """Return each named expression in the typed language.

    Raises:
        SpecError: an unknown column (with the nearest names), or an operator on a type it does not take.
    """
    done: dict[str, Typed] = {}
    for node in walk(roots.values()):
        args = tuple(done[arg.key] for arg in node.args)
        done[node.key] = _column(node, schema) if node.op == "column" else RULES[node.op](node, args)
    return {name: done[node.key] for name, node in roots.items()}


def nearest(name: str, known: Iterable[str], *, empty: str) -> str:
    """Return a `fix` that names what the user may have meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    folded = {other.casefold(): other for other in names}
    if not close and name.casefold() in folded:
        close = [folded[name.casefold()]]
    if close:
        return f"did you mean {' or '.join(repr(other) for other in close)}?"
    shown = ", ".join(repr(other) for other in names[:10]) + (", …" if len(names) > 10 else "")  # noqa: PLR2004 - ten fit one line
    return f"use one of {shown}" if names else empty


def _column(node: Node, schema: Schema) -> Typed:
    name = cast("str", node.params[0])
    column = schema.get(name)
    if column is None:
        raise SpecError(
            "expression-column",
            f"there is no column {bounded(name)}",
            fix=nearest(name, schema.names, empty="the table has no columns: check the source"),
            where=node.location,
        )
    return typed("column", cast("ValueType", column.type.value), params=(name,))


def _literal(node: Node, _: Args) -> Typed:
    kind, value = node.params
    # A bare missing value takes the type of what it meets; alone it is a missing number.
    return constant("number" if kind == "missing" else cast("ValueType", kind), value)


def _refuse(node: Node, args: Args, needs: str, fix: str) -> SpecError:
    kinds = " and ".join(arg.type for arg in args)
    return SpecError("expression-type", f"`{node.op}` needs {needs}, and was given {kinds}", fix=fix, where=node.location)


def _advice(value: Typed) -> str:
    match value.type:
        case "text":
            return "compare it (==, isin), map it to a number (.map_values), or make it a .category()"
        case "datetime":
            return "take .year(), .month(), .day(), .weekday(), .hour(), .minute() or .days_since(…) of the date first"
        case "category":
            return "put .category() last: it ends an expression"
        case "boolean":
            return "a boolean counts as 0 and 1 where a number is needed; use & | ~ between booleans"
        case _:
            return "compare the number first, for example > 0"


def _missing(value: Typed) -> bool:
    return value.op == "literal" and value.params[0] is None


def _as_number(node: Node, args: Args, value: Typed) -> Typed:
    if value.type in ("number", "boolean"):
        return to_number(value)
    raise _refuse(node, args, "numbers" if len(args) > 1 else "a number", _advice(value))


def _as_boolean(node: Node, args: Args, value: Typed) -> Typed:
    if _missing(value):
        return constant("boolean", None)
    if value.type == "boolean":
        return value
    raise _refuse(node, args, "booleans" if len(args) > 1 else "a boolean", _advice(value))


def _as_text(node: Node, args: Args) -> Typed:
    (value,) = args
    if _missing(value):
        return constant("text", None)
    if value.type == "text":
        return value
    raise _refuse(node, args, "text", f"this column holds {value.type}; leave `{node.op}` out")


def _as_datetime(node: Node, args: Args, value: Typed) -> Typed:
    if value.type == "datetime":
        return value
    if _missing(value):
        return constant("datetime", None)
    text = literal_value(value)
    if isinstance(text, str):
        return constant("datetime", _iso_seconds(text, node))
    raise _refuse(node, args, "a date", "read the column as a date in the source, for example with polars' str.to_datetime")


def _iso_seconds(text: str, node: Node) -> float:
    try:
        return to_seconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError) as error:
        raise SpecError(
            "expression-date",
            f"{bounded(text)} is not a date",
            fix="write it as '2026-01-31' or '2026-01-31T08:30:00'",
            where=node.location,
        ) from error


def _common(node: Node, args: Args, a: Typed, b: Typed) -> tuple[Typed, Typed]:
    """Return two values brought to one type: booleans beside numbers count as 0 and 1, ISO texts beside dates are dates."""
    if _missing(a) or _missing(b):
        kind = a.type if _missing(b) else b.type
        a, b = (constant(kind, None) if _missing(value) else value for value in (a, b))
    kinds = {a.type, b.type}
    if "category" in kinds:
        raise _refuse(node, args, "values that can still be computed with", _advice(a if a.type == "category" else b))
    if kinds == {"number", "boolean"}:
        return to_number(a), to_number(b)
    if "datetime" in kinds:
        return _as_datetime(node, args, a), _as_datetime(node, args, b)
    if len(kinds) > 1:
        raise _refuse(node, args, "two values of one type", "bring both sides to one type; texts that stand for numbers: .map_values({…})")
    return a, b


def _arithmetic(function: Callable[[Typed, Typed], Typed]) -> Callable[[Node, Args], Typed]:
    def rule(node: Node, args: Args) -> Typed:
        a, b = args
        return function(_as_number(node, args, a), _as_number(node, args, b))

    return rule


def _sub(node: Node, args: Args) -> Typed:
    if args[0].type == "datetime" or args[1].type == "datetime":
        return sub(_as_datetime(node, args, args[0]), _as_datetime(node, args, args[1]))
    return _arithmetic(sub)(node, args)


def _unsigned_zero(x: Typed) -> Typed:
    """Return x with -0.0 as 0.0: ONNX Runtime's Where forgets the sign of a zero, and only a division could tell."""
    value = literal_value(x)
    if isinstance(value, int | float):
        return number(0) if value == 0 else x
    return when(equal(x, number(0)), number(0), x)


def _divide(a: Typed, b: Typed) -> Typed:
    return div(a, _unsigned_zero(b))


def _power(a: Typed, b: Typed) -> Typed:
    match literal_value(b):
        case 1:
            return a
        case -1:
            return _divide(number(1), a)
        case 0.5:
            return typed("sqrt", "number", a)
        case 2:
            return mul(a, a)
        case 3:
            return mul(mul(a, a), a)
        case _:
            return typed("pow", "number", _unsigned_zero(a), b)


def _unary(op: TypedOp) -> Callable[[Node, Args], Typed]:
    return lambda node, args: typed(op, "number", _as_number(node, args, args[0]))


def _logarithm(x: Typed) -> Typed:
    # Vectorised logarithms take subnormal numbers for zero, one by one they do not: scaled up, there are none.
    small = less(x, number(_LEAST_NORMAL))
    scaled = typed("log", "number", when(small, mul(x, number(2.0**_SCALE_BITS)), x))
    return sub(scaled, when(small, number(_SCALE_BITS * math.log(2)), number(0)))


def _log1p(node: Node, args: Args) -> Typed:
    # log(1 + x) with the rounding error of 1 + x divided out again; where 1 + x == x the 1 is too small to matter.
    x = _as_number(node, args, args[0])
    u = add(number(1), x)
    log = typed("log", "number", u)  # u is 0 or at least 2^-53: never subnormal
    corrected = div(mul(log, x), sub(u, number(1)))
    return when(equal(u, number(1)), x, when(equal(u, x), log, corrected))


def _round(node: Node, args: Args) -> Typed:
    x = _as_number(node, args, args[0])
    decimals = cast("int", node.params[0])
    scale = number(10.0 ** abs(decimals))
    if decimals <= 0:
        return mul(typed("round", "number", div(x, scale)), scale)
    # From 2^52 on every number is whole, and scaling up could overflow.
    rounded = div(typed("round", "number", mul(x, scale)), scale)
    return when(less(typed("abs", "number", x), number(_ALL_WHOLE)), rounded, x)


def _clip(node: Node, args: Args) -> Typed:
    x = _as_number(node, args, args[0])
    low, high = (cast("float | None", param) for param in node.params)
    result = x if high is None else when(less(number(high), x), number(high), x)
    return result if low is None else when(less(x, number(low)), number(low), result)


def _extreme(node: Node, args: Args) -> Typed:
    a, b = _common(node, args, *args)
    if a.type in ("text", "boolean"):
        raise _refuse(node, args, "two numbers or two dates", _advice(a))
    first = less(a, b) if node.op == "min" else less(b, a)
    # A missing b falls through to `otherwise`, which is b: missing. A missing a needs its own branch.
    return when(is_null(a), constant(a.type, None), when(first, a, b))


def _comparison(function: Callable[[Typed, Typed], Typed]) -> Callable[[Node, Args], Typed]:
    def rule(node: Node, args: Args) -> Typed:
        a, b = _common(node, args, *args)
        if a.type == "text":
            raise _refuse(node, args, "numbers or dates", "texts have no order here; use == != or isin([…])")
        return function(to_number(a), to_number(b))

    return rule


def _equality(node: Node, args: Args) -> Typed:
    a, b = _common(node, args, *args)
    same = typed("text_eq", "boolean", a, b) if a.type == "text" else equal(to_number(a), to_number(b))
    return same if node.op == "==" else negate(same)


def _logic(op: TypedOp) -> Callable[[Node, Args], Typed]:
    return lambda node, args: typed(op, "boolean", *(_as_boolean(node, args, arg) for arg in args))


def _is_null(node: Node, args: Args) -> Typed:
    if args[0].type == "category":
        raise _refuse(node, args, "a value that can still be computed with", _advice(args[0]))
    return is_null(args[0])


def _fill_null(node: Node, args: Args) -> Typed:
    a, b = _common(node, args, *args)
    return typed("fill_null", a.type, a, b)


def _when(node: Node, args: Args) -> Typed:
    condition = _as_boolean(node, args[:1], args[0])
    return when(condition, *_common(node, args[1:], args[1], args[2]))


def _isin(node: Node, args: Args) -> Typed:
    (value,) = args
    items = [cast("tuple[str, Param]", item) for item in node.params]
    kinds = {kind for kind, _ in items}
    if value.type == "text" and kinds <= {"text"}:
        return typed("isin_text", "boolean", value, params=tuple(sorted({cast("str", item) for _, item in items})))
    if value.type == "datetime" and kinds <= {"text", "datetime"}:
        moments = {_iso_seconds(item, node) if isinstance(item, str) else float(cast("float", item)) for _, item in items}
        return typed("isin_number", "boolean", value, params=tuple(sorted(moments)))
    if value.type in ("number", "boolean") and kinds <= {"number", "boolean"}:
        # Adding 0.0 turns minus zero into zero: the two are equal, and one spelling gives one digest.
        numbers = {float(cast("float", item)) + 0.0 for _, item in items}
        return typed("isin_number", "boolean", to_number(value), params=tuple(sorted(numbers)))
    raise _refuse(
        node, args, f"a list of {value.type}", f"the list holds {' and '.join(sorted(kinds))}: write the values as the column has them"
    )


def _bucket(node: Node, args: Args) -> Typed:
    return typed("bucket", "number", _as_number(node, args, args[0]), params=node.params)


def _text(op: TypedOp) -> Callable[[Node, Args], Typed]:
    return lambda node, args: typed(op, "text", _as_text(node, args))


def _map_values(node: Node, args: Args) -> Typed:
    op, keys, values, default = node.params
    return typed(cast("TypedOp", op), "text" if op == "map_text" else "number", _as_text(node, args), params=(keys, values, default))


def _part(function: Callable[[Typed], Typed]) -> Callable[[Node, Args], Typed]:
    return lambda node, args: function(_as_datetime(node, args, args[0]))


def _days_since(node: Node, args: Args) -> Typed:
    a, b = args
    return dates.days_between(_as_datetime(node, args, a), _as_datetime(node, args, b))


def _category(node: Node, args: Args) -> Typed:
    (value,) = args
    if value.type == "datetime":
        raise _refuse(node, args, "text, a boolean or a number", "take .month() or .weekday() of the date first")
    return value if value.type == "category" else typed("category", "category", value)


RULES: dict[str, Callable[[Node, Args], Typed]] = {
    "literal": _literal,
    "+": _arithmetic(add),
    "-": _sub,
    "*": _arithmetic(mul),
    "/": _arithmetic(_divide),
    "//": _arithmetic(lambda a, b: floor_div(a, _unsigned_zero(b))),
    "%": _arithmetic(lambda a, b: modulo(a, _unsigned_zero(b))),
    "**": _arithmetic(_power),
    "<": _comparison(less),
    "<=": _comparison(less_equal),
    ">": _comparison(lambda a, b: less(b, a)),
    ">=": _comparison(lambda a, b: less_equal(b, a)),
    "==": _equality,
    "!=": _equality,
    "&": _logic("and"),
    "|": _logic("or"),
    "~": _logic("not"),
    "log": lambda node, args: _logarithm(_as_number(node, args, args[0])),
    "log1p": _log1p,
    "round": _round,
    "clip": _clip,
    "min": _extreme,
    "max": _extreme,
    "is_null": _is_null,
    "fill_null": _fill_null,
    "when": _when,
    "isin": _isin,
    "bucket": _bucket,
    "lower": _text("lower"),
    "squeeze": _text("squeeze"),
    "map_values": _map_values,
    "days_since": _days_since,
    "category": _category,
}
RULES.update({op: _unary(cast("TypedOp", op)) for op in ("neg", "abs", "sqrt", "floor", "ceil", "exp")})
RULES.update({part: _part(function) for part, function in dates.PARTS.items()})
