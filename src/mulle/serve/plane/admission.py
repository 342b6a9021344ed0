"""Whether one more request may wait; pure, the time is an argument.

A queue that grows for a moment is a burst and is let in: clients that ask again only when they have their answer can make
no more of it than their number. A queue that reaches the burst's limit is being offered more than it can answer, and
no length of it would help: from then on only what can be answered soon is let in, and the rest is told so at once, until
nothing had to be refused for a while.
"""

from dataclasses import dataclass

LONG_PERIODS = 4
"""Turns in a row that took too long until that counts as overload: one may be a busy machine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """Limits of one queue.

    Attributes:
        burst_ns: Estimated wait up to which a request is let in while all is well.
        tight_ns: The same while more is offered than can be answered.
        calm_ns: How long nothing may have been refused until all is well again.
        surge_ns: What comes within so long after the queue was empty may be one burst: many clients with one request each.
        surge_wait_ns: Estimated wait up to which such a burst is let in; no more than `burst_ns` unless given.
        n_requests: Requests waiting at most.
        n_bytes: Bytes of requests waiting at most.
    """

    burst_ns: float
    tight_ns: float
    calm_ns: float = 500e6
    surge_ns: float = 0.0
    surge_wait_ns: float = 0.0
    n_requests: int = 10_000
    n_bytes: int = 256 << 20


class Admission:
    """The state of one queue's door.

    Attributes:
        limit_ns: Estimated wait up to which a request is let in now.
        overloaded: Whether that is the tight limit.
    """

    __slots__ = ("_n_long", "_refused_ns", "limit_ns", "overloaded", "policy")

    def __init__(self, policy: AdmissionPolicy) -> None:
        self.policy = policy
        self.limit_ns = policy.burst_ns
        self.overloaded = False
        self._refused_ns = 0
        self._n_long = 0

    def refusal(self, now_ns: int, *, wait_ns: float, n_requests: int, n_bytes: int, since_ns: int = 0) -> str | None:
        """Return why one more request is refused (`wait`, `count`, `bytes`), or None.

        Args:
            now_ns: Monotonic.
            wait_ns: How long it would wait, as estimated.
            n_requests: Requests waiting now. An empty queue lets any single request in.
            n_bytes: Bytes waiting now, this request's included.
            since_ns: Since when something waits.
        """
        policy = self.policy
        self.look(now_ns)
        if not n_requests:
            return None
        if n_requests >= policy.n_requests:
            return self._refuse(now_ns, "count")
        if n_bytes > policy.n_bytes:
            return self._refuse(now_ns, "bytes")
        surging = not self.overloaded and now_ns - since_ns <= policy.surge_ns and wait_ns <= policy.surge_wait_ns
        if wait_ns > self.limit_ns and not surging:
            return self._refuse(now_ns, "wait")
        return None

    def look(self, now_ns: int) -> None:
        """Let the door return to normal when nothing was refused for a while."""
        if self.overloaded and now_ns - self._refused_ns > self.policy.calm_ns:
            self.overloaded = False
            self.limit_ns = self.policy.burst_ns

    def note_period(self, now_ns: int, period_ns: int) -> None:
        """Take note of how long a turn's requests may have waited unseen, before they were read.

        What waits in the kernel is in no queue of ours; it shows in how long everything else took.
        """
        self._n_long = self._n_long + 1 if period_ns > self.policy.burst_ns else 0
        if self._n_long >= LONG_PERIODS:
            self._n_long = 0
            self._tighten(now_ns)

    def _refuse(self, now_ns: int, reason: str) -> str:
        self._tighten(now_ns)
        return reason

    def _tighten(self, now_ns: int) -> None:
        self._refused_ns = now_ns
        self.overloaded = True
        self.limit_ns = self.policy.tight_ns
