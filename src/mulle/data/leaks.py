"""Whether one side of a split knows something of the other, or a column knows the answer.

Failures stop the run: an entity on both sides of a split by hash, training rows from the holdout's future. The rest are
warnings with counts: equal rows on both sides, and columns that give the target away almost perfectly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from mulle.core.errors import CheckError, SpecError
from mulle.core.project import Task
from mulle.core.schema import ColumnType
from mulle.data.check_report import MAX_EXAMPLES, shorten
from mulle.data.dataset import column_type, normalise
from mulle.data.split import HOLDOUT, TRAIN

SUSPICIOUS = 0.999
_MIN_ROWS = 20
_MIN_ROWS_PER_LEVEL = 5
_SHOWN = 20

EntityPolicy = Literal["allow", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Leak:
    """One way in which a side, or a column, knows too much.

    Attributes:
        kind: `entity`, `future`, `duplicate` or `target`.
        severity: `fail` or `warn`.
        n: Entities, rows, or rows looked at, as `message` says.
        message: One sentence with the numbers.
        examples: At most five values.
        fix: What to do next.
    """

    kind: Literal["entity", "future", "duplicate", "target"]
    severity: Literal["fail", "warn"]
    n: int
    message: str
    examples: tuple[str, ...] = ()
    fix: str = ""

    def __str__(self) -> str:
        """Return the sentence."""
        return self.message

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "n": self.n,
            "message": self.message,
            "examples": list(self.examples),
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class LeakReport:
    """How many rows each side has, and what leaks."""

    n_train: int
    n_holdout: int
    leaks: tuple[Leak, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(leak.severity != "fail" for leak in self.leaks)

    @property
    def warnings(self) -> tuple[Leak, ...]:
        """What should be looked at, but stops nothing."""
        return tuple(leak for leak in self.leaks if leak.severity == "warn")

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {"ok": self.ok, "n_train": self.n_train, "n_holdout": self.n_holdout, "leaks": [leak.to_dict() for leak in self.leaks]}

    def render_text(self) -> str:
        """Return what a person sees."""
        n = self.n_train + self.n_holdout
        lines = [f"split: {self.n_train:,} rows to learn from, {self.n_holdout:,} held back ({self.n_holdout / max(n, 1):.1%})"]
        for leak in self.leaks[:_SHOWN]:
            lines.append(f"  {'leak' if leak.severity == 'fail' else 'warning'}: {leak.message}")
            if leak.examples:
                lines.append(f"    for example {', '.join(leak.examples)}")
            if leak.fix:
                lines.append(f"    fix: {leak.fix}")
        return "\n".join(lines)


def check_leaks(
    frame: pl.DataFrame,
    sides: pl.Series,
    *,
    by: Literal["hash", "time"] = "hash",
    entity: str | None = None,
    time: str | None = None,
    target: str | None = None,
    task: Task = "binary",
    features: Sequence[str] | None = None,
    entity_policy: EntityPolicy | None = None,
) -> LeakReport:
    """Return what leaks between the sides of a split.

    Args:
        frame: The table.
        sides: `train` or `holdout` per row.
        by: How it was split.
        entity: No value of this column may be on both sides of a split by hash.
        time: In a split by time no training row may be as late as the holdout's first.
        target: The column that features must not give away.
        task: How association with the target is measured.
        features: The raw columns that features are made of; by default all but target, entity and time.
        entity_policy: What an entity on both sides means; by default `fail` by hash and `warn` by time, where an entity
            that is seen again later is usual.

    Raises:
        SpecError: `sides` does not fit the table.
    """
    table = normalise(frame)
    if len(sides) != table.height or not sides.is_in([TRAIN, HOLDOUT]).all():
        raise SpecError("split-sides", f"the sides do not fit a table of {table.height:,} rows", fix="use what assign_split returned")
    train, holdout = table.filter(sides == TRAIN), table.filter(sides == HOLDOUT)
    own = {target, entity, time}
    names = [name for name in (features if features is not None else table.columns) if name not in own and name in table.columns]
    leaks: list[Leak | None] = []
    if entity is not None and entity in table.columns:
        leaks.append(_check_entities(train[entity], holdout[entity], entity_policy or ("fail" if by == "hash" else "warn")))
    if by == "time" and time is not None and time in table.columns:
        leaks.append(_check_future(train[time], holdout[time]))
    if names:
        leaks.append(_check_duplicates(train, holdout, names))
    if target is not None and target in table.columns:
        leaks.extend(_check_column(table[name], table[target], task) for name in names)
    return LeakReport(train.height, holdout.height, tuple(leak for leak in leaks if leak is not None))


def require_no_leaks(report: LeakReport) -> None:
    """Return if nothing failed.

    Raises:
        CheckError: an entity on both sides, or training rows from the future.
    """
    failed = [leak for leak in report.leaks if leak.severity == "fail"]
    if failed:
        raise CheckError("split-leak", failed[0].message, fix=failed[0].fix, facts={leak.kind: leak.message for leak in failed[1:]})


def _check_entities(train: pl.Series, holdout: pl.Series, policy: EntityPolicy) -> Leak | None:
    known = train.drop_nulls().unique()
    both = holdout.drop_nulls().unique()
    both = both.filter(both.is_in(known.implode())).sort()
    if policy == "allow" or both.is_empty():
        return None
    message = f"{len(both):,} values of the entity {train.name!r} are on both sides"
    fix = (
        'set by = "hash" in [split], which keeps every entity on one side'
        if policy == "warn"
        else "split with assign_split(entity=…) again"
    )
    return Leak("entity", policy, len(both), message, tuple(shorten(value) for value in both[:MAX_EXAMPLES]), fix)


def _check_future(train: pl.Series, holdout: pl.Series) -> Leak | None:
    first = holdout.drop_nulls().sort()[:1]
    late = train.filter(train >= first[0]) if len(first) else train.clear()
    if late.is_empty():
        return None
    message = f"{len(late):,} training rows are not earlier than the holdout's first, {first[0]}"
    return Leak(
        "future", "fail", len(late), message, tuple(str(value) for value in late[:MAX_EXAMPLES]), "split with assign_split(by='time') again"
    )


def _check_duplicates(train: pl.DataFrame, holdout: pl.DataFrame, names: Sequence[str]) -> Leak | None:
    plain = [f"c{position}" for position in range(len(names))]
    known = pl.DataFrame([train[name].alias(to) for name, to in zip(names, plain, strict=True)]).unique()
    asked = pl.DataFrame([holdout[name].alias(to) for name, to in zip(names, plain, strict=True)])
    n = asked.join(known, on=plain, how="semi", nulls_equal=True).height
    if n == 0:
        return None
    message = f"{n:,} of {holdout.height:,} held-back rows have exactly the features of a training row"
    return Leak("duplicate", "warn", n, message, (), "harmless when few; many make the evaluation too kind: drop copies in the source")


def _check_column(series: pl.Series, target: pl.Series, task: Task) -> Leak | None:
    """Return a warning when one column, or only whether it is missing, tells the target."""
    labelled = target.is_not_null()
    series, target = series.filter(labelled), target.filter(labelled)
    if len(target) < _MIN_ROWS or target.n_unique() < 2:  # noqa: PLR2004 - one value gives nothing away
        return None
    fix = f"leave {series.name!r} out of the features, unless it is known when the prediction is made"
    present = series.is_not_null()
    if 0 < int(present.sum()) < len(series):
        strength = _association(present.cast(pl.Float64), target, task)
        if strength > SUSPICIOUS:
            message = f"whether {series.name!r} is missing tells {target.name!r} almost perfectly ({strength:.4f})"
            return Leak("target", "warn", len(series), message, (), fix)
    series, target = series.filter(present), target.filter(present)
    if len(target) < _MIN_ROWS or target.n_unique() < 2:  # noqa: PLR2004
        return None
    kind = column_type(series.dtype, series.name)
    if kind is ColumnType.TEXT:
        strength = _purity(series, target, task)
    else:
        strength = _association(series.to_physical().cast(pl.Float64), target, task)
    if strength <= SUSPICIOUS:
        return None
    return Leak("target", "warn", len(series), f"{series.name!r} tells {target.name!r} almost perfectly ({strength:.4f})", (), fix)


def _association(values: pl.Series, target: pl.Series, task: Task) -> float:
    """Return |Spearman's rho| for regression, else the smallest one-against-rest AUC over the classes; in [0, 1]."""
    ranks = values.rank("average")
    if task == "regression":
        rho = pl.select(pl.corr(ranks, target.cast(pl.Float64).rank("average"))).item()
        return abs(float(rho)) if rho is not None and rho == rho else 0.0  # noqa: PLR0124 - not NaN
    n, smallest = len(values), 1.0
    for label in target.unique():
        own = target == label
        n_own = int(own.sum())
        auc = (float(ranks.filter(own).sum()) - n_own * (n_own + 1) / 2) / (n_own * (n - n_own))
        smallest = min(smallest, max(auc, 1 - auc))
        if smallest <= SUSPICIOUS:
            break
    return smallest


def _purity(series: pl.Series, target: pl.Series, task: Task) -> float:
    """Return the share of rows that the commonest target of their level gets right; 0 when levels hardly repeat."""
    levels = series.n_unique()
    if task == "regression" or levels * _MIN_ROWS_PER_LEVEL > len(series):
        return 0.0
    table = pl.DataFrame([series.alias("level"), target.alias("label")])
    best = table.group_by("level", "label").len().group_by("level").agg(pl.col("len").max())
    right, commonest = int(best["len"].sum()), int(target.value_counts()["count"].max() or 0)  # pyright: ignore[reportArgumentType]
    return right / len(series) if commonest / len(series) < SUSPICIOUS else 0.0
