"""The data plane: which revision answers, what it answers, and what is kept of it. It knows no protocol.

One prediction: choose a revision → run its graph → number the rows → log them → answer. Logging comes before
answering: a prediction that cannot be logged is refused (`log-unavailable`), because nobody could answer for it.

One instance belongs to one event loop; `install` swaps everything it serves in one assignment.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.clock import Clock
from mulle.core.errors import SpecError, UnavailableError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats import telemetry as names
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.formats.feedback_log import FeedbackItem, FeedbackWriter
from mulle.formats.prediction_log import LoggedColumn, LogWriter, Outcome, PredictionBatch, Source
from mulle.serve.runtimes.onnx import OnnxRuntime
from mulle.serve.telemetry.metrics import Metrics

BUCKETS = 100
MAX_REMEMBERED_IDS = 100_000


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary moment."""
        return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Served:
    """One revision, loaded and proven.

    Attributes:
        source: What the log says about it.
        manifest: Of its bundle.
        runtime: Its graph.
        weight: Per cent of the requests.
    """

    source: Source
    manifest: Manifest
    runtime: OnnxRuntime
    weight: int = 100
    categories: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    @property
    def number(self) -> int:
        """The revision number."""
        return self.source.revision


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything a deployment serves at one moment."""

    deployment: str
    environment: str
    generation: int
    revisions: tuple[Served, ...]
    salt: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class any of the revisions knows, in the order met."""
        return tuple(dict.fromkeys(name for served in self.revisions for name in served.manifest.classes))


@dataclass(frozen=True, slots=True)
class Answer:
    """What was predicted, numbered and logged."""

    served: Served
    scores: NDArray[np.float32]
    ids: Sequence[str]


def make_served(
    manifest: Manifest, runtime: OnnxRuntime, *, revision: int, model_version: int, run_id: str = "", weight: int = 100
) -> Served:
    """Return a revision ready to be installed."""
    source = Source(
        source=0,
        revision=revision,
        model=manifest.model,
        model_version=model_version,
        bundle_digest=manifest.digest(),
        run_id=run_id,
        task=manifest.task,
        classes=manifest.classes,
        positive=manifest.positive,
        entity=manifest.entity,
        columns=tuple(LoggedColumn(c.name, c.type) for c in manifest.columns),
    )
    categories = {c.name: frozenset(c.categories) for c in manifest.columns if c.categories is not None}
    return Served(source, manifest, runtime, weight, categories)


class DataPlane:
    """Predictions and feedback of one deployment.

    Args:
        serving: What to serve first.
        log: Where predictions are kept.
        feedback: Where feedback is kept.
        metrics: Where everything is counted.
        clock: The time.
        earlier_prefixes: Prefixes of writers of this deployment before this process: their ids are known too.
    """

    def __init__(
        self,
        serving: Serving,
        log: LogWriter,
        feedback: FeedbackWriter,
        metrics: Metrics,
        *,
        clock: Clock | None = None,
        earlier_prefixes: frozenset[str] = frozenset(),
    ) -> None:
        self.log = log
        self.metrics = metrics
        self._feedback = feedback
        self._clock = clock or SystemClock()
        self._earlier = earlier_prefixes
        # A client's own ids, so that feedback for them is recognised; bounded, the oldest go first.
        self._client_ids: dict[str, None] = {}
        self._n_chosen = 0
        self.serving = serving
        self.install(serving)

    def install(self, serving: Serving) -> None:
        """Serve `serving` from the next request on."""
        self.serving = serving
        self.metrics.put(names.GENERATION, serving.generation, deployment=serving.deployment)
        self.metrics.clear(names.MODEL_INFO)
        self.metrics.clear(names.WEIGHT)
        for served in serving.revisions:
            self.metrics.put(names.WEIGHT, served.weight, deployment=serving.deployment, revision=str(served.number))
            self.metrics.put(
                names.MODEL_INFO,
                1,
                deployment=serving.deployment,
                revision=str(served.number),
                model=served.source.model,
                model_version=str(served.source.model_version),
                bundle=served.source.bundle_digest[:12],
            )

    def choose(self, *, pinned: str | None = None, unit: str | None = None) -> Served:
        """Return the revision that answers a request.

        Args:
            pinned: The revision number the caller insists on.
            unit: Who asks: the same unit always gets the same revision while the weights stand. None: by chance.

        Raises:
            SpecError: `header-invalid`, `revision-unknown`.
        """
        revisions = self.serving.revisions
        if pinned is not None:
            for served in revisions:
                if str(served.number) == pinned.strip():
                    return served
            if not (pinned.isascii() and pinned.strip().isdigit()):
                raise SpecError(
                    "header-invalid",
                    f"{names.REVISION_HEADER} is {pinned[:40]!r}",
                    fix="send a revision number",
                    where=names.REVISION_HEADER,
                )
            raise SpecError(
                "revision-unknown",
                f"revision {pinned[:20]} is not being served",
                fix=f"use one of {', '.join(str(s.number) for s in revisions)}, or leave the header out",
                where=names.REVISION_HEADER,
            )
        if len(revisions) == 1:
            return revisions[0]
        self._n_chosen += 1
        token = unit if unit is not None else f"{self.log.prefix}:{self._n_chosen}"
        digest = hashlib.blake2b(f"{self.serving.salt}\x00{token}".encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest, "big") * BUCKETS >> 64
        for served in revisions:
            bucket -= served.weight
            if bucket < 0:
                return served
        return revisions[0]

    def predict(
        self,
        served: Served,
        arrays: Mapping[str, NDArray[Any]],
        *,
        started_ns: int,
        ids: Sequence[str] | None = None,
        entity: Sequence[str | None] | None = None,
    ) -> Answer:
        """Return the answer for rows that were encoded for `served`; when it returns, they are logged.

        Args:
            served: From `choose`.
            arrays: Raw column name to shape (n,).
            started_ns: Monotonic moment the request was complete.
            ids: The client's own ids, one per row, checked.
            entity: The entity's value per row.

        Raises:
            SpecError: a value does not fit the graph.
            CheckError: the graph failed or answered nonsense.
            UnavailableError: `log-unavailable`.
        """
        scores = served.runtime.run(arrays)
        n_rows = int(scores.shape[0])
        first = self.log.reserve(0 if ids is not None else n_rows)
        deployment = self.serving.deployment
        batch = PredictionBatch(
            source=served.source,
            time_ns=self._clock.now_ns(),
            latency_us=(self._clock.monotonic_ns() - started_ns) // 1000,
            arrays=arrays,
            outputs=scores,
            first=first,
            ids=ids,
            entity=entity,
        )
        try:
            n_bytes = self.log.append(batch)
        except UnavailableError:
            self.metrics.add(names.LOG_FAILURES, deployment=deployment)
            raise
        if ids is not None:
            self._remember(ids)
        self.metrics.add(names.LOG_BYTES, n_bytes, deployment=deployment)
        self.metrics.add(names.ROWS, n_rows, deployment=deployment, revision=str(served.number))
        self._count_anomalies(served, arrays)
        return Answer(served, scores, ids if ids is not None else [self.log.id_of(first + i) for i in range(n_rows)])

    def count(self, route: str, status: int, *, served: Served | None, seconds: float, unlogged: bool = False) -> None:
        """Count how a request ended; predictions are counted in the log too."""
        deployment = self.serving.deployment
        revision = "" if served is None else str(served.number)
        self.metrics.add(names.REQUESTS, deployment=deployment, route=route, revision=revision, status=str(status))
        if route != "/predict":
            return
        self.metrics.observe(seconds, deployment=deployment, revision=revision)
        if status >= 400:  # noqa: PLR2004 - where HTTP's errors begin
            outcome: Outcome = "unlogged" if unlogged else "refused" if status < 500 else "failed"  # noqa: PLR2004 - where the server's own begin
            self.log.count(0 if served is None else served.number, outcome, self._clock.now_ns())

    def accept_feedback(self, items: Sequence[FeedbackItem]) -> int:
        """Return how many items are about ids this server cannot place, after all items are on the disk.

        Blocking (a sync to disk): call it from a thread; one call at a time.

        Raises:
            UnavailableError: `log-unavailable`: do not acknowledge; sending again is harmless.
        """
        self._feedback.append(items)
        return sum(not item.known for item in items)

    def knows(self, prediction_id: str) -> bool:
        """Return whether this process, or one before it, gave out or accepted `prediction_id`."""
        return self.log.issued(prediction_id) or prediction_id in self._client_ids or prediction_id[:16] in self._earlier

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""
        return self._clock.now_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary moment."""
        return self._clock.monotonic_ns()

    def _remember(self, ids: Sequence[str]) -> None:
        for prediction_id in ids:
            self._client_ids[prediction_id] = None
        while len(self._client_ids) > MAX_REMEMBERED_IDS:
            del self._client_ids[next(iter(self._client_ids))]

    def _count_anomalies(self, served: Served, arrays: Mapping[str, NDArray[Any]]) -> None:
        for column in served.manifest.columns:
            n = _n_unseen(column, arrays[column.name], served.categories.get(column.name))
            if n:
                kind = "new_category" if column.type is ColumnType.TEXT else "out_of_range"
                self.metrics.add(names.ANOMALIES, n, deployment=self.serving.deployment, column=column.name, kind=kind)


def _n_unseen(column: ColumnInfo, values: NDArray[Any], categories: frozenset[str] | None) -> int:
    if column.type is ColumnType.TEXT:
        return 0 if categories is None else sum(v != MISSING_TEXT and v not in categories for v in values.tolist())
    n = 0
    # NaN compares false: missing is not out of range.
    if column.minimum is not None:
        n += int((values < column.minimum).sum())
    if column.maximum is not None:
        n += int((values > column.maximum).sum())
    return n
