"""Batching against its promise: each request has exactly one outcome, its own, whatever happens around it."""

import asyncio
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.core.errors import SpecError
from mulle.serve.plane.batcher import Batcher
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.jobs import Batch, CallbackJob

POISON = -1.0


class Clock:
    """Turned by hand, in nanoseconds."""

    def __init__(self):
        self.now = 1_000

    def __call__(self):
        return self.now


class Doubling:
    """A revision that answers twice what it was asked plus its number, and breaks on poison like a graph would."""

    def __init__(self, number, cost_ns):
        self.number = number
        self.curve = CostCurve({1: cost_ns, 64: cost_ns * 4})
        self.manifest = SimpleNamespace(image=None)
        self.runtime = SimpleNamespace(wide=None)
        self.lane = None
        self.biggest = 0

    def run(self, jobs, *, alone=False):
        del alone
        values = np.concatenate([np.array(job.inputs, dtype=np.float32) for job in jobs])[:, None]
        self.biggest = max(self.biggest, len(values))
        if (values == POISON).any():
            raise SpecError("poison", "a value breaks the graph", fix="send another")
        return Batch(self, jobs, values * 2 + self.number)


@st.composite
def stories(draw):
    """Requests with their sizes, kinds, deadlines; cancellations, turns of the clock and a swap of revisions among them."""
    steps = st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 90), st.sampled_from(["fine", "fine", "fine", "poison"]), st.sampled_from([0, 0, 50])),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("tick"), st.integers(1, 100)),
        st.tuples(st.just("rest"), st.integers(1, 3)),
        st.just(("swap",)),
    )
    return draw(st.lists(steps, max_size=40)), draw(st.sampled_from([5_000.0, 50_000_000.0])), draw(st.sampled_from([1, 8, 64]))


class Life:
    """One batcher, and what was asked of it."""

    def __init__(self, cost_ns, max_batch):
        self.clock = Clock()
        self.finished = []
        self.asked = []
        self.serial = 0.0
        self.cost_ns = cost_ns
        self.revisions = [Doubling(0, cost_ns)]
        self.batcher = Batcher(self.settle, max_batch=max_batch, n_threads=2, refuse=False, now_ns=self.clock)

    def settle(self, batches, failed):
        for job in [*(job for batch in batches for job in batch.jobs), *failed]:
            job.finish()

    async def ask(self, n_rows, kind, allowed):
        values = [self.serial + i for i in range(n_rows)]
        self.serial += n_rows
        if kind == "poison":
            values[-1] = POISON
        now = self.clock.now
        job = CallbackJob(self.revisions[-1], "rows", values, n_rows, now, n_bytes=n_rows, deadline_ns=now + allowed if allowed else 0)
        job.callback = self.finished.append
        self.asked.append((job, kind))
        self.batcher.submit(job)

    async def cancel(self, i):
        if self.asked:
            self.asked[i % len(self.asked)][0].cancelled = True

    async def tick(self, ns):
        self.clock.now += ns

    async def rest(self, turns):
        for _ in range(turns):
            await asyncio.sleep(0)

    async def swap(self):
        self.revisions.append(Doubling(len(self.revisions), self.cost_ns))


async def live(story, cost_ns, max_batch):
    """Return the jobs of a story with what happened to each."""
    life = Life(cost_ns, max_batch)
    for verb, *arguments in story:
        await getattr(life, verb)(*arguments)
    for _ in range(2_000):
        if len(life.finished) == len(life.asked):
            break
        await asyncio.sleep(0.001)
    life.batcher.close()
    return life.asked, life.finished, life.batcher, life.revisions


@settings(max_examples=150, deadline=None)
@given(stories())
def test_every_request_has_exactly_one_outcome_and_it_is_its_own(told):
    """Not lost, not doubled, not swapped: an answer holds the request's own values, from the revision it was sent to."""
    story, cost_ns, max_batch = told
    asked, finished, batcher, revisions = asyncio.run(live(story, cost_ns, max_batch))

    assert len(asked) == len(finished)
    assert {id(job) for job, _ in asked} == {id(job) for job in finished}
    for job, kind in asked:
        if job.error is not None:
            expected = {"poison"} if kind == "poison" else set()
            expected |= {"request-cancelled"} if job.cancelled else set()
            expected |= {"deadline-expired"} if job.deadline_ns else set()
            assert job.error.code in expected
        else:
            assert "fine" == kind
            values = np.array(job.inputs, dtype=np.float32)[:, None]
            assert (values * 2 + job.served.number).tobytes() == job.scores.tobytes()
    assert (0, 0) == (batcher.n_jobs, batcher.n_bytes)
    largest = max((job.n_rows for job, _ in asked), default=0)
    assert max(revision.biggest for revision in revisions) <= max(max_batch, largest)


def test_a_poisonous_request_leaves_its_mates_unharmed():
    """One of forty breaks the graph: it alone has an error, and the others ran without it."""
    story = [("ask", 1, "poison" if i == 17 else "fine", 0) for i in range(40)]

    asked, *_ = asyncio.run(live(story, 5_000.0, 64))

    assert [17] == [i for i, (job, _) in enumerate(asked) if job.error is not None]


@pytest.mark.parametrize("cost_ns", [5_000.0, 50_000_000.0], ids=["on the loop", "in the pool"])
def test_what_arrives_together_runs_together(cost_ns):
    """Without any wait: sixty requests of one turn become few batches, and a single one is never held."""
    asked, _, _, revisions = asyncio.run(live([("ask", 1, "fine", 0)] * 60, cost_ns, 64))

    assert 60 == sum(job.error is None for job, _ in asked)
    assert revisions[0].biggest >= 30


def test_a_cancelled_mate_does_not_leave_the_others_unanswered():
    """The defect other batchers have had: half of a batch leaves, the other half still gets its answers."""
    story = [("ask", 1, "fine", 0) for _ in range(20)] + [("cancel", i) for i in range(0, 20, 2)]

    asked, *_ = asyncio.run(live(story, 5_000.0, 64))

    assert [i for i in range(20) if i % 2] == [i for i, (job, _) in enumerate(asked) if job.error is None]


def test_answers_are_equal_to_unbatched_ones_over_random_interleavings():
    """Any order of arrival gives each request the same bits."""
    generator = random.Random(5)  # noqa: S311 - an order of arrival
    for _ in range(20):
        story = [("ask", generator.randint(1, 5), "fine", 0) for _ in range(30)]
        for _ in range(10):
            story.insert(generator.randrange(len(story)), ("rest", 1))
        together, *_ = asyncio.run(live(story, 5_000.0, 64))
        alone, *_ = asyncio.run(live(story, 5_000.0, 1))

        assert [job.scores.tobytes() for job, _ in alone] == [job.scores.tobytes() for job, _ in together]
