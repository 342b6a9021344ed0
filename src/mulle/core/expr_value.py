"""The expression as the user holds it: operators and methods on an immutable tree. Its meaning stands in `core/expr.py`."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import NoReturn

from mulle.core.errors import SpecError
from mulle.core.expr_nodes import Node, Param, Scalar, bounded, describe, literal_node, literal_params, make_node, user_location, walk
from mulle.core.expr_refusals import no_single_value, unknown_method
from mulle.core.expr_write import write

_MAX_DECIMALS = 15


class Expr:
    """How one value of a row is computed from the columns of that row. Immutable; made by `col`, `lit` and `when`."""

    __slots__ = ("_node",)
    __array_ufunc__ = None  # numpy scalars leave `np.float64(2) * col("x")` to us instead of making an array of objects

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def node(self) -> Node:
        """The operator tree, for the compilers."""
        return self._node

    @property
    def location(self) -> str:
        """Where the user wrote it: `file:line`."""
        return self._node.location

    @property
    def digest(self) -> str:
        """The digest of what is computed, whatever the place: 64 hexadecimal digits."""
        return self._node.key

    def columns(self) -> frozenset[str]:
        """Return the names of the columns it reads."""
        return frozenset(str(node.params[0]) for node in walk([self._node]) if node.op == "column")

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON: the distinct operators in order, arguments by index; equal expressions give equal JSON."""
        return describe(self._node)

    def __repr__(self) -> str:
        return write(self._node)

    # Arithmetic

    def __add__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("+", self, other)

    def __radd__(self, other: Scalar) -> "Expr":
        return _binary("+", other, self)

    def __sub__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("-", self, other)

    def __rsub__(self, other: Scalar) -> "Expr":
        return _binary("-", other, self)

    def __mul__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("*", self, other)

    def __rmul__(self, other: Scalar) -> "Expr":
        return _binary("*", other, self)

    def __truediv__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("/", self, other)

    def __rtruediv__(self, other: Scalar) -> "Expr":
        return _binary("/", other, self)

    def __floordiv__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("//", self, other)

    def __rfloordiv__(self, other: Scalar) -> "Expr":
        return _binary("//", other, self)

    def __mod__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("%", self, other)

    def __rmod__(self, other: Scalar) -> "Expr":
        return _binary("%", other, self)

    def __pow__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("**", self, other)

    def __rpow__(self, other: Scalar) -> "Expr":
        return _binary("**", other, self)

    def __neg__(self) -> "Expr":
        return self._call("neg")

    def __pos__(self) -> "Expr":
        return self

    def __abs__(self) -> "Expr":
        return self.abs()

    def __floor__(self) -> "Expr":
        return self.floor()

    def __ceil__(self) -> "Expr":
        return self.ceil()

    def __round__(self, decimals: int | None = None) -> "Expr":
        return self.round(decimals or 0)

    # Comparison and logic

    def __eq__(self, other: object) -> "Expr":  # type: ignore[override]  # a comparison of rows, not of objects
        return _binary("==", self, other)

    def __ne__(self, other: object) -> "Expr":  # type: ignore[override]  # a comparison of rows, not of objects
        return _binary("!=", self, other)

    def __lt__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("<", self, other)

    def __le__(self, other: "Expr | Scalar") -> "Expr":
        return _binary("<=", self, other)

    def __gt__(self, other: "Expr | Scalar") -> "Expr":
        return _binary(">", self, other)

    def __ge__(self, other: "Expr | Scalar") -> "Expr":
        return _binary(">=", self, other)

    def __and__(self, other: "Expr | bool") -> "Expr":
        return _binary("&", self, other)

    def __rand__(self, other: bool) -> "Expr":
        return _binary("&", other, self)

    def __or__(self, other: "Expr | bool") -> "Expr":
        return _binary("|", self, other)

    def __ror__(self, other: bool) -> "Expr":
        return _binary("|", other, self)

    def __invert__(self) -> "Expr":
        return self._call("~")

    def __hash__(self) -> int:
        return hash(self._node.key)

    def between(self, low: "Expr | Scalar", high: "Expr | Scalar") -> "Expr":
        """Return whether low <= x <= high, both ends included."""
        return (self >= low) & (self <= high)

    def isin(self, values: Sequence[Scalar]) -> "Expr":
        """Return whether x equals one of `values`; missing for missing x.

        Raises:
            SpecError: an empty list, or None in it (ask `is_null` for that).
        """
        if isinstance(values, str) or not values:
            raise SpecError(
                "expression-isin", f"isin was given {bounded(values)}", fix="give a list: .isin(['a', 'b'])", where=user_location()
            )
        items = tuple(literal_params(value) for value in values)
        if any(kind == "missing" for kind, _ in items):
            raise SpecError(
                "expression-isin", "isin cannot look for missing values", fix="write .is_null() | ….isin([…])", where=user_location()
            )
        return self._call("isin", params=items)

    # Missing values and choices

    def is_null(self) -> "Expr":
        """Return whether x is missing (null or NaN); never missing itself."""
        return self._call("is_null")

    def fill_null(self, value: "Expr | Scalar") -> "Expr":
        """Return x, or `value` where x is missing."""
        return _binary("fill_null", self, value)

    def where(self, condition: "Expr", otherwise: "Expr | Scalar" = None) -> "Expr":
        """Return x where `condition` is true, else `otherwise` (missing unless given)."""
        return when(condition).then(self).otherwise(otherwise)

    # Numbers

    def abs(self) -> "Expr":
        """Return the absolute value."""
        return self._call("abs")

    def sqrt(self) -> "Expr":
        """Return the square root; missing below 0."""
        return self._call("sqrt")

    def log(self) -> "Expr":
        """Return the natural logarithm; missing below 0, -inf at 0."""
        return self._call("log")

    def log1p(self) -> "Expr":
        """Return log(1 + x), accurate near 0; missing below -1."""
        return self._call("log1p")

    def exp(self) -> "Expr":
        """Return e to the power of x."""
        return self._call("exp")

    def floor(self) -> "Expr":
        """Return the largest whole number not above x."""
        return self._call("floor")

    def ceil(self) -> "Expr":
        """Return the smallest whole number not below x."""
        return self._call("ceil")

    def round(self, decimals: int = 0) -> "Expr":
        """Return x rounded to `decimals` places (-15 to 15), halves to the even neighbour of x * 10^decimals."""
        if not isinstance(decimals, int) or abs(decimals) > _MAX_DECIMALS:  # pyright: ignore[reportUnnecessaryIsInstance] - users have no type checker
            raise SpecError(
                "expression-round",
                f"round was given {bounded(decimals)} decimals",
                fix="give a whole number from -15 to 15",
                where=user_location(),
            )
        return self._call("round", params=(int(decimals),))

    def clip(self, low: float | None = None, high: float | None = None) -> "Expr":
        """Return x moved into [low, high]; None leaves that side open. For bounds that are expressions: min and max."""
        bounds = tuple(_plain_number(bound, "clip") for bound in (low, high))
        if low is not None and high is not None and not low <= high:
            raise SpecError(
                "expression-clip",
                f"clip was given the empty range {low!r} to {high!r}",
                fix="give the lower end first",
                where=user_location(),
            )
        return self._call("clip", params=bounds)

    def min(self, other: "Expr | Scalar") -> "Expr":
        """Return the smaller of two numbers or dates of this row; missing when either is."""
        return _binary("min", self, other)

    def max(self, other: "Expr | Scalar") -> "Expr":
        """Return the larger of two numbers or dates of this row; missing when either is."""
        return _binary("max", self, other)

    def bucket(self, edges: Sequence[float]) -> "Expr":
        """Return how many of the rising `edges` are <= x: 0 below the first, len(edges) from the last on.

        A value on an edge belongs to the bucket above it: bucket([10, 20]) gives 0 for 9.9, 1 for 10 and 19.9, 2 for 20.
        """
        numbers = [_plain_number(edge, "bucket") for edge in edges]
        if not numbers or any(a is None or b is None or not a < b for a, b in zip(numbers, [*numbers[1:], float("inf")], strict=True)):
            raise SpecError(
                "expression-bucket", f"bucket was given the edges {bounded(edges)}", fix="give rising finite numbers", where=user_location()
            )
        return self._call("bucket", params=tuple(numbers))

    # Text

    def lower(self) -> "Expr":
        """Return the text with A to Z in lower case. Other letters stay: ONNX has no case mapping that is the same everywhere."""
        return self._call("lower")

    def squeeze(self) -> "Expr":
        """Return the text without leading and trailing spaces, and with single spaces between words. Spaces are U+0020 only."""
        return self._call("squeeze")

    def map_values(self, mapping: Mapping[str, str] | Mapping[str, float], *, default: str | float | None = None) -> "Expr":
        """Return the text or number that `mapping` has for the text x, `default` (None: missing) where it has none.

        Missing stays missing. To keep what is not mapped: `x.map_values({…}).fill_null(x)`.

        Raises:
            SpecError: an empty mapping, keys that are no texts, or values of two kinds.
        """
        kinds = {kind for kind, _ in map(literal_params, mapping.values())}
        default_kind, default_value = literal_params(default)
        if not mapping or not kinds <= {"text", "number"} or len(kinds | ({default_kind} - {"missing"})) != 1:
            raise SpecError(
                "expression-map",
                f"map_values was given {bounded(mapping)} with default {bounded(default)}",
                fix="map texts to texts, or texts to numbers, and give a default of the same kind",
                where=user_location(),
            )
        for key in mapping:
            if literal_params(key)[0] != "text":
                raise SpecError("expression-map", f"map_values has the key {bounded(key)}", fix="use texts as keys", where=user_location())
        pairs = sorted((key, literal_params(value)[1]) for key, value in mapping.items())
        op = "map_text" if kinds == {"text"} else "map_number"
        return self._call("map_values", params=(op, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), default_value))

    # Dates, in UTC

    def year(self) -> "Expr":
        """Return the year."""
        return self._call("year")

    def month(self) -> "Expr":
        """Return the month, 1 to 12."""
        return self._call("month")

    def day(self) -> "Expr":
        """Return the day of the month, 1 to 31."""
        return self._call("day")

    def weekday(self) -> "Expr":
        """Return the day of the week after ISO 8601: Monday 1 to Sunday 7."""
        return self._call("weekday")

    def hour(self) -> "Expr":
        """Return the hour, 0 to 23."""
        return self._call("hour")

    def minute(self) -> "Expr":
        """Return the minute, 0 to 59."""
        return self._call("minute")

    def days_since(self, other: "Expr | str | date") -> "Expr":
        """Return the days from `other` (a date column, a date or an ISO text) to x, with fractions; negative if x is earlier."""
        return _binary("days_since", self, other)

    # The end

    def category(self) -> "Expr":
        """Return x as a category: one column per level seen in training. Texts, booleans and numbers; always the last step."""
        return self._call("category")

    def _call(self, op: str, *, params: tuple[Param, ...] = ()) -> "Expr":
        return Expr(make_node(op, self._node, params=params))

    # What Python would otherwise answer with a riddle

    def __bool__(self) -> bool:
        raise SpecError(
            "expression-truth",
            "an expression has no truth value before there are rows",
            fix="use & | ~ instead of and, or, not; when(…).then(…).otherwise(…) instead of if; .between(a, b) instead of a <= x <= b",
            where=user_location(),
        )

    def __iter__(self) -> NoReturn:
        raise no_single_value("iterated over", "one expression stands for one value of each row; for membership write .isin([…])")

    def __contains__(self, item: object) -> bool:
        raise no_single_value("searched with `in`", "write .isin([…]) or ==")

    def __float__(self) -> float:
        raise no_single_value("made one number", "use the methods of the expression, for example .log() instead of math.log(…)")

    def __int__(self) -> int:
        raise no_single_value("made one number", "use .floor() instead of int(…)")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # protocols of Python, copy and notebooks ask for these
            raise AttributeError(name)
        raise unknown_method(name, [other for other in dir(type(self)) if not other.startswith("_")])


class When:
    """`when(condition)`, waiting for `.then(value)`."""

    def __init__(self, condition: "Expr | bool", before: "Then | None" = None) -> None:
        self._condition = _wrap(condition)
        self._before = before

    def then(self, value: "Expr | Scalar") -> "Then":
        """Return the choice that takes `value` where the condition is true."""
        return Then(self._condition, _wrap(value), self._before)


class Then:
    """A choice, waiting for `.otherwise(value)` or another `.when(condition)`."""

    def __init__(self, condition: Expr, value: Expr, before: "Then | None") -> None:
        self._branches: tuple[tuple[Expr, Expr], ...] = (*(before.branches if before else ()), (condition, value))

    @property
    def branches(self) -> tuple[tuple[Expr, Expr], ...]:
        """Conditions and values in the order they are asked."""
        return self._branches

    def when(self, condition: "Expr | bool") -> When:
        """Return a further condition, asked only where those before were not true."""
        return When(condition, self)

    def otherwise(self, value: "Expr | Scalar") -> Expr:
        """Return the finished choice; None stands for missing."""
        result = _wrap(value)
        for condition, taken in reversed(self._branches):
            result = Expr(make_node("when", condition.node, taken.node, result.node))
        return result


def col(name: str) -> Expr:
    """Return the column called `name`, of this row."""
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance] - users have no type checker
        raise SpecError(
            "expression-column", f"col was given {bounded(name)}", fix='name a column: mulle.col("tenure")', where=user_location()
        )
    return Expr(make_node("column", params=(name,)))


def lit(value: Scalar) -> Expr:
    """Return a constant; None and NaN are missing."""
    return Expr(literal_node(value))


def when(condition: "Expr | bool") -> When:
    """Return the beginning of a choice: `when(c).then(a).otherwise(b)`; where c is missing, `otherwise` is taken."""
    return When(condition)


def _wrap(value: object) -> Expr:
    return value if isinstance(value, Expr) else Expr(literal_node(value))


def _binary(op: str, left: object, right: object) -> Expr:
    return Expr(make_node(op, _wrap(left).node, _wrap(right).node))


def _plain_number(value: object, op: str) -> float | None:
    if value is None and op == "clip":
        return None
    kind, number = literal_params(value) if not isinstance(value, Expr) else ("expression", None)
    if kind != "number" or not isinstance(number, float):
        raise SpecError("expression-bound", f"{op} was given {bounded(value)}", fix="give plain numbers", where=user_location())
    return number
