"""Evaluate the graph that would be served: everything the gates, the report and the registry want to know."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT
from mulle.evaluate import curves
from mulle.evaluate.comparison import Answers, ChampionInfo, Holdout, compare_with_champion, scores_of
from mulle.evaluate.estimates import affordable_resamples, bootstrap_metrics, estimates_of, measure_slices
from mulle.evaluate.folds import summarise_folds
from mulle.evaluate.labels import encode_target, known_targets, problem_of
from mulle.evaluate.probing import Arrays, Score, describe_host, measure_latency, permutation_importance
from mulle.evaluate.result import Evaluation, WorstRow
from mulle.stats.measure import measure_once, predicted_classes, row_losses
from mulle.stats.metric_names import MAIN_METRIC, Task, metric_info
from mulle.stats.metrics import MetricUndefinedError, confusion
from mulle.stats.types import AnyArray, BoolArray, FloatArray, IntArray

__all__ = ["ChampionInfo", "Options", "evaluate_graph"]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        confidence: Of every two-sided interval.
        n_resamples: Bootstrap resamples; fewer are drawn on very many rows; 0 for no intervals.
        main_metric: What importance watches and the report shows first; None: the task's own.
        importance_repeats: Shuffles per column; 0 leaves the importance out.
        importance_columns: Which columns are shuffled; None: all.
        latency_samples: Timed single-row requests; 0 leaves the latency out.
        latency_batch: Rows of the timed batches.
        n_worst: How many of the worst rows are kept.
        n_values: How many raw values of a worst row are kept.
    """

    confidence: float = 0.95
    n_resamples: int = 1000
    main_metric: str | None = None
    importance_repeats: int = 5
    importance_columns: tuple[str, ...] | None = None
    latency_samples: int = 2000
    latency_batch: int = 64
    n_worst: int = 10
    n_values: int = 30


def evaluate_graph(  # noqa: PLR0913 - one evaluation has as many parts; they are keywords
    score: Score,
    arrays: Arrays,
    y: AnyArray,
    *,
    task: Task,
    rng: np.random.Generator,
    classes: Sequence[str] = (),
    positive: str | None = None,
    threshold: float = 0.5,
    slices: Sequence[str] = (),
    champion_score: Score | None = None,
    champion: ChampionInfo | None = None,
    folds: Sequence[Mapping[str, float]] = (),
    size_bytes: int | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Return everything that is measured on the graph that would be served.

    Args:
        score: Raw columns to scores, as the server computes them: (n, k) probabilities or (n, 1) predictions.
        arrays: Raw column name to values, shape (n,): float64 with NaN, or object of text with `MISSING_TEXT`.
        y: The target, shape (n,): labels (text or number) or class numbers (integers); rows without one are dropped and counted.
        task: `binary`, `multiclass` or `regression`.
        rng: Source of randomness of resamples, shuffles and requests.
        classes: Names of the outputs in their order; not for regression.
        positive: The positive class of a binary task; None: the second.
        threshold: Probability from which the positive class is answered.
        slices: Columns whose values cut the holdout.
        champion_score: The champion's score function, for the comparison on the same rows.
        champion: The champion's name, classes and threshold.
        folds: Metrics per fold of a cross-validation (`k_fold`).
        size_bytes: Size of the graph.
        options: How much is measured.
        progress: Told what is being done.

    Raises:
        SpecError: columns and target that do not fit, labels the model does not know, a slice column that is not there,
            scores that are no probabilities.
        MetricUndefinedError: no row has a target, only one class occurs, or the model answers NaN.
    """
    started = time.perf_counter()
    wanted = options or Options()
    tell = progress or _silent
    problem = problem_of(task, classes, positive, threshold)
    main = metric_info(wanted.main_metric or MAIN_METRIC[task], task=task).name
    kept = _require_rows(arrays, y)
    table = {name: np.asarray(values)[kept] for name, values in arrays.items()}
    absent = next((column for column in slices if column not in table), None)
    if absent is not None:
        raise SpecError(
            "evaluate-slice",
            f"there is no column {absent[:80]!r} to cut the holdout by",
            fix=f"use one of {', '.join(sorted(table)[:12])}",
        )
    truth = encode_target(np.asarray(y)[kept], task=task, classes=classes)
    if task != "regression" and len(np.unique(truth)) == 1:
        only = classes[int(truth[0])]
        raise MetricUndefinedError(
            "metric-one-class",
            f"all {len(truth):,} rows of the holdout are {only[:60]!r}",
            fix="hold out rows of every class; check the split",
        )

    tell("scoring")
    holdout = Holdout(table, truth, problem, tuple(classes))
    scores = scores_of(score, holdout, len(classes))
    n_resamples = affordable_resamples(wanted.n_resamples, len(truth))
    points = measure_once(truth, scores, problem)
    tell(f"bootstrap: {n_resamples:,} resamples")
    seed = int(rng.integers(2**63))
    samples = bootstrap_metrics(truth, scores, problem, n_resamples, np.random.default_rng(seed)) if n_resamples else {}
    compared = None
    if champion_score is not None and n_resamples:
        tell("champion")
        compared = compare_with_champion(
            champion_score, champion or ChampionInfo(), holdout, Answers(scores, points, samples), seed=seed, confidence=wanted.confidence
        )
    tell("slices")
    cut, left_out = measure_slices(
        {column: table[column] for column in slices},
        truth,
        scores,
        problem,
        n_resamples=n_resamples,
        confidence=wanted.confidence,
        rng=rng,
    )
    importance, importance_rows = (), 0
    if wanted.importance_repeats > 0:
        tell("importance")
        columns = [c for c in (wanted.importance_columns or tuple(table)) if c in table]
        importance, importance_rows = permutation_importance(
            score, table, truth, problem, metric=main, columns=columns, repeats=wanted.importance_repeats, rng=rng
        )
    latency = ()
    if wanted.latency_samples > 0:
        tell("latency")
        single = measure_latency(score, table, rows=1, samples=wanted.latency_samples, rng=rng)
        batch = measure_latency(
            score, table, rows=wanted.latency_batch, samples=max(30, wanted.latency_samples // 10), rng=rng, budget_s=1.5
        )
        latency = (single, batch)
    is_classes = task != "regression"
    labels = np.asarray(truth, dtype=np.int64) if is_classes else np.zeros(0, dtype=np.int64)
    numbers = np.asarray(truth, dtype=np.float64)
    table_of_answers = confusion(labels, predicted_classes(scores, problem), len(classes))[0] if is_classes else np.zeros((0, 0))
    return Evaluation(
        task=task,
        classes=tuple(str(c) for c in classes) if is_classes else (),
        positive=str(classes[problem.positive]) if task == "binary" else None,
        threshold=threshold,
        main_metric=main,
        n=len(truth),
        n_missing_target=int((~kept).sum()),
        confidence=wanted.confidence,
        n_resamples=n_resamples,
        metrics=estimates_of(points, samples, len(truth), confidence=wanted.confidence),
        confusion=tuple(tuple(int(v) for v in row) for row in table_of_answers),
        roc=curves.roc_curves(labels, scores, classes, problem) if is_classes else (),
        precision_recall=curves.precision_recall_curves(labels, scores, classes, problem) if is_classes else (),
        reliability=curves.reliability_of(labels, scores, problem) if is_classes else (),
        histogram=curves.score_histogram(labels, scores, classes, problem) if is_classes else curves.error_histogram(numbers, scores[:, 0]),
        observed=() if is_classes else curves.observed_by_prediction(numbers, scores[:, 0]),
        folds=summarise_folds(folds),
        slices=cut,
        slices_left_out=left_out,
        importance=importance,
        importance_rows=importance_rows,
        latency=latency,
        host=describe_host() if latency else None,
        size_bytes=size_bytes,
        comparison=compared,
        worst=_worst(holdout, np.flatnonzero(kept), scores, wanted),
        seconds=time.perf_counter() - started,
    )


def _require_rows(arrays: Arrays, y: AnyArray) -> BoolArray:
    if not arrays:
        raise SpecError("evaluate-shape", "there are no columns to score", fix="give the raw columns of the holdout")
    for name, values in arrays.items():
        if np.shape(values) != np.shape(y):
            raise SpecError(
                "evaluate-shape",
                f"the column {name[:80]!r} has shape {np.shape(values)!r}, the target {np.shape(y)!r}",
                fix="give one value per row in every column",
            )
    kept = known_targets(np.asarray(y))
    if not bool(kept.any()):
        raise MetricUndefinedError("metric-empty", f"none of {len(kept):,} rows has a target", fix="check the target column and the split")
    return kept


def _worst(holdout: Holdout, places: IntArray, scores: FloatArray, wanted: Options) -> tuple[WorstRow, ...]:
    truth, problem, classes = holdout.truth, holdout.problem, holdout.classes
    losses = row_losses(truth, scores, problem)
    answers = predicted_classes(scores, problem) if problem.task != "regression" else np.zeros(0, dtype=np.int64)
    result: list[WorstRow] = []
    for i in np.argsort(-losses, kind="stable")[: wanted.n_worst].tolist():
        values = {name: _text(column[i]) for name, column in list(holdout.table.items())[: wanted.n_values]}
        if problem.task == "regression":
            target, answer, given = f"{float(truth[i]):.6g}", f"{scores[i, 0]:.6g}", float(scores[i, 0])
        else:
            target, answer, given = str(classes[int(truth[i])])[:80], str(classes[int(answers[i])])[:80], float(scores[i, int(truth[i])])
        result.append(WorstRow(int(places[i]), target, answer, given, float(losses[i]), values))
    return tuple(result)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "(missing)" if value != value else f"{value:.6g}"  # noqa: PLR0124 - NaN
    return "(missing)" if value is None or value == MISSING_TEXT else str(value)[:80]


def _silent(_: str) -> None:
    """Say nothing."""
