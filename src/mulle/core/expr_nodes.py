"""What an expression is made of: immutable nodes that know where the user wrote them.

A node's `key` is the digest of what it computes (operator, arguments, parameters; not the place), so that two equal
sub-expressions are recognised as one however they were built. Walks are iterative: an expression of ten thousand
additions is long, not an error.
"""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from numbers import Real
from typing import Literal

from mulle.core.canonical import digest_value
from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT

LiteralType = Literal["number", "boolean", "datetime", "text", "missing"]
Scalar = float | int | bool | str | date | datetime | None
Param = str | float | int | bool | None | tuple["Param", ...]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator as the user wrote it.

    Attributes:
        op: The operator's name, as in `expr_types.RULES`.
        args: The expressions it works on.
        params: What is not an expression: a column name, a literal, edges, a mapping. JSON values only.
        location: `file:line` of the first caller outside Mulle.
        key: Digest of what is computed; equal keys compute equal values.
    """

    op: str
    args: tuple["Node", ...]
    params: tuple[Param, ...]
    location: str
    key: str


def make_node(op: str, *args: Node, params: tuple[Param, ...] = ()) -> Node:
    """Return a node placed where the user's code stands now."""
    key = digest_value([op, [arg.key for arg in args], _plain(params)])
    return Node(op, args, params, user_location(), key)


def literal_node(value: object) -> Node:
    """Return the node of a constant.

    Raises:
        SpecError: the value is no number, boolean, text, date or None.
    """
    return make_node("literal", params=literal_params(value))


def literal_params(value: object) -> tuple[LiteralType, Param]:
    """Return type and plain value of a constant; None, NaN and the marker of missing text are `missing`.

    Numbers become float64, dates seconds since 1970-01-01 UTC (a time without a zone is taken as UTC).

    Raises:
        SpecError: the value is no number, boolean, text, date or None.
    """
    if value is None or value == MISSING_TEXT:
        return "missing", None
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, str):
        return "text", str(value)
    if isinstance(value, datetime | date):
        return "datetime", to_seconds(value)
    if isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:
            raise SpecError(
                "expression-literal", f"{bounded(value)} is beyond float64", fix="use a smaller number", where=user_location()
            ) from None
        return ("missing", None) if math.isnan(number) else ("number", number)
    raise SpecError(
        "expression-literal",
        f"{bounded(value)} cannot stand in an expression: it is {type(value).__name__}",
        fix="use a number, True or False, a text, a date, None, or another mulle.col expression",
        where=user_location(),
    )


def to_seconds(moment: date) -> float:
    """Return a date or time as seconds since 1970-01-01 UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    gap = moment - _EPOCH
    # The same two roundings as a table of microseconds goes through: whole microseconds to float64, then the division.
    return float((gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds) / 1e6


def walk(roots: Iterable[Node]) -> list[Node]:
    """Return every distinct node below `roots`, arguments before the nodes that use them."""
    order: list[Node] = []
    seen: set[str] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node.key not in seen:
            seen.add(node.key)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args) if arg.key not in seen)
    return order


def describe(root: Node) -> dict[str, object]:
    """Return an expression as plain JSON: its distinct nodes in order, arguments by their index; the last is the root."""
    order = walk([root])
    index = {node.key: i for i, node in enumerate(order)}
    nodes = [{"op": node.op, "args": [index[a.key] for a in node.args], "params": _plain(node.params)} for node in order]
    return {"version": 1, "nodes": nodes}


def user_location() -> str:
    """Return `file:line` of the nearest caller outside Mulle, or an empty text when there is none."""
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def bounded(value: object, limit: int = 80) -> str:
    """Return `repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(params: Param) -> object:
    """Return parameters as JSON values; infinities, which JSON cannot say, become texts in a list of one."""
    if isinstance(params, tuple):
        return [_plain(param) for param in params]
    if isinstance(params, float) and math.isinf(params):
        return {"number": repr(params)}
    return params
