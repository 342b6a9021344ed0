"""Adaptive micro-batching: what arrives together runs together, and nothing ever waits for more to come.

A model that is cheaper than a turn of the loop runs on the loop: everything that came in during one turn is one batch,
without timer or thread. A dearer one runs in a pool of threads; while all of them are busy its queue grows, and a thread
that gets free takes as much of it as pays, by the cost curve measured on this host. Neither adds any wait when idle.

A job that was cancelled or has expired leaves the queue without hurting the others; one that breaks its batch is found by
running its mates without it.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from mulle.core.errors import CheckError, MulleError, UnavailableError
from mulle.serve.plane.admission import Admission, AdmissionPolicy
from mulle.serve.plane.jobs import Batch, Job
from mulle.serve.plane.pool import Pool, n_cores
from mulle.serve.plane.served import Served

LOG = logging.getLogger("mulle.serve")
INLINE_NS = 100_000
"""Up to what one request may cost to be answered on the loop."""
_TURN_NS = 2_000_000
"""How long one turn of the loop may answer before connections are looked at again."""
_MS = 1_000_000
_LOOP_TIGHT_NS = 1.0 * _MS
_LOOP_BURST_NS = 50.0 * _MS
_POOL_BURST_NS = 250.0 * _MS
_POOL_BURST_REQUESTS = 64
# Hundreds of clients that ask in the same instant are a burst however dear the model is; what goes on for longer than the
# quarter of a second in which twice the capacity fills the limit above is not.
_SURGE_NS = 250.0 * _MS
_SURGE_WAIT_NS = 2_000.0 * _MS
# While more is offered than can be answered. An accepted request waits for what runs, then runs with what waited beside it:
# two requests' work in the queue is about four to five times a lone request's latency. Measured at twice the capacity with
# models of 0.5 and 5 ms: one request's work less costs 5 to 10 % of the answers (batches get too small), one more costs two
# more such latencies. Below 2 ms what counts is how often a thread and the loop hand the interpreter to each other.
_POOL_TIGHT_REQUESTS = 2
_POOL_TIGHT_NS = 2.0 * _MS
# Less work than this is not worth handing to a thread while more waits.
_WORTH_NS = 1.0 * _MS


class Lane:
    """The queue of one revision.

    Attributes:
        inline: Whether its model is cheap enough for the loop.
        row_ns: What one row in a batch of the best size costs one thread, or its share of a thread of the pool.
        portion: Rows a thread takes at most at a time.
        since_ns: Monotonic moment from which on something has been waiting.
    """

    __slots__ = ("door", "inline", "max_batch", "n_rows", "portion", "queue", "row_ns", "served", "share", "since_ns")

    def __init__(self, served: Served, max_batch: int, door: Admission, *, inline: bool, share: int) -> None:
        self.served = served
        self.max_batch = max_batch
        self.door = door
        self.inline = inline
        self.share = share
        self.queue: deque[Job] = deque()
        self.n_rows = 0
        self.since_ns = 0
        self.row_ns = 0.0
        self.portion = 1
        self.learn()

    def learn(self) -> None:
        """Take over what the cost curve has learnt."""
        curve = self.served.curve
        row_ns = curve.row_ns(self.max_batch)
        self.row_ns = row_ns / self.share
        self.portion = min(self.max_batch, max(curve.best_batch(self.max_batch), int(_WORTH_NS / row_ns)))

    def take(self, max_rows: int) -> list[Job]:
        """Return the next jobs that may share a batch of at most `max_rows` rows; a larger single job is taken alone."""
        queue = self.queue
        first = queue.popleft()
        jobs, n_rows, key = [first], first.n_rows, first.key
        if key is not None:
            while queue and n_rows < max_rows:
                job = queue[0]
                if job.key != key or n_rows + job.n_rows > max_rows:
                    break
                n_rows += job.n_rows
                jobs.append(queue.popleft())
        self.n_rows -= n_rows
        return jobs


class Batcher:
    """All lanes of a worker.

    Args:
        settle: Called on the loop with batches that ran, and jobs that have an error instead; it logs, counts and answers.
        max_batch: Rows that run together at most.
        n_threads: Threads for models too dear for the loop; by default one per core this process may use.
        max_wait_ns: Estimated wait up to which a burst is let in; None: 50 ms on the loop; in the pool 250 ms (or 64
            requests), and 2 s for what comes in one instant.
        tight_wait_ns: The same while more is offered than can be answered; None: 1 ms on the loop, two requests' work (at
            least 2 ms) in the pool.
        n_queued: Requests waiting at most.
        n_queued_bytes: Bytes of requests waiting at most.
        refuse: False: never refuse for the wait; the transport stops reading instead.
        now_ns: The monotonic clock.
    """

    def __init__(
        self,
        settle: Callable[[list[Batch], list[Job]], None],
        *,
        max_batch: int = 64,
        n_threads: int | None = None,
        max_wait_ns: float | None = None,
        tight_wait_ns: float | None = None,
        n_queued: int = 10_000,
        n_queued_bytes: int = 256 << 20,
        refuse: bool = True,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.max_batch = max_batch
        self.n_jobs = 0
        self.n_bytes = 0
        self._n_runs = 0
        self.n_cancelled = 0
        self.n_expired = 0
        self._settle = settle
        self._now_ns = now_ns
        self._loop = asyncio.get_running_loop()
        self._ready: list[Lane] = []
        self._waiting: deque[Lane] = deque()
        self._scheduled = False
        self._pool = Pool(n_threads or n_cores(), self._collect)
        self._max_wait_ns = max_wait_ns
        self._tight_wait_ns = tight_wait_ns
        # Who stops reading bounds the number by that: a connection is heard again when its own requests are answered.
        self._limits = {"n_requests": n_queued if refuse else sys.maxsize, "n_bytes": n_queued_bytes}
        never = float("inf")
        self._door = Admission(
            AdmissionPolicy(
                burst_ns=(max_wait_ns or _LOOP_BURST_NS) if refuse else never,
                tight_ns=(tight_wait_ns or min(_LOOP_TIGHT_NS, max_wait_ns or never)) if refuse else never,
                **self._limits,
            )
        )
        self._refuse = refuse
        self._turned_ns = 0
        self._was_busy = False

    @property
    def n_threads(self) -> int:
        """Threads for models too dear for the loop."""
        return self._pool.n_threads

    @property
    def is_full(self) -> bool:
        """Whether a transport that does not refuse should stop reading."""
        return not self._refuse and self.n_jobs > 2 * self.max_batch

    def lane_of(self, served: Served) -> Lane:
        """Return the lane of a revision, made when first asked for."""
        lane = served.lane
        if lane is None:
            unit = served.curve.estimate_ns(1)
            inline = unit <= INLINE_NS and not served.manifest.image
            if inline:
                lane = Lane(served, self.max_batch, self._door, inline=True, share=1)
            else:
                lane = Lane(served, self.max_batch, self._pool_door(unit), inline=False, share=self._pool.n_threads)
            served.lane = lane
        return lane

    def refusal(self, served: Served, n_bytes: int, started_ns: int) -> str | None:
        """Return why one more request for `served` is refused (`wait`, `count`, `bytes`), or None; costs a fraction of a microsecond."""
        lane = served.lane or self.lane_of(served)
        door = lane.door
        wait_ns = lane.n_rows * lane.row_ns
        if wait_ns <= door.limit_ns and self.n_jobs < door.policy.n_requests and self.n_bytes + n_bytes <= door.policy.n_bytes:
            return None
        return door.refusal(started_ns, wait_ns=wait_ns, n_requests=self.n_jobs, n_bytes=self.n_bytes + n_bytes, since_ns=lane.since_ns)

    def submit(self, job: Job) -> None:
        """Take a job; its outcome comes through `job.finish`."""
        lane = job.served.lane or self.lane_of(job.served)
        if not lane.queue:
            self._ready.append(lane)
            lane.since_ns = job.started_ns
        lane.queue.append(job)
        lane.n_rows += job.n_rows
        self.n_jobs += 1
        self.n_bytes += job.n_bytes
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    # ---- inside

    def _turn(self) -> None:
        """Run what came in since the last turn."""
        self._scheduled = False
        began = now = self._now_ns()
        if self._was_busy:
            self._door.note_period(now, now - self._turned_ns)
        self._door.look(now)
        self._turned_ns, self._was_busy = now, True
        self._loop.call_soon(self._rest)
        batches: list[Batch] = []
        failed: list[Job] = []
        again: list[Lane] = []
        ready, self._ready = self._ready, []
        for lane in ready:
            if not lane.inline:
                self._waiting.append(lane)
            elif self._run_inline(lane, began, batches, failed):
                again.append(lane)
        now = self._now_ns()
        self._feed(failed, now)
        if again:
            self._ready += again
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._turn)
        if batches or failed:
            self._done(batches, failed)

    def _run_inline(self, lane: Lane, began: int, batches: list[Batch], failed: list[Job]) -> bool:
        """Run what waits in a lane on the loop; return whether some of it has to wait for the next turn."""
        curve = lane.served.curve
        now = began
        while lane.queue:
            if now - began > _TURN_NS:
                return True
            jobs = self._living(lane.take(self.max_batch), now, failed)
            if not jobs:
                continue
            if len(jobs) == 1 and curve.estimate_ns(jobs[0].n_rows) > _TURN_NS and self._pool.n_free > 0:
                # One request of thousands of rows must not keep everybody else waiting.
                self._in_thread(lane, jobs)
                continue
            run_batch(lane.served, jobs, now, batches, failed)
            now = self._now_ns()
        return False

    def _rest(self) -> None:
        """Take note that a turn of the loop went by without work: what comes next did not wait for us."""
        if not self._scheduled:
            self._was_busy = False

    def _pool_door(self, unit_ns: float) -> Admission:
        never = float("inf")
        each = unit_ns / self._pool.n_threads
        burst = self._max_wait_ns or max(_POOL_BURST_NS, _POOL_BURST_REQUESTS * each)
        tight = self._tight_wait_ns or min(max(_POOL_TIGHT_NS, _POOL_TIGHT_REQUESTS * unit_ns), burst)
        surge = _SURGE_WAIT_NS if self._max_wait_ns is None else 0.0
        if not self._refuse:
            burst = tight = never
        return Admission(AdmissionPolicy(burst_ns=burst, tight_ns=tight, surge_ns=_SURGE_NS, surge_wait_ns=surge, **self._limits))

    def _feed(self, failed: list[Job], now: int) -> None:
        """Give free threads what waits, lane by lane, as much to each as pays and leaves something for the others."""
        while self._waiting and self._pool.n_free > 0:
            lane = self._waiting.popleft()
            if not lane.queue:
                continue
            share = -(-lane.n_rows // self._pool.n_free)
            jobs = self._living(lane.take(max(1, min(lane.portion, share))), now, failed)
            if lane.queue:
                self._waiting.append(lane)
            if jobs:
                self._in_thread(lane, jobs)

    def _in_thread(self, lane: Lane, jobs: list[Job]) -> None:
        alone = self._pool.n_free == self._pool.n_threads and not lane.queue
        self._pool.submit(partial(_run_apart, lane.served, jobs, self._now_ns(), alone=alone))

    def _collect(self, results: list[tuple[list[Batch], list[Job]]]) -> None:
        batches = [batch for found, _ in results for batch in found]
        failed = [job for _, jobs in results for job in jobs]
        self._feed(failed, self._now_ns())
        self._done(batches, failed)

    def _living(self, jobs: list[Job], now: int, failed: list[Job]) -> list[Job]:
        """Return the jobs somebody still waits for; the others have their outcome."""
        alive: list[Job] = []
        for job in jobs:
            if job.cancelled:
                self.n_cancelled += 1
                job.error = _gone()
                failed.append(job)
            elif job.deadline_ns and now > job.deadline_ns:
                self.n_expired += 1
                job.error = expired()
                failed.append(job)
            else:
                alive.append(job)
        return alive

    def _done(self, batches: list[Batch], failed: list[Job]) -> None:
        for batch in batches:
            self.n_jobs -= len(batch.jobs)
            for job in batch.jobs:
                self.n_bytes -= job.n_bytes
            self._n_runs += 1
            # Every eighth tells enough, and looking at the curve costs as much as a small model. A model held in two widths costs
            # two things: what was measured at load stands.
            if not self._n_runs & 7 and batch.served.runtime.wide is None:
                batch.served.curve.observe(batch.n_rows, batch.took_ns)
                if batch.served.lane is not None:
                    batch.served.lane.learn()
        for job in failed:
            self.n_jobs -= 1
            self.n_bytes -= job.n_bytes
        self._settle(batches, failed)


def run_batch(served: Served, jobs: list[Job], began_ns: int, batches: list[Batch], failed: list[Job], *, alone: bool = False) -> None:
    """Run `jobs` together; if that fails, each alone, so that only the culprit is left without an answer.

    Args:
        served: The revision.
        jobs: Of one kind and key.
        began_ns: Monotonic.
        batches: Takes what ran.
        failed: Takes the jobs with an error.
        alone: Whether nothing else runs: then a large model may take all cores.
    """
    try:
        batch = served.run(jobs, alone=alone) if alone else served.run(jobs)
    except Exception as error:  # noqa: BLE001 - whatever a model or a value does must not leave its request unanswered
        if len(jobs) > 1:
            for job in jobs:
                run_batch(served, [job], time.monotonic_ns(), batches, failed)
            return
        jobs[0].error = error if isinstance(error, MulleError) else _broken(error)
        failed.append(jobs[0])
        return
    batch.began_ns = began_ns
    batch.took_ns = time.monotonic_ns() - began_ns
    at = 0
    for job in jobs:
        job.batch = batch
        job.at = at
        at += job.n_rows
    batches.append(batch)


def overloaded(reason: str) -> UnavailableError:
    """Return the refusal of a request that would wait too long."""
    what = {
        "wait": "more is being asked than can be answered in time",
        "count": "too many requests are waiting",
        "bytes": "the waiting requests take too much memory",
    }[reason]
    return UnavailableError(
        "overloaded", what, fix="try again after the time in Retry-After, or add workers", facts={"retry_after_s": "1", "reason": reason}
    )


def expired() -> UnavailableError:
    """Return the outcome of a job whose deadline passed while it waited."""
    return UnavailableError(
        "deadline-expired", "the request's own deadline passed before its turn came", fix="allow more time, or try again"
    )


def _run_apart(served: Served, jobs: list[Job], began_ns: int, *, alone: bool) -> tuple[list[Batch], list[Job]]:
    batches: list[Batch] = []
    failed: list[Job] = []
    run_batch(served, jobs, began_ns, batches, failed, alone=alone)
    return batches, failed


def _gone() -> UnavailableError:
    return UnavailableError("request-cancelled", "the client has gone", fix="nothing to do")


def _broken(error: Exception) -> CheckError:
    LOG.error("a prediction failed", exc_info=error)
    return CheckError(
        "internal", f"the server failed on this request: {type(error).__name__}", fix="ask the operator: the log has the reason"
    )
