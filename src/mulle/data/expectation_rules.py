# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""The user's rules of columns, run by pandera on polars; and their own pandera models.

pandera is given the columns under plain names (`c0`, `c1` …): it takes names that begin with `^` for patterns, and fails
on its own report when such a column is missing. Of its answer the boolean column per check is used: exact counts and row
numbers, whatever the number of failures.
"""

import difflib
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from mulle.core.errors import SpecError
from mulle.core.expect import Between, HasType, IsIn, Matches, NotNull, PanderaModel, Present, Rule, Unique
from mulle.core.schema import ColumnType, Schema
from mulle.data.check_report import MAX_EXAMPLES, Failure, make_failure, shorten, wrong_type


def check_column_rules(frame: pl.DataFrame, schema: Schema, rules: Sequence[Rule]) -> list[Failure]:
    """Return what does not hold of rules about single columns.

    Raises:
        SpecError: a pattern the table engine does not know.
    """
    found: list[Failure] = []
    runnable: list[Rule] = []
    absent: set[str] = set()
    for rule in rules:
        name = rule.column_name or ""
        column = schema.get(name)
        if column is None:
            if name not in absent:
                found.append(_missing_column(rule, name, schema))
                absent.add(name)
        elif (problem := _type_problem(rule, name, column.type)) is not None:
            found.append(problem)
        elif not isinstance(rule, HasType | Present):
            runnable.append(rule)
    if runnable and frame.height:
        found.extend(_run(frame, schema, runnable))
    return found


def check_pandera(frame: pl.DataFrame, rule: PanderaModel) -> list[Failure]:
    """Return what a user's pandera model says about the table as the source returned it."""
    from pandera.errors import SchemaDefinitionError, SchemaError, SchemaErrors

    try:
        rule.model.validate(frame, lazy=True)
    except SchemaErrors as error:
        return [_from_pandera(frame, rule, one) for one in error.schema_errors]
    except SchemaError as error:
        return [_from_pandera(frame, rule, error)]
    except (SchemaDefinitionError, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise SpecError(
            "expect-pandera",
            f"the {rule.text} cannot be run: {text}",
            fix="make it from pandera.polars, and run it on the source's table",
            where=rule.where,
        ) from error
    return []


def _run(frame: pl.DataFrame, schema: Schema, rules: Sequence[Rule]) -> list[Failure]:
    import pandera.polars as pa
    from pandera.errors import SchemaErrors

    names = sorted({rule.column_name or "" for rule in rules}, key=schema.names.index)
    plain = {name: f"c{position}" for position, name in enumerate(names)}
    columns: dict[str, Any] = {}
    for name in names:
        own = [(index, rule) for index, rule in enumerate(rules) if rule.column_name == name]
        kind = schema.select([name]).columns[0].type
        columns[plain[name]] = pa.Column(
            nullable=not any(isinstance(rule, NotNull) for _, rule in own),
            unique=any(isinstance(rule, Unique) for _, rule in own),
            checks=[
                pa.Check(_predicate(rule, kind, whole=frame[name].dtype.is_integer()), name=str(index), ignore_na=True)
                for index, rule in own
                if not isinstance(rule, NotNull | Unique)
            ],
        )
    table = pl.DataFrame([frame[name].alias(plain[name]) for name in names])
    try:
        pa.DataFrameSchema(columns).validate(table, lazy=True)
    except SchemaErrors as error:
        return [f for one in error.schema_errors if (f := _explain(frame, rules, {v: k for k, v in plain.items()}, one)) is not None]
    except pl.exceptions.PolarsError as error:
        raise _bad_pattern(rules, error) from error
    return []


def _explain(frame: pl.DataFrame, rules: Sequence[Rule], names: dict[str, str], error: Any) -> Failure | None:
    """Return our failure for one of pandera's."""
    column = names[str(error.schema.name)]
    code = error.reason_code.name
    check = getattr(error.check, "name", None)
    if code == "SERIES_CONTAINS_NULLS":
        rule = next(rule for rule in rules if isinstance(rule, NotNull) and rule.column == column)
        message = f"{column!r} is missing in {{n}} rows ({{share}})"
        return make_failure(
            frame, rule.text, column, frame[column].is_null(), message, where=rule.where, fix="fill or drop them in the source"
        )
    if code == "SERIES_CONTAINS_DUPLICATES":
        rule = next(rule for rule in rules if isinstance(rule, Unique) and rule.column == column)
        failed = frame[column].is_duplicated() & frame[column].is_not_null()
        message = f"{column!r} repeats values in {{n}} rows ({{share}})"
        return make_failure(frame, rule.text, column, failed, message, where=rule.where, fix="keep one row per value in the source")
    if not isinstance(check, str) or not check.isdigit() or not isinstance(error.check_output, pl.DataFrame):
        raise _bad_pattern(rules, error)
    rule = rules[int(check)]
    failed = ~error.check_output.to_series() & frame[column].is_not_null()
    message = f"{column!r} is not {rule.text} in {{n}} rows ({{share}})".replace("is not matches", "does not match")
    return make_failure(
        frame, rule.text, column, failed, message, where=rule.where, fix="mend the values in the source, or change the rule"
    )


def _predicate(rule: Rule, kind: ColumnType, *, whole: bool) -> Any:
    """Return the function pandera calls with its lazy data."""

    def run(data: Any) -> pl.LazyFrame:
        return data.lazyframe.select(_expression(rule, kind, pl.col(data.key), whole=whole))

    return run


def _is_in(values: tuple[str | float | bool, ...], kind: ColumnType, column: pl.Expr, *, whole: bool) -> pl.Expr:
    if kind is not ColumnType.NUMBER:
        return column.is_in(pl.Series(values).implode())
    if not whole:
        return column.is_in(pl.Series(values, dtype=pl.Float64, strict=False).implode())
    # exact beyond 2^53; a fraction can never be among whole numbers
    integers = [int(value) for value in values if isinstance(value, int) or (isinstance(value, float) and value.is_integer())]
    return column.cast(pl.Int128).is_in(pl.Series(integers, dtype=pl.Int128).implode())


def _expression(rule: Rule, kind: ColumnType, column: pl.Expr, *, whole: bool) -> pl.Expr:
    if isinstance(rule, Between):
        low = pl.lit(value=True) if rule.low is None else column >= _literal(rule.low, kind)
        high = pl.lit(value=True) if rule.high is None else column <= _literal(rule.high, kind)
        return low & high
    if isinstance(rule, IsIn):
        return _is_in(rule.values, kind, column, whole=whole)
    if isinstance(rule, Matches):
        return column.str.contains(rf"\A(?:{rule.pattern})\z")
    return column.is_not_null()


def _literal(value: float | date, kind: ColumnType) -> Any:
    if kind is not ColumnType.DATETIME or not isinstance(value, date):
        return value
    if not isinstance(value, datetime):
        return pl.lit(datetime(value.year, value.month, value.day), dtype=pl.Datetime("us"))  # noqa: DTZ001 - naive is UTC in tables
    naive = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return pl.lit(naive, dtype=pl.Datetime("us"))


def _type_problem(rule: Rule, name: str, found: ColumnType) -> Failure | None:
    """Return the failure of a rule that cannot be asked of a column of this type."""
    if isinstance(rule, HasType):
        return None if found is rule.type else wrong_type(rule, name, found, f"a {rule.type.value}")
    if isinstance(rule, Between):
        dates = isinstance(rule.low if rule.low is not None else rule.high, date)
        wanted = ColumnType.DATETIME if dates else ColumnType.NUMBER
        return None if found is wanted else wrong_type(rule, name, found, f"a {wanted.value}: {rule.text} cannot be asked of it")
    if isinstance(rule, Matches):
        return None if found is ColumnType.TEXT else wrong_type(rule, name, found, "a text: a pattern cannot be asked of it")
    if isinstance(rule, IsIn):
        first = rule.values[0]
        wanted = ColumnType.TEXT if isinstance(first, str) else ColumnType.BOOLEAN if isinstance(first, bool) else ColumnType.NUMBER
        return None if found is wanted else wrong_type(rule, name, found, f"a {wanted.value}, as {shorten(first)} is")
    return None


def _missing_column(rule: Rule, name: str, schema: Schema) -> Failure:
    nearest = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
    fix = f"did you mean {nearest[0]!r}?" if nearest else f"the table has {', '.join(schema.names[:8])} …"
    return Failure(rule.text, name, 1, 1.0, (), f"there is no column {name!r}", where=rule.where, fix=fix[:200])


def _bad_pattern(rules: Sequence[Rule], error: Any) -> SpecError:
    patterns = [rule for rule in rules if isinstance(rule, Matches)]
    culprit = next((rule for rule in patterns if _refuses(rule.pattern)), None)
    text = " ".join(str(error).split())[:200]
    if culprit is None:
        return SpecError("expect-rule", f"a rule cannot be run: {text}", fix="simplify the rules in @project.expectations")
    return SpecError(
        "expect-rule",
        f"the table engine does not know the pattern {culprit.pattern!r:.80} on {culprit.column!r}",
        fix="use a pattern without look-around and back-references",
        where=culprit.where,
    )


def _refuses(pattern: str) -> bool:
    try:
        pl.Series(["x"]).str.contains(rf"\A(?:{pattern})\z")
    except pl.exceptions.PolarsError:
        return True
    return False


def _from_pandera(frame: pl.DataFrame, rule: PanderaModel, error: Any) -> Failure:
    """Return our failure for one error of a user's model; examples come from the table where pandera tells the rows."""
    column = getattr(error.schema, "name", None)
    check = getattr(error.check, "name", None) or getattr(error.check, "error", None) or str(error.check)
    text = f"{rule.text}: {str(check)[:80]}"
    name = column if isinstance(column, str) and column in frame.columns else None
    output = error.check_output
    if name is not None and isinstance(output, pl.DataFrame) and output.height == frame.height and output.width == 1:
        message = f"{name!r} does not pass {str(check)[:80]} in {{n}} rows ({{share}})"
        failure = make_failure(
            frame, text, name, ~output.to_series(), message, where=rule.where, fix="mend the values in the source, or change the model"
        )
        if failure is not None:
            return failure
    cases = error.failure_cases
    values = cases.head(MAX_EXAMPLES).to_series().to_list() if isinstance(cases, pl.DataFrame) and cases.width else []
    n = cases.height if isinstance(cases, pl.DataFrame) else 1
    share = n / frame.height if frame.height else math.nan
    said = " ".join(str(error).split())[:160]
    return Failure(
        text,
        name,
        n,
        min(share, 1.0),
        tuple(shorten(v) for v in values),
        said,
        where=rule.where,
        fix="mend the source, or change the model",
    )
