"""Expressions written as the user could have typed them, cut where they become long."""

from mulle.core.expr_nodes import Node, Param, bounded

_MAX_LENGTH = 400
_MAX_DEPTH = 12
_STRENGTH = {"|": 1, "&": 2, "==": 3, "!=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3, "+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "**": 7}
_UNARY = {"neg": "-", "~": "~"}
_TIGHT = 6
_ATOM = 8


def write(node: Node) -> str:
    """Return an expression as text of at most a few hundred characters."""
    text = _text(node, 0)[0]
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"


def _text(node: Node, depth: int) -> tuple[str, int]:
    """Return the text and how tightly its outermost operator binds."""
    if depth > _MAX_DEPTH:
        return "…", _ATOM
    if node.op in _STRENGTH:
        strength = _STRENGTH[node.op]
        # Equal strength needs brackets on the right, since all operators here but ** group to the left.
        left = _bracket(node.args[0], strength + (node.op == "**"), depth)
        right = _bracket(node.args[1], strength + (node.op != "**"), depth)
        return f"{left} {node.op} {right}", strength
    if node.op in _UNARY:
        return f"{_UNARY[node.op]}{_bracket(node.args[0], _TIGHT, depth)}", _TIGHT
    return _call(node, depth), _ATOM


def _call(node: Node, depth: int) -> str:
    if node.op == "column":
        return f"col({bounded(node.params[0])})"
    if node.op == "literal":
        return bounded(node.params[1])
    if node.op == "when":
        condition, then, otherwise = (_text(arg, depth + 1)[0] for arg in node.args)
        return f"when({condition}).then({then}).otherwise({otherwise})"
    inside = [_text(arg, depth + 1)[0] for arg in node.args[1:]] + _arguments(node)
    return f"{_bracket(node.args[0], _ATOM, depth)}.{node.op}({', '.join(inside)})"


def _bracket(node: Node, least: int, depth: int) -> str:
    text, strength = _text(node, depth + 1)
    return text if strength >= least else f"({text})"


def _arguments(node: Node) -> list[str]:
    if node.op == "isin":
        return [bounded([item[1] for item in node.params if isinstance(item, tuple)])]
    if node.op == "bucket":
        return [bounded(list(node.params))]
    if node.op == "map_values":
        _, keys, values, default = node.params
        pairs: dict[Param, Param] = dict(zip(keys, values, strict=True)) if isinstance(keys, tuple) and isinstance(values, tuple) else {}
        return [bounded(pairs)] + ([] if default is None else [f"default={bounded(default)}"])
    return [bounded(param) for param in node.params]
