"""The data plane: which revision answers, what it answers, and what is kept of it. It knows no protocol.

One prediction: choose a revision → run its graph together with what came in beside it → number the rows → log them →
answer. Logging comes before answering: a prediction that cannot be logged is refused (`log-unavailable`) unless the policy
says otherwise, because nobody could answer for it.

One instance belongs to one event loop; `install` swaps everything a deployment serves in one assignment.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

from mulle.core.clock import Clock
from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.formats.feedback_log import FeedbackItem
from mulle.serve.plane.batcher import Batcher, overloaded
from mulle.serve.plane.deployment import Deployment, Serving
from mulle.serve.plane.jobs import Batch, CallbackJob, Job
from mulle.serve.plane.served import Served
from mulle.serve.telemetry.registry import MetricsRegistry

LOG = logging.getLogger("mulle.serve")


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary moment."""
        return time.monotonic_ns()


class DataPlane:
    """All deployments of one worker.

    Args:
        registry: Where everything is counted.
        clock: The time.
        max_batch: Rows that run together at most.
        n_threads: Threads for models too dear for the loop; by default one per core.
        max_wait_ms: Estimated wait up to which requests are let in; None: see `Batcher`.
        refuse: False: under overload stop reading instead of refusing.
    """

    def __init__(
        self,
        registry: MetricsRegistry,
        *,
        clock: Clock | None = None,
        max_batch: int = 64,
        n_threads: int | None = None,
        max_wait_ms: float | None = None,
        refuse: bool = True,
    ) -> None:
        self.registry = registry
        self.deployments: dict[str, Deployment] = {}
        self.default = ""
        self.clock: Clock = clock or SystemClock()
        # The machine's clock is asked twice for every request: without a method around it.
        self.now_ns = time.time_ns if clock is None else clock.now_ns
        self.monotonic_ns = time.monotonic_ns if clock is None else clock.monotonic_ns
        self.batcher = Batcher(
            self._settle,
            max_batch=max_batch,
            n_threads=n_threads,
            max_wait_ns=None if max_wait_ms is None else max_wait_ms * 1e6,
            tight_wait_ns=None if max_wait_ms is None else max_wait_ms * 1e6,
            refuse=refuse,
            now_ns=self.monotonic_ns,
        )
        self._syncers: dict[str, _Syncer] = {}

    # ---- what is served

    def add(self, deployment: Deployment) -> None:
        """Serve one more deployment; the first is the one meant where a request names none."""
        self.deployments[deployment.name] = deployment
        self.registry.collectors.append(deployment.note_now)
        self.default = self.default or deployment.name
        for served in deployment.serving.revisions:
            self.batcher.lane_of(served)

    def install(self, serving: Serving) -> None:
        """Serve `serving` instead of what its deployment serves, from the next request on."""
        self.deployments[serving.deployment].install(serving)
        for served in serving.revisions:
            self.batcher.lane_of(served)

    def remove(self, name: str) -> Deployment:
        """Stop serving a deployment; what waits is still answered. Its log and feedback are the caller's to close.

        Raises:
            KeyError: it is not being served.
        """
        deployment = self.deployments.pop(name)
        deployment.note_now()
        self.registry.collectors.remove(deployment.note_now)
        if self.default == name:
            self.default = next(iter(self.deployments), "")
        return deployment

    def deployment(self, name: str) -> Deployment:
        """Return a deployment by name; an empty name means the first.

        Raises:
            SpecError: `deployment-unknown`.
        """
        found = self.deployments.get(name or self.default)
        if found is None:
            raise SpecError(
                "deployment-unknown",
                f"there is no deployment {name[:80]!r} here",
                fix="see /health for what is being served",
                where=name[:80],
            )
        return found

    def pick(self, deployment: str, *, pinned: str | None = None, unit: str | None = None) -> Served:
        """Return the revision that answers a request.

        Args:
            deployment: Its name; empty for the first.
            pinned: The revision number the caller insists on.
            unit: Who asks; sticky.

        Raises:
            SpecError: `deployment-unknown`, `revision-unknown`, `header-invalid`.
        """
        return self.deployment(deployment).pick(pinned, unit)

    # ---- predictions

    def refusal(self, served: Served, n_bytes: int, started_ns: int) -> UnavailableError | None:
        """Return why one more request for a revision is refused now, or None; a refusal is counted."""
        reason = self.batcher.refusal(served, n_bytes, started_ns)
        if reason is None:
            return None
        served.home.count_rejected(reason)
        return overloaded(reason)

    def submit(self, job: Job) -> None:
        """Take a job; its outcome comes through `job.finish`, on the loop. Never raises.

        Ask `refusal` first: what is submitted is run.
        """
        self.batcher.submit(job)

    async def answer(self, job: CallbackJob) -> CallbackJob:
        """Return the job with its outcome: `error`, or a batch that holds the answer. Refuses it when there is no room.

        When the awaiting task is cancelled the job is too, without hurting its mates.
        """
        error = self.refusal(job.served, job.n_bytes, job.started_ns)
        if error is not None:
            job.error = error
            job.served.home.count_failed(error, job.served.number, self.now_ns())
            return job
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job.callback = lambda _: None if done.done() else done.set_result(None)
        self.submit(job)
        try:
            await done
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        return job

    def close(self) -> None:
        """End the threads; nothing may be submitted any more."""
        self.batcher.close()

    # ---- feedback

    def accept_feedback(self, deployment: Deployment, items: Sequence[FeedbackItem]) -> int:
        """Return how many items are about ids this server cannot place, after all items are on the disk.

        Blocking (a sync to disk): call it from a thread; one call at a time.

        Raises:
            UnavailableError: `log-unavailable`: do not acknowledge; sending again is harmless.
        """
        deployment.feedback.append(items)
        return sum(not item.known for item in items)

    # ---- inside

    def _settle(self, batches: list[Batch], failed: list[Job]) -> None:
        """Log what ran, in one write per deployment, then tell every job its outcome."""
        now_ns = self.now_ns()
        if batches:
            mono = self.monotonic_ns()
            first = batches[0].served.home
            if all(batch.served.home is first for batch in batches):
                self._log(first, batches, now_ns, mono)
            else:
                homes = {id(batch.served.home): batch.served.home for batch in batches}
                for home in homes.values():
                    self._log(home, [batch for batch in batches if batch.served.home is home], now_ns, mono)
        for job in failed:
            if job.error is not None:
                job.served.home.count_failed(job.error, job.served.number, now_ns)
            _finish(job)

    def _log(self, home: Deployment, batches: list[Batch], now_ns: int, mono: int) -> None:
        try:
            n_bytes = home.log.append_all([home.record(batch, now_ns, mono) for batch in batches])
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left without an outcome
            self.leave_unlogged(home, batches, error if isinstance(error, MulleError) else _unwritable(error))
            return
        home.log_bytes.add(n_bytes)
        home.note_later(batches, mono)
        if home.log.policy.durability == "sync":
            syncer = self._syncers.get(home.name)
            if syncer is None or syncer.home is not home:
                syncer = self._syncers[home.name] = _Syncer(self, home)
            syncer.hold(batches)
            return
        tell(batches)

    def leave_unlogged(self, home: Deployment, batches: list[Batch], error: MulleError) -> None:
        """Refuse every job of batches that could not be logged."""
        home.log_failures.add(sum(len(batch.jobs) for batch in batches))
        now_ns = self.now_ns()
        for batch in batches:
            for job in batch.jobs:
                job.batch, job.error = None, error
                home.count_failed(error, batch.served.number, now_ns)
                _finish(job)


class _Syncer:
    """Holds answers until the disk has their rows; one sync at a time covers everything written before it began."""

    def __init__(self, plane: DataPlane, home: Deployment) -> None:
        self.home = home
        self._plane = plane
        self._held: list[tuple[int, list[Batch]]] = []
        self._task: asyncio.Task[None] | None = None

    def hold(self, batches: list[Batch]) -> None:
        self._held.append((self.home.log.written_through(), batches))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._held:
            waiting, self._held = self._held, []
            try:
                durable = await loop.run_in_executor(None, self.home.log.sync)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left without an outcome
                reason = error if isinstance(error, MulleError) else _unwritable(error)
                for _, batches in waiting:
                    self._plane.leave_unlogged(self.home, batches, reason)
                continue
            lost = self.home.log.lost_through
            self._held = [entry for entry in waiting if entry[0] > max(durable, lost)] + self._held
            for mark, batches in waiting:
                if mark <= lost:
                    self._plane.leave_unlogged(self.home, batches, _lost())
                elif mark <= durable:
                    tell(batches)
        self._task = None


def tell(batches: Sequence[Batch]) -> None:
    """Tell every job of `batches` that its answer is there."""
    for batch in batches:
        for job in batch.jobs[0].finish_together(batch):
            if not job.cancelled:
                _finish(job)
        # Jobs know their batch: as long as it knows them too, their inputs stay until the collector comes by.
        batch.jobs = []


def _finish(job: Job) -> None:
    try:
        job.finish()
    except Exception:
        # Its mates must have their answers.
        LOG.exception("an answer could not be handed over")


def _lost() -> UnavailableError:
    return UnavailableError("log-unavailable", "the disk may have lost the prediction", fix="check the disk of the log's folder")


def _unwritable(error: Exception) -> UnavailableError:
    LOG.error("the prediction log failed", exc_info=error)
    return UnavailableError(
        "log-unavailable", "the prediction could not be logged", fix="ask the operator: the server's log has the reason"
    )
