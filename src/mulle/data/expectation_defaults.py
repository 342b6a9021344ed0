"""The rules that hold without being asked: target, labels, keys, columns."""

import difflib
from collections.abc import Sequence

import polars as pl

from mulle.core.expect import AllowMissing, LabelShare, NoDuplicateRows, Rule
from mulle.core.project import Task
from mulle.core.schema import ColumnType, Schema
from mulle.data.check_report import MAX_EXAMPLES, Failure, make_failure, shorten

DEFAULT_MAX_MISSING = 0.5
DEFAULT_MIN_LABEL_SHARE = 0.01
_BINARY = 2
_SHOWN_CLASSES = 20
_MANY_CLASSES = 0.5


def check_target(
    frame: pl.DataFrame, schema: Schema, rules: Sequence[Rule], *, target: str, task: Task, positive: str | float | bool | None
) -> tuple[list[Failure], dict[str, int]]:
    """Return what is wrong with the target, and its classes with their counts (at most 20, none for regression)."""
    column = schema.get(target)
    if column is None:
        nearest = difflib.get_close_matches(target, schema.names, n=1, cutoff=0.5)
        fix = f"did you mean {nearest[0]!r}? " if nearest else ""
        message = f"the target column {target!r} is not in the table"
        return [Failure("target present", target, 1, 1.0, (), message, fix=f"{fix}set target= in mulle.Project")], {}
    series = frame[target]
    found: list[Failure | None] = [
        make_failure(
            frame,
            "target not missing",
            target,
            series.is_null(),
            f"the target {target!r} is missing in {{n}} rows ({{share}})",
            fix=f"leave rows without a label out in the source: frame.drop_nulls({target!r})",
        )
    ]
    if task == "regression":
        found.append(_check_number_target(series, column.type))
        return [failure for failure in found if failure is not None], {}
    counts = series.drop_nulls().value_counts(sort=True)
    pairs = [(_label(value), int(n)) for value, n in counts.sort(["count", target], descending=[True, False]).iter_rows()]
    found.extend(_check_classes(column.type, pairs, rules, target=target, task=task, positive=positive))
    return [failure for failure in found if failure is not None], dict(pairs[:_SHOWN_CLASSES])


def check_keys(frame: pl.DataFrame, schema: Schema, *, entity: str | None, time: str | None) -> list[Failure]:
    """Return what is wrong with the entity and the time column."""
    found: list[Failure | None] = []
    for what, name in (("entity", entity), ("time", time)):
        if name is None:
            continue
        column = schema.get(name)
        if column is None:
            nearest = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
            fix = f"did you mean {nearest[0]!r}? " if nearest else ""
            message = f"the {what} column {name!r} is not in the table"
            found.append(Failure(f"{what} present", name, 1, 1.0, (), message, fix=f"{fix}set {what}= in mulle.Project"))
            continue
        message = f"the {what} {name!r} is missing in {{n}} rows ({{share}})"
        found.append(
            make_failure(frame, f"{what} not missing", name, frame[name].is_null(), message, fix="fill or drop them in the source")
        )
        if what == "time" and column.type is not ColumnType.DATETIME:
            message = f"the time column {name!r} is a {column.type.value}, not a datetime"
            found.append(Failure("time is a datetime", name, 1, 1.0, (), message, fix="parse it in the source, or set another time="))
    if entity is not None and entity in schema:
        keys = [entity] if time is None or time not in schema or time == entity else [entity, time]
        repeated = (
            frame.select(pl.Series(f"k{i}", frame[name]) for i, name in enumerate(keys)).is_duplicated() & frame[entity].is_not_null()
        )
        what = repr(entity) if len(keys) == 1 else f"{entity!r} at one moment of {time!r}"
        found.append(
            make_failure(
                frame,
                "one row per entity",
                entity,
                repeated,
                f"the entity {what} stands on more than one row: {{n}} rows ({{share}})",
                fix=f'keep one row each in the source, for example frame.unique("{entity}", keep="last", maintain_order=True)',
            )
        )
    return [failure for failure in found if failure is not None]


def check_columns(frame: pl.DataFrame, schema: Schema, rules: Sequence[Rule], *, target: str) -> list[Failure]:
    """Return columns that are mostly missing, empty, constant or infinite, and exact duplicate rows."""
    if frame.height == 0:
        return []
    allowed = {rule.column: rule for rule in rules if isinstance(rule, AllowMissing)}
    found: list[Failure | None] = [
        Failure(rule.text, name, 1, 1.0, (), f"there is no column {name!r}", where=rule.where, fix="take the rule out, or mend its name")
        for name, rule in allowed.items()
        if name not in schema
    ]
    for column in schema:
        series = frame[column.name]
        if column.name != target:
            found.append(_check_missing(series, allowed.get(column.name)))
        if column.name != target and series.null_count() < frame.height and frame.height > 1:
            found.append(_check_constant(series))
        if column.type is ColumnType.NUMBER and series.dtype.is_float():
            message = f"{column.name!r} is infinite in {{n}} rows ({{share}}); features made of it count as missing"
            fix = "look for a division by zero in the source"
            found.append(make_failure(frame, "finite numbers", column.name, series.is_infinite(), message, fix=fix, severity="warn"))
    found.append(_check_duplicates(frame, rules))
    return [failure for failure in found if failure is not None]


def _check_number_target(series: pl.Series, kind: ColumnType) -> Failure | None:
    name = series.name
    if kind is not ColumnType.NUMBER:
        message = f"the target {name!r} is a {kind.value}; regression needs numbers"
        return Failure("number target", name, 1, 1.0, (), message, fix='convert it in the source, or set task="binary" or "multiclass"')
    if series.drop_nulls().n_unique() == 1:
        return Failure(
            "target varies",
            name,
            1,
            1.0,
            (),
            f"the target {name!r} has one value only",
            fix="nothing can be learnt from it: check the source",
        )
    bad = series.cast(pl.Float64).is_infinite()
    return make_failure(
        series.to_frame(), "finite target", name, bad, f"the target {name!r} is infinite in {{n}} rows ({{share}})", fix="drop them"
    )


def _check_classes(
    kind: ColumnType,
    pairs: Sequence[tuple[str, int]],
    rules: Sequence[Rule],
    *,
    target: str,
    task: Task,
    positive: str | float | bool | None,
) -> list[Failure]:
    total = sum(n for _, n in pairs)
    shown = tuple(f"{shorten(name)} ({n:,})" for name, n in pairs[:MAX_EXAMPLES])
    problem: tuple[str, str, str] | None = None
    if total == 0:
        return []
    if len(pairs) == 1:
        message = f"the target {target!r} has one class only, {shorten(pairs[0][0])}: nothing can be learnt"
        problem = ("two classes", message, "check the source's filter, and the target column")
    elif kind is ColumnType.DATETIME:
        problem = ("class target", f"the target {target!r} is a datetime, which is not a class", "derive a label from it in the source")
    elif task == "binary" and len(pairs) > _BINARY:
        message = f"the target {target!r} has {len(pairs):,} classes; binary needs two"
        problem = ("two classes", message, 'map it to two values in the source, or set task="multiclass"')
    elif task == "multiclass" and len(pairs) > _MANY_CLASSES * total and total > _BINARY:
        message = f"the target {target!r} has {len(pairs):,} classes on {total:,} rows: it looks like a number or a name"
        problem = ("classes repeat", message, 'set task="regression", or another target')
    elif task == "binary" and positive is not None and _label(positive) not in {name for name, _ in pairs}:
        message = f"the positive value {positive!r} is not among the target's: {', '.join(shown)}"
        problem = ("positive class", message, "set positive= in mulle.Project to one of them")
    if problem is not None:
        return [Failure(problem[0], target, 1, 1.0, shown, problem[1], fix=problem[2])]
    return _check_label_shares(pairs, rules, target=target, task=task, positive=positive)


def _check_label_shares(
    pairs: Sequence[tuple[str, int]], rules: Sequence[Rule], *, target: str, task: Task, positive: str | float | bool | None
) -> list[Failure]:
    total = sum(n for _, n in pairs)
    shown = tuple(f"{shorten(name)} ({n:,})" for name, n in pairs[:MAX_EXAMPLES])
    own = [rule for rule in rules if isinstance(rule, LabelShare)]
    limits = [(r.low, r.high, r.where) for r in own] or ([(DEFAULT_MIN_LABEL_SHARE, 1.0, "")] if task == "binary" else [])
    only = _label(positive) if own and task == "binary" and positive is not None else None
    fix = "get more rows of the rare class, or state what is normal with t.label_share(low, high)"
    found: list[Failure] = []
    for low, high, where in limits:
        for name, n in pairs:
            share = n / total
            if (only is None or name == only) and not low <= share <= high:
                message = f"the class {shorten(name)} of {target!r} has a share of {share:.4f} ({n:,} of {total:,})"
                allowed = f"{message}; allowed is {low:g} to {high:g}"
                found.append(Failure("label share", target, n, share, shown, allowed, where=where, fix=fix))
    return found[:MAX_EXAMPLES]


def _check_missing(series: pl.Series, allowed: AllowMissing | None) -> Failure | None:
    n, limit = series.null_count(), DEFAULT_MAX_MISSING if allowed is None else allowed.share
    share = n / len(series)
    name = series.name
    where = "" if allowed is None else allowed.where
    if n == len(series) and limit < 1:
        return Failure(
            "has values", name, n, 1.0, (), f"{name!r} has no value at all", where=where, fix=f'drop it in the source: frame.drop("{name}")'
        )
    if share > limit:
        message = f"{name!r} is missing in {n:,} rows ({share:.1%}); allowed is {limit:.0%}"
        fix = f't.column("{name}").allow_missing({min(1.0, round(share + 0.05, 2)):g}) if that is normal, else mend the source'
        return Failure("mostly present", name, n, share, (), message, where=where, fix=fix)
    return None


def _check_constant(series: pl.Series) -> Failure | None:
    values = series.drop_nulls()
    if values.len() and bool((values == values[0]).all()) and series.null_count() == 0:
        message = f"{series.name!r} has the one value {shorten(values[0])} in every row"
        return Failure(
            "varies", series.name, len(series), 1.0, (shorten(values[0]),), message, fix="leave it out of the features", severity="warn"
        )
    return None


def _check_duplicates(frame: pl.DataFrame, rules: Sequence[Rule]) -> Failure | None:
    own = next((rule for rule in rules if isinstance(rule, NoDuplicateRows)), None)
    repeated = _repeats(frame)
    n = int(repeated.sum())
    if n == 0:
        return None
    rows = tuple(row + 1 for row in repeated.arg_true()[:MAX_EXAMPLES].to_list())
    share = n / frame.height
    message = f"{n:,} rows ({share:.1%}) repeat an earlier row in every column"
    fix = "frame.unique(maintain_order=True) in the source, if a row is meant to appear once"
    where, severity = ("", "warn") if own is None else (own.where, "fail")
    return Failure(
        "no duplicate rows", None, n, share, (), message, rows=rows, where=where, fix=fix, severity="warn" if severity == "warn" else "fail"
    )


def _repeats(frame: pl.DataFrame) -> pl.Series:
    """Return which rows equal an earlier one in every column."""
    return frame.select(~pl.struct(pl.all()).is_first_distinct()).to_series()


def _label(value: object) -> str:
    """Return a class as text: whole floats as whole numbers, so that 1 and 1.0 are one class."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
