"""What a check of a table found, bounded whatever the table: counts, shares, at most five examples with their rows."""

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from mulle.core.expect import HasType, Rule
from mulle.core.schema import ColumnType

MAX_EXAMPLES = 5
MAX_VALUE_CHARS = 60
SHOWN_FAILURES = 30

Severity = Literal["fail", "warn"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One rule that does not hold.

    Attributes:
        rule: The rule in a few words.
        column: Its column, or None for the whole table.
        n_failed: Rows it does not hold for, or 1 for a rule about the whole.
        share: `n_failed` as a share of all rows.
        examples: At most five values, by `repr`, at most 60 characters each.
        message: One sentence for a person.
        rows: Row numbers of the examples; the first row is 1.
        where: `file:line` of the rule, empty for one that always holds.
        fix: What to do next.
        severity: `fail` stops the run, `warn` does not.
    """

    rule: str
    column: str | None
    n_failed: int
    share: float
    examples: tuple[str, ...]
    message: str
    rows: tuple[int, ...] = ()
    where: str = ""
    fix: str = ""
    severity: Severity = "fail"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "rule": self.rule,
            "column": self.column,
            "n_failed": self.n_failed,
            "share": self.share,
            "examples": list(self.examples),
            "rows": list(self.rows),
            "message": self.message,
            "where": self.where,
            "fix": self.fix,
            "severity": self.severity,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was checked on how many rows, and what does not hold."""

    n_rows: int
    n_columns: int
    n_rules: int
    failures: tuple[Failure, ...] = ()
    warnings: tuple[Failure, ...] = ()
    label_counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return not self.failures

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "ok": self.ok,
            "n_rows": self.n_rows,
            "n_columns": self.n_columns,
            "n_rules": self.n_rules,
            "failures": [failure.to_dict() for failure in self.failures],
            "warnings": [failure.to_dict() for failure in self.warnings],
            "label_counts": self.label_counts,
        }

    def render_text(self) -> str:
        """Return what a person sees: a line of totals, then each failure with its count, examples and fix."""
        state = "sound" if self.ok else "not sound"
        lines = [f"{state}: {self.n_rows:,} rows, {self.n_columns} columns, {self.n_rules} rules"]
        if self.label_counts:
            total = sum(self.label_counts.values())
            lines.append("  labels: " + ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in self.label_counts.items()))
        for sign, found in (("failed", self.failures), ("warning", self.warnings)):
            for failure in found[:SHOWN_FAILURES]:
                lines.extend(_render_failure(sign, failure))
            if len(found) > SHOWN_FAILURES:
                lines.append(f"  … and {len(found) - SHOWN_FAILURES:,} more (see --json)")
        return "\n".join(lines)


def make_failure(
    frame: pl.DataFrame,
    rule: str,
    column: str,
    failed: pl.Series,
    message: str,
    *,
    where: str = "",
    fix: str = "",
    severity: Severity = "fail",
) -> Failure | None:
    """Return the failure of the rows where `failed` is true, or None when there are none.

    `message` may hold `{n}` and `{share}`, filled in here.
    """
    mask = failed.fill_null(value=False)
    n = int(mask.sum())
    if n == 0:
        return None
    rows = mask.arg_true()[:MAX_EXAMPLES].to_list()
    values = frame[column]
    share = n / max(frame.height, 1)
    return Failure(
        rule,
        column,
        n,
        share,
        tuple(shorten(values[row]) for row in rows),
        message.replace("{n}", f"{n:,}").replace("{share}", _percent(share)),
        rows=tuple(row + 1 for row in rows),
        where=where,
        fix=fix,
        severity=severity,
    )


def shorten(value: object) -> str:
    """Return a value by `repr`, at most 60 characters."""
    text = "missing" if value is None else repr(value[: 2 * MAX_VALUE_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"  # noqa: PLR2004 - one decimal would print 0.0


def wrong_type(rule: Rule, column: str, found: ColumnType, wanted: str) -> Failure:
    """Return the failure of a rule whose column has a type it cannot be asked of."""
    fix = "convert the column in the source" if isinstance(rule, HasType) else "change the rule, or convert the column in the source"
    return Failure(rule.text, column, 1, 1.0, (), f"the column {column!r} is a {found.value}, not {wanted}", where=rule.where, fix=fix)


def _render_failure(sign: str, failure: Failure) -> list[str]:
    place = f"  ({failure.where})" if failure.where else ""
    lines = [f"  {sign}: {failure.message}{place}"]
    if failure.examples:
        pairs = [f"row {row:,}: {value}" for row, value in zip(failure.rows, failure.examples, strict=False)] or list(failure.examples)
        more = " …" if failure.n_failed > len(pairs) else ""
        lines.append("    " + "; ".join(pairs) + more)
    if failure.fix:
        lines.append(f"    fix: {failure.fix}")
    return lines
