"""Lets requests that arrive one by one go on together.

gRPC hands over one new request per turn of the loop, so that "what came in during this turn" would always be a batch of
one: run, logged and counted alone, which costs about as much as gRPC itself. Now and then a request (one in 128; where
nothing comes of it one in 1,024) is held for a tick, to see how many come along; where hardly any do, that is all. Where
they crowd, each one waits for as many as lately came along, and never longer than a tick: time in which the thread,
which has no rest then, takes in the others.
"""

import asyncio
from collections.abc import Callable

from mulle.serve.plane.jobs import CallbackJob

TICK_S = 0.002
"""How long a request is held at most; the loop's timer adds up to a millisecond."""
_PROBE_EVERY, _PROBE_SELDOM = 128, 1_024
_CROWD = 3
_FULL_HOUSES = 8
_MAX_TOGETHER = 64


class Turnstile:
    """Holds jobs for their mates; one per server, on its loop.

    Args:
        submit: Takes a job that may go on.

    Attributes:
        together: How many are expected to come along now; 1: they pass.
    """

    def __init__(self, submit: Callable[[CallbackJob], None]) -> None:
        self.together = 1
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[CallbackJob] = []
        self._timer: asyncio.TimerHandle | None = None
        self._n_passed = 0
        self._probe_after = _PROBE_EVERY
        self._n_full = 0

    def put(self, job: CallbackJob) -> None:
        """Submit a job: at once, or with its mates."""
        if self.together == 1 and not self._waiting:
            self._n_passed += 1
            if self._n_passed < self._probe_after:
                self._submit(job)
                return
            self._n_passed = 0
        self._waiting.append(job)
        if len(self._waiting) >= self.together > 1:
            self._open(full=True)
        elif self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._open(full=False)

    def _open(self, *, full: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        if not full:
            self._n_full = 0
            # By halves: the last few of a burst do not mean that the crowd has gone.
            expected = max(len(waiting), self.together // 2)
            crowded = expected >= _CROWD
            self.together = expected if crowded else 1
            self._probe_after = _PROBE_EVERY if crowded else min(2 * self._probe_after, _PROBE_SELDOM)
        else:
            self._n_full += 1
            if self._n_full >= _FULL_HOUSES:
                # Now and then more are waited for, or it would never be known that they have become more.
                self._n_full = 0
                self.together = min(_MAX_TOGETHER, self.together + max(1, self.together // 4))
        for job in waiting:
            self._submit(job)
