# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Feature expressions as ONNX: the half of the compiler that serving uses.

A number is a double with NaN for missing, and a text a string with `MISSING_TEXT`; both propagate by themselves. A
boolean is carried on two rails, *is true* and *is false*; missing is neither. Comparisons with NaN put 0 on both, `&` and
`|` become one And and one Or each, `~` swaps the rails and costs nothing: Kleene's logic without a test for missing.

ONNX Runtime optimises every graph on loading, and not all of it is exact: constants that its optimiser would take for
neutral are hidden from it, and 1 / x is emitted as Reciprocal, because Div(1, x) * y would become y / x, which rounds
differently. Rejected: Min, Max and Clip, whose rules for NaN and for the sign of zero vary.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import numpy as np
from onnx import GraphProto, TensorProto, helper

from mulle.bundle.graph_builder import GraphBuilder
from mulle.core.expr_nodes import Param
from mulle.core.expr_typed import Typed, TypedOp, literal_value, walk_typed
from mulle.core.schema import MISSING_TEXT

ML = "ai.onnx.ml"
_NAN = float("nan")
_NEUTRAL: dict[TypedOp, float] = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}


class Rails(NamedTuple):
    """Names of the two tensors of a boolean, shape (n, 1)."""

    true: str
    false: str


Compiled = str | Rails
Rule = Callable[[GraphBuilder, Typed, tuple[Compiled, ...]], Compiled]


def compile_expressions(g: GraphBuilder, roots: Iterable[Typed]) -> dict[str, Compiled]:
    """Return, for the key of every value below `roots`, where it stands in the graph; the operators are emitted into `g`.

    Inputs are read by the columns' own names. All tensors have shape (n, 1) or, for constants, (1, 1).
    """
    done: dict[str, Compiled] = {}
    fixed: set[str] = set()
    for value in walk_typed(roots):
        args = tuple(done[arg.key] for arg in value.args)
        if value.op != "column" and all(arg.key in fixed for arg in value.args):
            fixed.add(value.key)
        elif value.op in _NEUTRAL:
            args = tuple(
                _hide(g, str(args[i]), str(args[1 - i])) if arg.key in fixed and _taken_for_neutral(value.op, arg) else args[i]
                for i, arg in enumerate(value.args)
            )
        done[value.key] = _RULES[value.op](g, value, args)
    return done


def _taken_for_neutral(op: TypedOp, value: Typed) -> bool:
    """Return whether ONNX Runtime would leave `op` out because it takes this constant for 0 (sums) or 1 (products).

    It looks at constants after rounding them to float32: x * 1.000000001 is x to it, and x + 1e-50 too. What a constant
    expression folds to is not known here, and counts as suspect.
    """
    constant = literal_value(value)
    with np.errstate(over="ignore"):
        return not isinstance(constant, float) or float(np.float32(constant)) == _NEUTRAL[op]


def _hide(g: GraphBuilder, constant: str, beside: str) -> str:
    """Return the name of the same constant, but as one that depends on the row: NaN where its neighbour is NaN anyway."""
    return g.emit("Where", [g.emit("IsNaN", [beside]), g.doubles([_NAN]), constant])


def _column(g: GraphBuilder, value: Typed, _: tuple[Compiled, ...]) -> Compiled:
    name = str(value.params[0])
    if value.type != "boolean":
        return name
    return Rails(g.emit("Equal", [name, g.doubles([1.0])]), g.emit("Equal", [name, g.doubles([0.0])]))


def _literal(g: GraphBuilder, value: Typed, _: tuple[Compiled, ...]) -> Compiled:
    constant = value.params[0]
    if value.type == "boolean":
        return Rails(g.booleans([constant is True]), g.booleans([constant is False]))
    if value.type == "text":
        return g.texts([MISSING_TEXT if constant is None else str(constant)])
    return g.doubles([_NAN if constant is None else cast("float", constant)])


def _plain(op: str) -> Rule:
    return lambda g, _, args: g.emit(op, [str(arg) for arg in args])


def _div(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    if literal_value(value.args[0]) == 1:
        return g.emit("Reciprocal", [str(args[1])])
    return g.emit("Div", [str(args[0]), str(args[1])])


def _pow(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    base, exponent = str(args[0]), str(args[1])
    result = g.emit("Pow", [base, exponent])
    # IEEE says 1 for NaN ** 0 and for 1 ** NaN; here missing stays missing.
    missing = g.emit("Or", [g.emit("IsNaN", [base]), g.emit("IsNaN", [exponent])])
    return g.emit("Where", [missing, g.doubles([_NAN]), result])


def _compare(op: str, opposite: str) -> Rule:
    # a < b is false exactly where b <= a is true; where either is NaN, neither is.
    return lambda g, _, args: Rails(g.emit(op, [str(args[0]), str(args[1])]), g.emit(opposite, [str(args[1]), str(args[0])]))


def _equal(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    a, b = str(args[0]), str(args[1])
    return Rails(g.emit("Equal", [a, b]), g.emit("Or", [g.emit("Less", [a, b]), g.emit("Less", [b, a])]))


def _text_equal(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    same = g.emit("Equal", [str(args[0]), str(args[1])])
    # Two missing texts are equal strings, and all the same not equal but missing.
    missing = [_text_missing(g, str(arg)) for arg, source in zip(args, value.args, strict=True) if literal_value(source) is None]
    if not missing:
        return Rails(same, g.emit("Not", [same]))
    either = missing[0] if len(missing) == 1 else g.emit("Or", missing)
    present = g.emit("Not", [either])
    return Rails(g.emit("And", [same, present]) if len(missing) > 1 else same, g.emit("Not", [g.emit("Or", [same, either])]))


def _text_missing(g: GraphBuilder, name: str) -> str:
    return g.emit("Equal", [name, g.texts([MISSING_TEXT])])


def missing_rail(g: GraphBuilder, value: Compiled, kind: str) -> str:
    """Return the name of a boolean tensor: where `value` is missing."""
    if isinstance(value, Rails):
        return g.emit("Not", [g.emit("Or", [value.true, value.false])])
    return _text_missing(g, value) if kind == "text" else g.emit("IsNaN", [value])


def _and(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    a, b = (cast("Rails", arg) for arg in args)
    return Rails(g.emit("And", [a.true, b.true]), g.emit("Or", [a.false, b.false]))


def _or(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    a, b = (cast("Rails", arg) for arg in args)
    return Rails(g.emit("Or", [a.true, b.true]), g.emit("And", [a.false, b.false]))


def _not(_: GraphBuilder, __: Typed, args: tuple[Compiled, ...]) -> Compiled:
    (a,) = (cast("Rails", arg) for arg in args)
    return Rails(a.false, a.true)


def _to_number(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    if value.args[0].op == "column":
        return str(value.args[0].params[0])  # a boolean column enters as the number it is
    return rails_to_number(g, cast("Rails", args[0]))


def rails_to_number(g: GraphBuilder, rails: Rails) -> str:
    """Return the name of a double tensor: 1, 0, or NaN for missing."""
    return g.emit("Where", [rails.true, g.doubles([1.0]), g.emit("Where", [rails.false, g.doubles([0.0]), g.doubles([_NAN])])])


def _is_null(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    missing = missing_rail(g, args[0], value.args[0].type)
    return Rails(missing, g.emit("Not", [missing]))


def _fill_null(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    return _choose(g, missing_rail(g, args[0], value.type), args[1], args[0])


def _when(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    return _choose(g, cast("Rails", args[0]).true, args[1], args[2])


def _choose(g: GraphBuilder, condition: str, then: Compiled, otherwise: Compiled) -> Compiled:
    if not isinstance(then, Rails) or not isinstance(otherwise, Rails):
        return g.emit("Where", [condition, str(then), str(otherwise)])
    # ONNX Runtime has no Where for booleans.
    other = g.emit("Not", [condition])
    true, false = (
        g.emit("Or", [g.emit("And", [condition, a]), g.emit("And", [other, b])])
        for a, b in ((then.true, otherwise.true), (then.false, otherwise.false))
    )
    return Rails(true, false)


def _isin_number(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    x = str(args[0])
    items = g.doubles(cast("tuple[float, ...]", value.params), (1, len(value.params)))
    hits = g.emit("ReduceMax", [g.emit("Cast", [g.emit("Equal", [x, items])], to=TensorProto.FLOAT), g.integers([1], (1,))], keepdims=1)
    found = g.emit("Cast", [hits], to=TensorProto.BOOL)
    return Rails(found, g.emit("Not", [g.emit("Or", [found, g.emit("IsNaN", [x])])]))


def _isin_text(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    items = [str(item) for item in value.params]
    code = _encode(g, str(args[0]), [*items, MISSING_TEXT], [1] * len(items) + [2], default=0)
    return Rails(g.emit("Equal", [code, g.integers([1])]), g.emit("Equal", [code, g.integers([0])]))


def _encode(g: GraphBuilder, text: str, keys: list[str], codes: list[int], *, default: int) -> str:
    return g.emit("LabelEncoder", [text], domain=ML, keys_strings=keys, values_int64s=codes, default_int64=default)


def _map_number(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    keys, values, default = value.params
    # LabelEncoder of this version knows float32 only: it yields a place in a table of doubles.
    table = [*cast("tuple[float, ...]", values), _NAN if default is None else cast("float", default), _NAN]
    names = [*_texts(keys), MISSING_TEXT]
    places = [*range(len(names) - 1), len(names)]
    place = _encode(g, str(args[0]), names, places, default=len(names) - 1)
    return g.emit("Gather", [g.doubles(table, (len(table),)), place], axis=0)


def _map_text(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    keys, values, default = value.params
    return g.emit(
        "LabelEncoder",
        [str(args[0])],
        domain=ML,
        keys_strings=[*_texts(keys), MISSING_TEXT],
        values_strings=[*_texts(values), MISSING_TEXT],
        default_string=MISSING_TEXT if default is None else str(default),
    )


def _texts(param: Param) -> tuple[str, ...]:
    return cast("tuple[str, ...]", param)


def _bucket(g: GraphBuilder, value: Typed, args: tuple[Compiled, ...]) -> Compiled:
    x = str(args[0])
    edges = g.doubles(cast("tuple[float, ...]", value.params), (1, len(value.params)))
    above = g.emit("Cast", [g.emit("GreaterOrEqual", [x, edges])], to=TensorProto.DOUBLE)
    count = g.emit("ReduceSum", [above, g.integers([1], (1,))], keepdims=1)
    return g.emit("Where", [g.emit("IsNaN", [x]), g.doubles([_NAN]), count])


def _lower(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    # The C locale maps A to Z and nothing else, on every platform; the operator takes one dimension.
    flat = g.emit("Reshape", [str(args[0]), g.integers([-1], (1,))])
    lowered = g.emit("StringNormalizer", [flat], case_change_action="LOWER", is_case_sensitive=1, locale="C")
    return g.emit("Reshape", [lowered, g.integers([-1, 1], (2,))])


def _squeeze(g: GraphBuilder, _: Typed, args: tuple[Compiled, ...]) -> Compiled:
    text = str(args[0])
    # Words per row, shape (n, 1, longest), filled up with empty texts; words themselves are never empty.
    words = g.emit("StringSplit", [text], n_outputs=2)
    longest = g.emit("Gather", [g.emit("Shape", [words]), g.integers([2], ())], axis=0)
    start = g.emit("Expand", [g.texts([""]), g.emit("Shape", [text])])
    blank = {name: g.texts([content]) for name, content in (("empty", ""), ("space", " "))}
    body = _join_words(words, blank["empty"], blank["space"])
    return g.emit("Loop", [longest, "", start], body=body)


def _join_words(words: str, empty: str, space: str) -> GraphProto:
    """Return a loop's body: append word number i, with a space before it unless it is the first or there is none."""
    names = ("i", "go", "sofar", "word", "first", "none", "bare", "gap", "spaced", "joined", "on")
    i, go, so_far, word, first, none, bare, gap, spaced, joined, on = (f"{words}.{name}" for name in names)
    nodes = [
        helper.make_node("Gather", [words, i], [word], axis=2),
        helper.make_node("Equal", [so_far, empty], [first]),
        helper.make_node("Equal", [word, empty], [none]),
        helper.make_node("Or", [first, none], [bare]),
        helper.make_node("Where", [bare, empty, space], [gap]),
        helper.make_node("StringConcat", [gap, word], [spaced]),
        helper.make_node("StringConcat", [so_far, spaced], [joined]),
        helper.make_node("Identity", [go], [on]),
    ]
    inputs = [
        helper.make_tensor_value_info(i, TensorProto.INT64, []),
        helper.make_tensor_value_info(go, TensorProto.BOOL, []),
        helper.make_tensor_value_info(so_far, TensorProto.STRING, None),
    ]
    outputs = [helper.make_tensor_value_info(on, TensorProto.BOOL, []), helper.make_tensor_value_info(joined, TensorProto.STRING, None)]
    return helper.make_graph(nodes, "join_words", inputs, outputs)


_RULES: dict[TypedOp, Rule] = {
    "column": _column,
    "literal": _literal,
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _div,
    "pow": _pow,
    "neg": _plain("Neg"),
    "abs": _plain("Abs"),
    "sqrt": _plain("Sqrt"),
    "floor": _plain("Floor"),
    "ceil": _plain("Ceil"),
    "round": _plain("Round"),
    "log": _plain("Log"),
    "exp": _plain("Exp"),
    "lt": _compare("Less", "LessOrEqual"),
    "le": _compare("LessOrEqual", "Less"),
    "eq": _equal,
    "text_eq": _text_equal,
    "and": _and,
    "or": _or,
    "not": _not,
    "to_number": _to_number,
    "is_null": _is_null,
    "fill_null": _fill_null,
    "when": _when,
    "isin_number": _isin_number,
    "isin_text": _isin_text,
    "bucket": _bucket,
    "lower": _lower,
    "squeeze": _squeeze,
    "map_text": _map_text,
    "map_number": _map_number,
    "category": lambda _, __, args: args[0],
}
