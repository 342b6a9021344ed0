"""What a sound table looks like, recorded as plain rules; `data/expectations.py` runs them.

    @project.expectations
    def sound(t: mulle.Expect) -> None:
        t.column("customer_id").unique().not_null()
        t.column("tenure").between(0, 120)

The function only records. A rule that cannot mean anything (an empty range, a broken pattern) is refused at once, with
the line it stands on.
"""

import inspect
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

from mulle.core.errors import SpecError
from mulle.core.schema import ColumnType

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_MAX_SHOWN = 8

Bound = float | date
Scalar = str | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    where: str = ""

    @property
    def column_name(self) -> str | None:
        """The column the rule is about, or None for the whole table."""
        name = getattr(self, "column", None)
        return name if isinstance(name, str) else None

    @property
    def text(self) -> str:
        """The rule in a few words, for reports."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class NotNull(_Rule):
    """No value of the column is missing."""

    column: str

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return "not null"


@dataclass(frozen=True, slots=True)
class Unique(_Rule):
    """No two rows have the same value; missing values are not compared."""

    column: str

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return "unique"


@dataclass(frozen=True, slots=True)
class Between(_Rule):
    """Every value lies in [low, high]; None leaves that side open. Missing values pass."""

    column: str
    low: Bound | None
    high: Bound | None

    @property
    def text(self) -> str:
        """The rule in a few words."""
        if self.low is None:
            return f"at most {self.high}"
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"


@dataclass(frozen=True, slots=True)
class IsIn(_Rule):
    """Every value is one of a few. Missing values pass."""

    column: str
    values: tuple[Scalar, ...]

    @property
    def text(self) -> str:
        """The rule in a few words; a long list is cut."""
        shown = ", ".join(repr(value)[:60] for value in self.values[:_MAX_SHOWN])
        more = f" … {len(self.values) - _MAX_SHOWN} more" if len(self.values) > _MAX_SHOWN else ""
        return f"one of {shown}{more}"


@dataclass(frozen=True, slots=True)
class Matches(_Rule):
    """Every text matches the pattern from its first to its last character. Missing values pass."""

    column: str
    pattern: str

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"matches {self.pattern!r}"


@dataclass(frozen=True, slots=True)
class HasType(_Rule):
    """The column has one of Mulle's four types."""

    column: str
    type: ColumnType

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"is of type {self.type.value}"


@dataclass(frozen=True, slots=True)
class Present(_Rule):
    """The table has the column at all."""

    column: str

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return "is in the table"


@dataclass(frozen=True, slots=True)
class AllowMissing(_Rule):
    """At most `share` of the column is missing; replaces the limit of one half that holds without being asked."""

    column: str
    share: float

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"at most {self.share:.0%} missing"


@dataclass(frozen=True, slots=True)
class MinRows(_Rule):
    """The table has at least `n` rows; replaces the default."""

    n: int

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"at least {self.n:,} rows"


@dataclass(frozen=True, slots=True)
class NoDuplicateRows(_Rule):
    """No two rows are equal in every column; without this rule they are only a warning."""

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return "no duplicate rows"


@dataclass(frozen=True, slots=True)
class LabelShare(_Rule):
    """Each class of the target (the positive one only, when it is named) has a share in [low, high]."""

    low: float
    high: float

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"label share between {self.low:g} and {self.high:g}"


@dataclass(frozen=True, slots=True)
class PanderaModel(_Rule):
    """A pandera `DataFrameModel` or `DataFrameSchema` for polars, run as it is."""

    model: Any

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return f"pandera {getattr(self.model, '__name__', None) or getattr(self.model, 'name', None) or 'schema'}"


Rule = (
    NotNull | Unique | Between | IsIn | Matches | HasType | Present | AllowMissing | MinRows | NoDuplicateRows | LabelShare | PanderaModel
)


class ColumnExpect:
    """The rules of one column; every method returns the same object, so that they chain."""

    def __init__(self, name: str, rules: list[Rule]) -> None:
        self._name = name
        self._rules = rules

    def not_null(self) -> "ColumnExpect":
        """Expect no missing value (null and NaN are one thing)."""
        return self._add(NotNull(self._name, where=_location()))

    def unique(self) -> "ColumnExpect":
        """Expect no value twice; missing values are not compared."""
        return self._add(Unique(self._name, where=_location()))

    def between(self, low: Bound | None, high: Bound | None) -> "ColumnExpect":
        """Expect every value in [low, high], both ends included: numbers, or dates for a column of dates.

        Raises:
            SpecError: both sides open, an empty range, NaN, or a number against a date.
        """
        where = _location()
        if low is None and high is None:
            _refuse(f"between(None, None) on {self._name!r} says nothing", "give at least one end", where)
        for end in (low, high):
            if not (end is None or _is_number(end) or isinstance(end, date)) or (isinstance(end, float) and math.isnan(end)):
                _refuse(f"between() on {self._name!r} cannot compare with {end!r}", "use numbers, or datetime.date values", where)
        if low is not None and high is not None:
            if isinstance(low, date) != isinstance(high, date):
                _refuse(f"between() on {self._name!r} mixes {low!r} and {high!r}", "use two numbers or two dates", where)
            if _order(low) > _order(high):
                _refuse(f"the range {low!r} to {high!r} on {self._name!r} is empty", "give the lower end first", where)
        return self._add(Between(self._name, low, high, where=where))

    def isin(self, values: Iterable[Scalar]) -> "ColumnExpect":
        """Expect every value to be one of `values`: all texts, all numbers or all booleans.

        Raises:
            SpecError: no values, a single text in place of a list, or mixed types.
        """
        where = _location()
        if isinstance(values, str):
            _refuse(f"isin({values!r}) on {self._name!r} was given one text", f"write isin([{values!r}])", where)
        given = tuple(values)
        if not given:
            _refuse(f"isin([]) on {self._name!r} allows nothing", "name at least one value", where)
        kinds = {str if isinstance(v, str) else bool if isinstance(v, bool) else float if _is_number(v) else type(v) for v in given}
        if len(kinds) > 1 or not kinds <= {str, bool, float}:
            _refuse(f"isin() on {self._name!r} mixes or holds unusable types", "use only texts, only numbers or only booleans", where)
        return self._add(IsIn(self._name, given, where=where))

    def matches(self, pattern: str) -> "ColumnExpect":
        """Expect every text to match the regular expression from its first to its last character.

        The table engine's dialect holds: no look-around, no back-references.

        Raises:
            SpecError: not a regular expression.
        """
        where = _location()
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            _refuse(f"{pattern!r} on {self._name!r} is not a regular expression: {error}", "mend the pattern", where)
        return self._add(Matches(self._name, pattern, where=where))

    def type(self, kind: str) -> "ColumnExpect":
        """Expect the column's type: `number`, `boolean`, `datetime` or `text`.

        Raises:
            SpecError: an unknown type.
        """
        where = _location()
        known = [member.value for member in ColumnType]
        if kind not in known:
            _refuse(f"{kind!r} is not a column type", f"use one of {', '.join(known)}", where)
        return self._add(HasType(self._name, ColumnType(kind), where=where))

    def present(self) -> "ColumnExpect":
        """Expect the column to be in the table; every other rule of a column expects it too."""
        return self._add(Present(self._name, where=_location()))

    def allow_missing(self, share: float = 1.0) -> "ColumnExpect":
        """Allow up to `share` of the column to be missing; without this, more than half missing fails.

        Raises:
            SpecError: `share` is outside [0, 1].
        """
        where = _location()
        _require_share(share, f"allow_missing() on {self._name!r}", where)
        return self._add(AllowMissing(self._name, float(share), where=where))

    def _add(self, rule: Rule) -> "ColumnExpect":
        self._rules.append(rule)
        return self


class Expect:
    """Records what a sound table looks like; an `@project.expectations` function is given one."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What was recorded, in order."""
        return tuple(self._rules)

    def column(self, name: str) -> ColumnExpect:
        """Return the recorder of one column.

        Raises:
            SpecError: `name` is not a non-empty text.
        """
        if not name or not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - user code is not type-checked
            _refuse(f"{name!r} is not a column name", "write the column's name as text", _location())
        return ColumnExpect(name, self._rules)

    def min_rows(self, n: int) -> "Expect":
        """Expect at least `n` rows; replaces the default of 50.

        Raises:
            SpecError: `n` is below 1.
        """
        where = _location()
        if n < 1:
            _refuse(f"min_rows({n!r}) allows an empty table", "use 1 or more", where)
        return self._add(MinRows(int(n), where=where))

    def no_duplicate_rows(self) -> "Expect":
        """Expect no two rows equal in every column."""
        return self._add(NoDuplicateRows(where=_location()))

    def label_share(self, low: float = 0.01, high: float = 1.0) -> "Expect":
        """Expect the share of each class (of the positive class only, when the project names one) in [low, high].

        Replaces the default for binary targets: the rarest class has at least 0.01.

        Raises:
            SpecError: not shares, or an empty range.
        """
        where = _location()
        _require_share(low, "label_share()", where)
        _require_share(high, "label_share()", where)
        if low > high:
            _refuse(f"label_share({low!r}, {high!r}) is an empty range", "give the lower share first", where)
        return self._add(LabelShare(float(low), float(high), where=where))

    def pandera(self, model: Any) -> "Expect":
        """Expect what a pandera `DataFrameModel` or `DataFrameSchema` (from `pandera.polars`) says.

        Raises:
            SpecError: something without a `validate` method.
        """
        where = _location()
        if not callable(getattr(model, "validate", None)):
            _refuse(f"{str(model)[:60]!r} is not a pandera model", "give a class made from pandera.polars.DataFrameModel", where)
        return self._add(PanderaModel(model, where=where))

    def _add(self, rule: Rule) -> "Expect":
        self._rules.append(rule)
        return self


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(end: Bound) -> float:
    """Return a number that orders dates, timestamps and numbers among their like."""
    if isinstance(end, datetime):
        return end.timestamp() if end.tzinfo else (end - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001 - naive means UTC here
    return float((end - date(1970, 1, 1)).days) * 86400.0 if isinstance(end, date) else float(end)


def _require_share(share: float, what: str, where: str) -> None:
    if not _is_number(share) or not 0.0 <= share <= 1.0:
        _refuse(f"{what} was given {share!r}", "use a share between 0 and 1", where)


def _refuse(what: str, fix: str, where: str) -> NoReturn:
    raise SpecError("expect-rule", what, fix=fix, where=where)


def _location() -> str:
    """Return `file:line` of the nearest caller outside this package."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
