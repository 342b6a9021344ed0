"""Judges one window of served rows against the baseline of the model that served them.

**What the error rate means.** All tests of all columns, of the scores and of missing values form one family, corrected by
Holm's method: if nothing changed, *one* check of *one* window says `drift` with probability <= alpha. Checking again every hour
adds up like tickets in a lottery; an alarm that stays honest however often it is looked at needs a sequential test and is
not this one. Rows are taken as independent: a customer asked about fifty times in a window counts fifty times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mulle.formats.baseline import Baseline, NumberProfile, Profile
from mulle.monitor.baseline import AnswerSpec, category_counts, count_missing, read_scores
from mulle.monitor.categories import compare_categories
from mulle.monitor.numbers import compare_missing, compare_numbers
from mulle.monitor.result import ColumnReport, DriftSettings, MonitorReport, Performance, TestResult, Verdict, WindowInfo
from mulle.monitor.wording import say_p
from mulle.stats.multiplicity import holm
from mulle.stats.types import AnyArray

_NO_WINDOW = WindowInfo()
_NO_ANSWER = AnswerSpec()
_NAMED = 3


def check_window(
    baseline: Baseline,
    arrays: Mapping[str, AnyArray],
    scores: AnyArray | None = None,
    *,
    settings: DriftSettings | None = None,
    answer: AnswerSpec = _NO_ANSWER,
    window: WindowInfo = _NO_WINDOW,
    performance: Performance | None = None,
) -> MonitorReport:
    """Return the verdict on a window, with every column's tests, most changed first.

    `incomplete` when `window.gaps` says so and `too few rows` below `settings.min_rows`: the figures are shown, no test alarms.

    Args:
        baseline: The reference: its rows are a sample, and its size enters every test.
        arrays: Column name to shape (m,): the raw columns as logged, missing markers as in `core/schema.py`.
        scores: Shape (m, k) or (m, 1): the logged answers; None leaves them unjudged.
        settings: How to judge; None: the defaults.
        answer: What the columns of `scores` mean.
        window: Where the rows come from, and whether the log is whole.
        performance: Passed through.
    """
    settings = settings or DriftSettings()
    n_rows = max((len(values) for values in arrays.values()), default=0 if scores is None else len(scores))
    columns = [_compare(profile, arrays[profile.name], settings) for profile in baseline if profile.name in arrays]
    absent = [profile.name for profile in baseline if profile.name not in arrays]
    if scores is not None and baseline.prediction is not None and len(scores):
        values, labels = read_scores(scores, answer)
        columns.append(compare_numbers(baseline.prediction.score, values, settings, answer=True))
        if labels is not None and baseline.prediction.classes is not None:
            columns.append(compare_categories(baseline.prediction.classes, category_counts(labels), 0, settings))
    if absent:
        notes = (*window.notes, f"not in the log, so not judged: {', '.join(absent[:10])}{' …' if len(absent) > 10 else ''}")  # noqa: PLR2004
        window = replace(window, notes=notes)
    verdict: Verdict | None = "incomplete" if window.gaps else "too few rows" if n_rows < settings.min_rows else None
    columns, n_tests = _adjust(columns, settings, decide=verdict is None)
    columns.sort(key=lambda column: (not column.drifted, column.p_adjusted, -column.effect))
    verdict = verdict or ("drift" if any(column.drifted for column in columns) else "ok")
    return MonitorReport(
        verdict=verdict,
        summary=_summary(verdict, columns, n_rows, n_tests, settings, window),
        n_rows=n_rows,
        n_reference_rows=baseline.n_rows,
        n_tests=n_tests,
        settings=settings,
        columns=tuple(columns),
        window=window,
        performance=performance,
    )


def _compare(profile: Profile, values: AnyArray, settings: DriftSettings) -> ColumnReport:
    if isinstance(profile, NumberProfile):
        return compare_numbers(profile, np.asarray(values, dtype=np.float64), settings)
    n_missing = count_missing(values)
    report = compare_categories(profile, category_counts(values), n_missing, settings)
    missing, odd = compare_missing(profile.name, profile.n_missing, profile.n + profile.n_missing, n_missing, len(values))
    return replace(report, tests=(*report.tests, *([missing] if missing else [])), anomalies=(*report.anomalies, *([odd] if odd else [])))


def _adjust(columns: list[ColumnReport], settings: DriftSettings, *, decide: bool) -> tuple[list[ColumnReport], int]:
    adjusted = iter(holm([test.p_value for column in columns for test in column.tests]).tolist())
    result: list[ColumnReport] = []
    n_tests = 0
    for column in columns:
        tests = [_judge(test, next(adjusted), settings, decide=decide) for test in column.tests]
        n_tests += len(tests)
        telling = min(tests, key=lambda test: (not test.alarm, test.alarm and test.kind != "distribution", test.p_value), default=None)
        result.append(replace(column, tests=tuple(tests), sentence=telling.sentence if telling else f"{column.name}: nothing to compare"))
    return result, n_tests


def _judge(test: TestResult, p_adjusted: float, settings: DriftSettings, *, decide: bool) -> TestResult:
    significant = p_adjusted <= settings.alpha
    small = test.kind == "distribution" and test.effect < settings.min_effect
    ending = say_p(p_adjusted) + (f"; certain, but below min_effect = {settings.min_effect:g}: no alarm" if significant and small else "")
    return replace(test, p_adjusted=p_adjusted, alarm=decide and significant and not small, sentence=f"{test.sentence}, {ending}")


def _summary(
    verdict: Verdict, columns: Sequence[ColumnReport], n_rows: int, n_tests: int, settings: DriftSettings, window: WindowInfo
) -> str:
    if verdict == "incomplete":
        return f"the log of this window is incomplete, so nothing is decided on its {n_rows:,} rows: {window.gaps[0]}"
    if verdict == "too few rows":
        return f"{n_rows:,} rows in the window, {settings.min_rows:,} are needed before it is judged"
    drifted = [column.name for column in columns if column.drifted]
    if not drifted:
        return f"{n_rows:,} rows look like the reference ({n_tests} tests, false alarm at most {settings.alpha:.0%} per check)"
    rest = len(drifted) - _NAMED
    named = ", ".join(drifted[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    tested = f"{n_tests} tests, false alarm at most {settings.alpha:.0%} per check"
    return f"{len(drifted)} of {len(columns)} columns changed in {n_rows:,} rows: {named} ({tested})"
