"""The holdout as it is scored, and the comparison of two models on it."""

from dataclasses import dataclass

import numpy as np

from mulle.core.errors import SpecError
from mulle.evaluate.curves import roc_curves
from mulle.evaluate.estimates import bootstrap_metrics
from mulle.evaluate.probing import Score
from mulle.evaluate.result import Comparison, Curve
from mulle.stats.measure import Problem, measure_once, predicted_classes
from mulle.stats.paired import DeLong, McNemar, delong, difference_of, mcnemar_exact
from mulle.stats.types import AnyArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class ChampionInfo:
    """What is special about the champion: its name, and its classes and threshold where they differ from the challenger's."""

    name: str = "champion"
    classes: tuple[str, ...] | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Holdout:
    """The rows that are judged: raw columns, encoded targets, and what the task is."""

    table: dict[str, AnyArray]
    truth: FloatArray | IntArray
    problem: Problem
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered on the holdout: scores (n, k), its metrics, and its metrics on every resample."""

    scores: FloatArray
    points: dict[str, float]
    samples: dict[str, FloatArray]


def compare_with_champion(
    score: Score, about: ChampionInfo, holdout: Holdout, challenger: Answers, *, seed: int, confidence: float
) -> Comparison:
    """Return challenger and champion on the same rows and the same resamples.

    Args:
        score: The champion's score function.
        about: The champion's name, classes and threshold.
        holdout: The rows.
        challenger: What the challenger answered on them.
        seed: Of the generator that drew the challenger's resamples; drawing them again is what pairs the two models.
        confidence: Of the two-sided intervals.

    Raises:
        SpecError: the champion has other classes, or its scores are no probabilities.
    """
    truth, problem, classes = holdout.truth, holdout.problem, holdout.classes
    own = tuple(about.classes or classes)
    scores = scores_of(score, holdout, len(own))
    if problem.task != "regression" and own != classes:
        if set(own) != set(classes):
            raise SpecError(
                "evaluate-champion-classes",
                "the champion has other classes than the challenger: they cannot be compared",
                fix="register without the champion gate, and promote by hand",
                facts={"challenger": ", ".join(classes)[:200], "champion": ", ".join(own)[:200]},
            )
        scores = scores[:, [own.index(c) for c in classes]]
    same = Problem(problem.task, problem.positive, problem.threshold if about.threshold is None else about.threshold)
    champion_points = measure_once(truth, scores, same)
    n_resamples = len(next(iter(challenger.samples.values())))
    champion_samples = bootstrap_metrics(truth, scores, same, n_resamples, np.random.default_rng(seed))
    shared = [name for name in challenger.samples if name in champion_samples and name in champion_points]
    metrics = {
        name: difference_of(
            (challenger.points[name], challenger.samples[name]), (champion_points[name], champion_samples[name]), confidence=confidence
        )
        for name in shared
    }
    area: DeLong | None = None
    right: McNemar | None = None
    lines: tuple[Curve, ...] = ()
    if problem.task != "regression":
        labels = np.asarray(truth, dtype=np.int64)
        lines = roc_curves(labels, scores, classes, problem) if problem.task == "binary" else ()
        right = mcnemar_exact(predicted_classes(challenger.scores, problem) == labels, predicted_classes(scores, same) == labels)
        up = (labels == problem.positive).astype(np.int64)
        if problem.task == "binary" and min(int(up.sum()), int((1 - up).sum())) > 1:
            area = delong(up, challenger.scores[:, problem.positive], scores[:, problem.positive])
    return Comparison(about.name, len(truth), confidence, metrics, area, right, lines)


def scores_of(score: Score, holdout: Holdout, n_classes: int) -> FloatArray:
    """Return the scores of the holdout as probabilities (n, n_classes) or predictions (n, 1).

    Raises:
        SpecError: another shape, or values that are no probabilities.
    """
    task, table, n = holdout.problem.task, holdout.table, len(holdout.truth)
    found = np.asarray(score(table), dtype=np.float64)
    width = 1 if task == "regression" else n_classes
    if found.shape != (n, width):
        raise SpecError(
            "evaluate-scores",
            f"the model answers shape {found.shape!r}; {(n, width)!r} was expected",
            fix="name the output that holds the probabilities, one column per class"
            if width > 1
            else "name the output that holds the prediction",
        )
    finite = found[np.isfinite(found)]
    if task != "regression" and len(finite) and (float(finite.min()) < -1e-4 or float(finite.max()) > 1.0 + 1e-4):  # noqa: PLR2004
        raise SpecError(
            "evaluate-scores",
            f"the model answers from {float(finite.min()):.4g} to {float(finite.max()):.4g}: these are no probabilities",
            fix="export the model with its probabilities, not with its decision function",
        )
    return found if task == "regression" else np.clip(found, 0.0, 1.0)
