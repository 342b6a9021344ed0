"""The small typed language both compilers read: every operator exact, no sugar, no coercion left to guess.

`expr_rules` turns what the user wrote into these values: a boolean used as a number has become `to_number`, an ISO
text next to a date has become a literal, `year` has become the arithmetic it means. Two compilers of two dozen plain
operators can be proven equal; two implementations of `dt.year` could only be hoped to be.

| operator                                       | arguments          | result  |
|------------------------------------------------|--------------------|---------|
| `column`, `literal`                            | none               | any     |
| `add sub mul div pow`                          | number, number     | number  |
| `neg abs sqrt floor ceil round log exp`        | number             | number  |
| `lt le eq`                                     | number, number     | boolean |
| `text_eq`                                      | text, text         | boolean |
| `and or`, `not`                                | boolean            | boolean |
| `to_number`                                    | boolean            | number  |
| `is_null`                                      | any                | boolean |
| `fill_null`                                    | x, x               | x       |
| `when`                                         | boolean, x, x      | x       |
| `isin_number`, `isin_text`                     | number / text      | boolean |
| `bucket`                                       | number             | number  |
| `lower`, `squeeze`, `map_text`, `map_number`   | text               | text; `map_number`: number |
| `category`                                     | text, boolean, number | category |

A `datetime` is a number of seconds by another name: the operators for numbers take it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mulle.core.canonical import digest_value
from mulle.core.expr_nodes import Param

ValueType = Literal["number", "boolean", "datetime", "text", "category"]
TypedOp = Literal[
    "column", "literal", "add", "sub", "mul", "div", "pow", "neg", "abs", "sqrt", "floor", "ceil", "round", "log", "exp", "lt", "le", "eq",
    "text_eq", "and", "or", "not", "to_number", "is_null", "fill_null", "when", "isin_number", "isin_text", "bucket", "lower", "squeeze",
    "map_text", "map_number", "category",
]  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Typed:
    """One operator of the typed language.

    Attributes:
        op: Its name.
        args: Typed values it works on.
        params: A column name, a literal, edges, keys and values.
        type: What it yields.
        key: Digest of what is computed.
    """

    op: TypedOp
    args: tuple["Typed", ...]
    params: tuple[Param, ...]
    type: ValueType
    key: str


def typed(op: TypedOp, kind: ValueType, *args: Typed, params: tuple[Param, ...] = ()) -> Typed:
    """Return a typed value."""
    plain = [_spell(param) for param in params]
    return Typed(op, args, params, kind, digest_value([op, kind, [arg.key for arg in args], plain]))


def constant(kind: ValueType, value: Param) -> Typed:
    """Return a literal; None is missing. Numbers and dates are float64."""
    return typed("literal", kind, params=(float(value) if isinstance(value, int) and kind in ("number", "datetime") else value,))


def number(value: float) -> Typed:
    """Return a literal number."""
    return constant("number", value)


def literal_value(value: Typed) -> Param:
    """Return the constant a literal holds; None for everything else and for missing."""
    return value.params[0] if value.op == "literal" else None


def add(a: Typed, b: Typed) -> Typed:
    """Return a + b. Adding the constant 0 is left out: an optimiser would, and would lose the sign of minus zero by it."""
    if literal_value(b) == 0:
        return a
    return b if literal_value(a) == 0 else typed("add", "number", a, b)


def sub(a: Typed, b: Typed) -> Typed:
    """Return a - b."""
    return a if literal_value(b) == 0 else typed("sub", "number", a, b)


def mul(a: Typed, b: Typed) -> Typed:
    """Return a * b."""
    if literal_value(b) == 1:
        return a
    return b if literal_value(a) == 1 else typed("mul", "number", a, b)


def div(a: Typed, b: Typed) -> Typed:
    """Return a / b; division by zero gives an infinity, 0 / 0 missing."""
    return a if literal_value(b) == 1 else typed("div", "number", a, b)


def floor(a: Typed) -> Typed:
    """Return the largest whole number not above a."""
    return typed("floor", "number", a)


def floor_div(a: Typed, b: Typed) -> Typed:
    """Return floor(a / b)."""
    return floor(div(a, b))


def modulo(a: Typed, b: Typed) -> Typed:
    """Return a - floor(a / b) * b: the sign is the divisor's, as in Python."""
    return sub(a, mul(floor_div(a, b), b))


def less(a: Typed, b: Typed) -> Typed:
    """Return a < b."""
    return typed("lt", "boolean", a, b)


def less_equal(a: Typed, b: Typed) -> Typed:
    """Return a <= b."""
    return typed("le", "boolean", a, b)


def equal(a: Typed, b: Typed) -> Typed:
    """Return a == b, for numbers."""
    return typed("eq", "boolean", a, b)


def negate(a: Typed) -> Typed:
    """Return not a."""
    return typed("not", "boolean", a)


def is_null(a: Typed) -> Typed:
    """Return whether a is missing; never missing itself."""
    return typed("is_null", "boolean", a)


def to_number(a: Typed) -> Typed:
    """Return a boolean as 0 or 1; numbers as they are."""
    return typed("to_number", "number", a) if a.type == "boolean" else a


def when(condition: Typed, then: Typed, otherwise: Typed) -> Typed:
    """Return `then` where the condition is true, else (false or missing) `otherwise`; both of one type."""
    return typed("when", then.type, condition, then, otherwise)


def walk_typed(roots: Iterable[Typed]) -> list[Typed]:
    """Return every distinct value below `roots`, arguments before the values that use them."""
    order: list[Typed] = []
    seen: set[str] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        value, ready = stack.pop()
        if ready:
            order.append(value)
        elif value.key not in seen:
            seen.add(value.key)
            stack.append((value, True))
            stack.extend((arg, False) for arg in reversed(value.args) if arg.key not in seen)
    return order


def _spell(param: Param) -> object:
    # Floats are spelled in hexadecimal: exact, and able to say the infinities that JSON cannot.
    if isinstance(param, tuple):
        return [_spell(item) for item in param]
    return {"float": param.hex()} if isinstance(param, float) else param
