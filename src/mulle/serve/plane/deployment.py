"""One deployment of a worker: its revisions, its log and feedback, its counters."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.formats import telemetry as names
from mulle.formats.feedback_log import FeedbackWriter
from mulle.formats.prediction_block import PREFIX_DIGITS
from mulle.formats.prediction_log import LogWriter, Outcome, PredictionBatch
from mulle.release.traffic import choose, cycle_of, place_of
from mulle.serve.plane.jobs import Batch, Job
from mulle.serve.plane.served import Served, logged_outputs
from mulle.serve.telemetry.registry import Cell, MetricsRegistry

MAX_REMEMBERED_IDS = 100_000
_NOTE_ROWS = 256
_NOTE_S = 0.05
_OVERLOADED = 503
_OUTCOMES: dict[str, Outcome] = {
    "overloaded": "shed",
    "deadline-expired": "expired",
    "request-cancelled": "cancelled",
    "log-unavailable": "unlogged",
}


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


class RevisionCells:
    """The counters of one revision, bound once."""

    def __init__(self, registry: MetricsRegistry, deployment: str, served: Served) -> None:
        labels = {"deployment": deployment, "revision": str(served.number)}
        self.rows = registry.counter(names.ROWS, **labels)
        self.latency = registry.histogram(names.LATENCY, **labels)
        self.queue_wait = registry.histogram(names.QUEUE_WAIT, **labels)
        self.batch_rows = registry.histogram(names.BATCH_ROWS, **labels)
        self.inference = registry.histogram(names.INFERENCE, **labels)
        self.classes = registry.classes(deployment, str(served.number), served.manifest.classes)
        self.has_classes = bool(served.manifest.classes)


class Deployment:
    """Predictions and feedback of one deployment in one worker.

    Args:
        serving: What to serve first.
        log: Where predictions are kept.
        feedback: Where feedback is kept.
        registry: Where everything is counted.
        earlier_prefixes: Prefixes of writers of this deployment before this process: their ids are known too.
    """

    def __init__(
        self,
        serving: Serving,
        log: LogWriter,
        feedback: FeedbackWriter,
        registry: MetricsRegistry,
        *,
        earlier_prefixes: frozenset[str] = frozenset(),
    ) -> None:
        self.name = serving.deployment
        self.log = log
        self.feedback = feedback
        self.registry = registry
        self.log_bytes = registry.counter(names.LOG_BYTES, deployment=self.name)
        self.log_failures = registry.counter(names.LOG_FAILURES, deployment=self.name)
        self._dropped = registry.total(names.LOG_DROPPED, deployment=self.name)
        self._earlier = earlier_prefixes
        # A client's own ids, so that feedback for them is recognised; bounded, the oldest go first.
        self._client_ids: dict[str, None] = {}
        self._cells: dict[int, RevisionCells] = {}
        self._requests: dict[tuple[str, str, int], Cell] = {}
        self._rejected: dict[str, Cell] = {}
        self._shed: dict[tuple[str, int, str], int] = {}
        self._turn = log.prefix % 100
        self._id_prefix = log.id_of(0)[:PREFIX_DIGITS]
        self._cycle: list[Served] = []
        self._notes: list[tuple[Batch, int]] = []
        self._n_noted = 0
        self._noting: asyncio.TimerHandle | None = None
        self.serving = serving
        self.only: Served | None = None
        self._order: list[Served] = []
        self._weights: list[int] = []
        self.install(serving)

    def install(self, serving: Serving) -> None:
        """Serve `serving` from the next request on."""
        previous, self.serving = self.serving, serving
        registry, name = self.registry, self.name
        for served in previous.revisions:
            registry.forget(names.WEIGHT, deployment=name, revision=str(served.number))
            registry.forget(names.MODEL_INFO, deployment=name, revision=str(served.number))
        registry.gauge(names.GENERATION, deployment=name).put(serving.generation)
        for served in serving.revisions:
            served.home = self
            self._cells[served.number] = RevisionCells(registry, name, served)
            registry.gauge(names.WEIGHT, deployment=name, revision=str(served.number)).put(served.weight)
            registry.gauge(
                names.MODEL_INFO,
                deployment=name,
                revision=str(served.number),
                model=served.source.model,
                model_version=str(served.source.model_version),
                bundle=served.source.bundle_digest[:12],
            ).put(1)
        weighted = [served for served in serving.revisions if served.weight > 0]
        # By number, so that the newest stands last on the line: what it wins, it wins from one side.
        self._order = sorted(weighted, key=lambda served: served.number)
        self._weights = [served.weight for served in self._order]
        self._cycle = [self._order[i] for i in cycle_of(self._weights)]
        self.only = self._order[0] if len(self._order) == 1 else None

    def tell_log(self) -> None:
        """Count what was refused, and what the log had to leave out."""
        self.count_shed()
        self._dropped.tell(self.log.n_dropped)

    def retire(self) -> None:
        """Tell nothing of this deployment any more; what was counted stays."""
        for name in (names.GENERATION, names.WEIGHT, names.MODEL_INFO, names.RELOAD_OK, names.LOG_BACKLOG):
            self.registry.forget(name, deployment=self.name)

    def pick(self, pinned: str | None, unit: str | None) -> Served:
        """Return the revision that answers a request.

        Args:
            pinned: The revision number the caller insists on.
            unit: Who asks: the same unit always gets the same revision while the weights stand. None: by turns.

        Raises:
            SpecError: `header-invalid`, `revision-unknown`.
        """
        if pinned is not None:
            return self._pinned(pinned)
        if self.only is not None:
            return self.only
        if unit is not None:
            return self._order[choose(self._weights, place_of(self.serving.salt, unit))]
        self._turn = turn = (self._turn + 1) % len(self._cycle)
        return self._cycle[turn]

    def record(self, batch: Batch, now_ns: int, monotonic_ns: int) -> PredictionBatch:
        """Return what the log keeps of a batch; its rows get their numbers here."""
        jobs = batch.jobs
        batch.first = self.log.reserve(batch.n_rows)
        batch.id_of = self.log.id_of
        batch.id_prefix = self._id_prefix
        batch.started_ns = [job.started_ns for job in jobs]
        waits = [(monotonic_ns - started) // 1000 for started in batch.started_ns]
        sizes = None if len(jobs) == batch.n_rows else [job.n_rows for job in jobs]
        latency = np.array(waits, dtype=np.uint32)
        own = [job for job in jobs if job.ids is not None or job.entity is not None]
        ids = [job.ids for job in jobs] if own else []
        entities = [job.entity for job in jobs] if own else []
        batch.client_ids = any(ids)
        return PredictionBatch(
            source=batch.served.source,
            time_ns=now_ns,
            latency_us=latency if sizes is None else np.repeat(latency, sizes),
            numbers=batch.numbers,
            texts=batch.texts,
            outputs=logged_outputs(batch),
            first=batch.first,
            ids=_per_row(ids, jobs) if batch.client_ids else None,
            entity=_per_row(entities, jobs) if any(entities) else None,
            n_requests=len(jobs),
        )

    def note_later(self, batches: Sequence[Batch], monotonic_ns: int) -> None:
        """Count batches that were logged, soon: after their answers have left, and several at once.

        What is counted late by at most 50 ms costs a small batch half as much.
        """
        for batch in batches:
            self._notes.append((batch, monotonic_ns))
            self._n_noted += batch.n_rows
            if batch.client_ids:
                for job in batch.jobs:
                    if job.ids is not None:
                        self._remember(job.ids)
        if self._n_noted >= _NOTE_ROWS:
            self.note_now()
        elif self._noting is None:
            self._noting = asyncio.get_running_loop().call_later(_NOTE_S, self.note_now)

    def note_now(self) -> None:
        """Count what `note_later` put off; called before anybody looks at the counters."""
        self.count_shed()
        notes, self._notes, self._n_noted = self._notes, [], 0
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        groups: dict[int, list[tuple[Batch, int]]] = {}
        for note in notes:
            groups.setdefault(id(note[0].served), []).append(note)
        for group in groups.values():
            self._note(group)

    def _note(self, notes: list[tuple[Batch, int]]) -> None:
        served = notes[0][0].served
        cells = self._cells.get(served.number)
        if cells is None:
            return
        batches = [batch for batch, _ in notes]
        cells.rows.add(sum(batch.n_rows for batch in batches))
        cells.batch_rows.observe_many([batch.n_rows for batch in batches])
        cells.inference.observe_many([batch.took_ns * 1e-9 for batch in batches])
        cells.latency.observe_many([(answered - started) * 1e-9 for batch, answered in notes for started in batch.started_ns])
        cells.queue_wait.observe_many([(batch.began_ns - started) * 1e-9 for batch in batches for started in batch.started_ns])
        if cells.has_classes:
            cells.classes.add_many(served.label_indices(np.concatenate([batch.scores for batch in batches])))
        for column, kind, n in served.anomalies(batches):
            self.registry.counter(names.ANOMALIES, deployment=self.name, column=column, kind=kind).add(n)

    def count(self, route: str, revision: int, status: int, n: int = 1) -> None:
        """Count how `n` requests ended."""
        key = (route, str(revision) if revision else "", status)
        cell = self._requests.get(key)
        if cell is None:
            cell = self._requests[key] = self.registry.counter(
                names.REQUESTS, deployment=self.name, route=names.route_label(route), revision=key[1], status=str(status)
            )
        cell.add(n)

    def shed(self, route: str, revision: int, reason: str) -> None:
        """Take note that a request was refused under overload; counted by `count_shed`, because refusing must cost little."""
        key = (route, revision, reason)
        self._shed[key] = self._shed.get(key, 0) + 1

    def count_shed(self) -> None:
        """Count what `shed` took note of; called before anybody looks at the counters."""
        if not self._shed:
            return
        noted, self._shed = self._shed, {}
        now_ns = time.time_ns()
        for (route, revision, reason), n in noted.items():
            self.registry.counter(names.REJECTED, deployment=self.name, reason=reason).add(n)
            self.count(route, revision, _OVERLOADED, n)
            self.log.count(revision, "shed", now_ns, n)

    def count_rejected(self, reason: str) -> None:
        """Count a request that was refused to protect the others."""
        cell = self._rejected.get(reason)
        if cell is None:
            cell = self._rejected[reason] = self.registry.counter(names.REJECTED, deployment=self.name, reason=reason)
        cell.add()

    def count_failed(self, error: MulleError, revision: int, now_ns: int) -> None:
        """Count a request that got no answer, in the log and where it has a counter of its own."""
        outcome = _OUTCOMES.get(error.code)
        if outcome is None:
            outcome = "refused" if isinstance(error, SpecError) else "shed" if isinstance(error, UnavailableError) else "failed"
        self.log.count(revision, outcome, now_ns)
        name = {"expired": names.EXPIRED, "cancelled": names.CANCELLED}.get(outcome)
        if name is not None:
            self.registry.counter(name, deployment=self.name, revision=str(revision) if revision else "").add()

    def knows(self, prediction_id: str) -> bool:
        """Return whether this process, or one before it, gave out or accepted `prediction_id`."""
        return self.log.issued(prediction_id) or prediction_id in self._client_ids or prediction_id[:16] in self._earlier

    def _pinned(self, pinned: str) -> Served:
        for served in self.serving.revisions:
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
            fix=f"use one of {', '.join(str(s.number) for s in self.serving.revisions)}, or leave the header out",
            where=names.REVISION_HEADER,
        )

    def _remember(self, ids: Sequence[str]) -> None:
        for prediction_id in ids:
            self._client_ids[prediction_id] = None
        while len(self._client_ids) > MAX_REMEMBERED_IDS:
            del self._client_ids[next(iter(self._client_ids))]


def _per_row(values: "list[Sequence[str] | None] | list[Sequence[str | None] | None]", jobs: list[Job]) -> list[str | None]:
    rows: list[str | None] = []
    for value, job in zip(values, jobs, strict=True):
        rows.extend([None] * job.n_rows if value is None else value)
    return rows
