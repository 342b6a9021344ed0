"""One column of categories: the window beside the baseline."""

from collections.abc import Mapping, Sequence

import numpy as np

from mulle.formats.baseline import CategoryProfile, bucket_counts
from mulle.monitor.result import ColumnReport, Comparison, DriftSettings, TestResult
from mulle.monitor.wording import say_share, say_value
from mulle.stats.two_sample import chi_square_two_sample, jensen_shannon, novelty_p_value, total_variation
from mulle.stats.types import FloatArray, IntArray

_PICTURE_CATEGORIES = 12
OTHERS = "(others)"
_ROUNDING = 1e-9


def compare_categories(profile: CategoryProfile, counts: Mapping[str, int], n_missing: int, settings: DriftSettings) -> ColumnReport:
    """Return what the window's category counts say beside `profile`; missing values are left to the caller.

    With no more than 200 different values every category is compared by name, and new ones are tested; with more, their hash
    buckets are compared, and names are only for the eye.
    """
    n_present = sum(counts.values())
    tests: list[TestResult] = []
    anomalies: list[str] = []
    figures: dict[str, float | None] = {}
    if profile.n and n_present:
        keys = sorted(profile.counts.keys() | counts.keys())
        before = np.array([profile.counts.get(key, 0) for key in keys], dtype=np.int64)
        now = np.array([counts.get(key, 0) for key in keys], dtype=np.int64)
        if profile.buckets:
            buckets = np.array(profile.buckets, dtype=np.int64)
            tests.append(_by_bucket(profile, buckets, bucket_counts(counts)))
            before, now = buckets, bucket_counts(counts)
        else:
            labels = [say_value(key) for key in keys]
            tests, anomalies = compare_counts(profile.name, labels, before, now, settings)
        figures = {"total_variation": total_variation(before, now), "jensen_shannon": jensen_shannon(before, now)}
    return ColumnReport(
        name=profile.name,
        type=profile.type.value,
        n=n_present,
        n_missing=n_missing,
        n_reference=profile.n,
        tests=tuple(tests),
        sentence="",
        anomalies=tuple(anomalies),
        figures=figures,
        comparison=_picture(profile, counts, n_present),
    )


def compare_counts(
    name: str, labels: Sequence[str], before: IntArray, now: IntArray, settings: DriftSettings
) -> tuple[list[TestResult], list[str]]:
    """Return the tests of two rows of counts over the same categories (their shares; new ones), and what is odd about them.

    Args:
        name: The column.
        labels: k names, as they are to be shown.
        before: Shape (k,): the reference, with at least one row.
        now: Shape (k,): the window, with at least one row.
        settings: How many new values are shown.
    """
    n, m = int(before.sum()), int(now.sum())
    result = chi_square_two_sample(before, now)
    shift = now / m - before / n
    most = int(np.abs(shift).argmax())
    effect = total_variation(before, now)
    sentence = f"{name}: {labels[most]} in {say_share(before[most] / n)} → {say_share(now[most] / m)} of rows, total variation {effect:.2f}"
    tests: list[TestResult] = []
    if result.df:
        tests.append(TestResult("distribution", "chi-square", result.statistic, result.p_value, effect, sentence))
    new = np.flatnonzero((before == 0) & (now > 0))
    new = new[np.argsort(-now[new], kind="stable")]
    shown = ", ".join(f"{labels[i]} in {int(now[i]):,} row{'' if now[i] == 1 else 's'}" for i in new[: settings.max_examples])
    if new.size > settings.max_examples:
        shown += f" and {new.size - settings.max_examples:,} more"
    n_new = int(now[new].sum())
    said = f"{name}: values never seen before: {shown}" if new.size else f"{name}: no value the reference had not seen"
    tests.append(TestResult("new values", "union bound", n_new / m, novelty_p_value(before, now), n_new / m, said))
    return tests, [f"new value{'s' if new.size > 1 else ''} {shown}"] if new.size else []


def _by_bucket(profile: CategoryProfile, before: IntArray, now: IntArray) -> TestResult:
    result = chi_square_two_sample(before, now)
    effect = total_variation(before, now)
    sentence = f"{profile.name}: shares of its {profile.n_distinct:,} values, total variation {effect:.2f} over {before.size} hash buckets"
    return TestResult("distribution", "chi-square", result.statistic, result.p_value, effect if result.df else 0.0, sentence)


def _picture(profile: CategoryProfile, counts: Mapping[str, int], n_present: int) -> Comparison | None:
    if not profile.n or not n_present:
        return None
    labels = sorted(profile.counts.keys() | counts.keys())
    before = np.array([profile.counts.get(key, 0) for key in labels], dtype=np.int64) / profile.n
    now = np.array([counts.get(key, 0) for key in labels], dtype=np.int64) / n_present
    return picture_shares(labels, before, now, by_size=True)


def picture_shares(labels: Sequence[str], before: FloatArray, now: FloatArray, *, by_size: bool) -> Comparison:
    """Return the largest shares of both sides for the eye, the rest as one; largest first, or in the order given."""
    shown = np.argsort(-(before + now), kind="stable")[:_PICTURE_CATEGORIES]
    shown = shown if by_size else np.sort(shown)
    kept: list[int] = shown.tolist()
    names, old, new = [labels[i] for i in kept], before[shown].tolist(), now[shown].tolist()
    rest = (max(0.0, 1.0 - sum(old)), max(0.0, 1.0 - sum(new)))
    if max(rest) > _ROUNDING:
        names, old, new = [*names, OTHERS], [*old, rest[0]], [*new, rest[1]]
    return Comparison(labels=tuple(names), edges=(), reference=tuple(old), current=tuple(new))
