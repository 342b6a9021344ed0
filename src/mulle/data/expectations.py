"""Whether a table is sound: the user's rules, and the ones that hold without being asked.

Always on, each with a default the user's rules may replace: the target is there and never missing; enough rows; labels
that can be learnt (for `binary` exactly two, the rarest at least 1 %); one row per entity; no column mostly missing or
without a value. Warnings only: constant columns, infinite numbers, exact duplicate rows.

The report is bounded whatever the table: per rule the count, the share, at most five examples and their row numbers
(the first row is 1).
"""

from collections.abc import Sequence

import polars as pl

from mulle.core.errors import CheckError
from mulle.core.expect import AllowMissing, LabelShare, MinRows, NoDuplicateRows, PanderaModel, Rule
from mulle.core.project import Task
from mulle.data.check_report import MAX_EXAMPLES, MAX_VALUE_CHARS, SHOWN_FAILURES, CheckReport, Failure
from mulle.data.dataset import infer_schema, normalise
from mulle.data.expectation_defaults import check_columns, check_keys, check_target
from mulle.data.expectation_rules import check_column_rules, check_pandera

__all__ = ["DEFAULT_MIN_ROWS", "MAX_EXAMPLES", "MAX_VALUE_CHARS", "CheckReport", "Failure", "check_expectations", "require_sound"]

DEFAULT_MIN_ROWS = 50


_SHOWN_EXAMPLES = 2


def check_expectations(
    frame: pl.DataFrame,
    rules: Sequence[Rule],
    *,
    target: str,
    task: Task,
    entity: str | None = None,
    positive: str | float | bool | None = None,
    time: str | None = None,
) -> CheckReport:
    """Return what of `rules` and of the always-on rules does not hold for `frame`; everything is checked.

    Args:
        frame: The table.
        rules: What `Expect` recorded.
        target: The column to predict.
        task: Decides what labels are sound.
        entity: The column that names who a row is about: present, never missing, unique.
        positive: For `binary`, the value that counts as 1.
        time: The column that says when a row became known: present, a datetime, never missing. With it an entity may
            appear many times, once per moment.

    Raises:
        SpecError: a table that cannot be normalised, or a pattern the table engine does not know.
    """
    table = normalise(frame)
    schema = infer_schema(table)
    column_rules = [rule for rule in rules if not isinstance(rule, MinRows | NoDuplicateRows | LabelShare | PanderaModel | AllowMissing)]
    n_min = max((rule.n for rule in rules if isinstance(rule, MinRows)), default=DEFAULT_MIN_ROWS)
    found: list[Failure] = []
    if table.height < n_min:
        found.append(
            Failure(
                f"at least {n_min:,} rows",
                None,
                1,
                1.0,
                (),
                f"the table has {table.height:,} row{'' if table.height == 1 else 's'}; at least {n_min:,} are needed",
                where=next((rule.where for rule in rules if isinstance(rule, MinRows)), ""),
                fix="get more rows, or lower it with t.min_rows(n)",
            )
        )
    target_found, counts = check_target(table, schema, rules, target=target, task=task, positive=positive)
    found.extend(target_found)
    found.extend(check_keys(table, schema, entity=entity, time=time))
    found.extend(check_columns(table, schema, rules, target=target))
    found.extend(check_column_rules(table, schema, column_rules))
    for rule in rules:
        if isinstance(rule, PanderaModel):
            found.extend(check_pandera(frame, rule))
    fails = tuple(failure for failure in found if failure.severity == "fail")
    warns = tuple(failure for failure in found if failure.severity == "warn")
    n_always = 5 + (entity is not None) + (time is not None)
    return CheckReport(table.height, table.width, len(rules) + n_always, fails, warns, counts)


def require_sound(report: CheckReport) -> None:
    """Return if nothing failed.

    Raises:
        CheckError: something did; the facts name the first failures.
    """
    if report.ok:
        return
    n = len(report.failures)
    facts: dict[str, str] = {}
    for failure in report.failures[:SHOWN_FAILURES]:
        label = failure.column or "table"
        shown = ", ".join(failure.examples[:_SHOWN_EXAMPLES])
        text = f"{failure.message}, such as {shown}" if shown and any(one != "missing" for one in failure.examples) else failure.message
        facts[label] = f"{facts[label]}; {text}" if label in facts else text
    raise CheckError(
        "data-unsound",
        f"{n:,} {'rule does' if n == 1 else 'rules do'} not hold for the data",
        fix=report.failures[0].fix or "mend the data or the source, or change the rule in @project.expectations",
        where=report.failures[0].where,
        facts=facts,
    )
