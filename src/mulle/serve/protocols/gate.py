"""Who may ask, asked once per head: API keys, scopes, rate limits, for every route alike."""

from collections.abc import Callable, Mapping

from mulle.core.errors import MulleError
from mulle.formats import telemetry as names
from mulle.serve.access.guard import Guard
from mulle.serve.access.keys import ANYBODY, Principal
from mulle.serve.http.heads import Head
from mulle.serve.http.messages import Response, problem_of
from mulle.serve.plane.dataplane import DataPlane

_NS = 1e-9


class Pass:
    """Who a head speaks for, as long as the keys stay what they are."""

    __slots__ = ("cleared", "cleared_for", "generation", "principal")

    def __init__(self) -> None:
        self.generation = -1
        # Of the keys while which nothing has to be asked again: who this is may do what this head asks, as often as they like.
        self.cleared = -1
        self.cleared_for = ""
        self.principal: Principal = ANYBODY


class Gate:
    """Checks requests before anything is done for them.

    Args:
        guard: Decides; None: everybody may do everything.
        plane: Names the deployments, and has the clocks.
    """

    def __init__(self, guard: Guard | None, plane: DataPlane) -> None:
        self._guard = guard
        self._plane = plane

    def clears(self, known: Pass, deployment: str) -> bool:
        """Return whether `enter` would have nothing to say about a deployment, named in full."""
        return self._guard is None or (known.cleared == self._guard.ring.generation and known.cleared_for == deployment)

    @property
    def wants_keys(self) -> bool:
        """Whether a request needs a key now."""
        return self._guard is not None and self._guard.ring.wanted

    def enter(self, head: Head, known: Pass, deployment: str, started_ns: int) -> None:
        """Count a request for a deployment and return, or refuse it.

        Args:
            head: Of the request.
            known: What is remembered of it.
            deployment: Its name; empty for the first.
            started_ns: Monotonic.

        Raises:
            SpecError, UnavailableError: see `access/guard.py`.
        """
        guard = self._guard
        if guard is None:
            return
        try:
            if known.generation != guard.generation:
                known.principal = guard.identify(head.pairs, now_ns=self._plane.now_ns())
                known.generation = guard.generation
            if known.principal is not ANYBODY:
                guard.admit(known.principal, deployment or self._plane.default, now_s=started_ns * _NS)
            if known.principal.limiter is None:
                known.cleared, known.cleared_for = known.generation, deployment or self._plane.default
        except MulleError as error:
            self._count(error, known, deployment)
            raise

    def admits(self, deployment_of: Callable[[Head], str]) -> Callable[[Head], Response | None]:
        """Return the check of a route that is about one deployment."""

        def admit(head: Head) -> Response | None:
            return self._answer(head, lambda known: self.enter(head, known, deployment_of(head), self._plane.monotonic_ns()))

        return admit

    def admit_anybody_known(self, head: Head) -> Response | None:
        """Return why a request for something of no deployment (the documentation) is refused, or None."""
        return self._answer(head, lambda known: self.identify(head, known))

    def admit_metrics(self, head: Head) -> Response | None:
        """Return why a request for the metrics is refused, or None."""

        def check(known: Pass) -> None:
            self.identify(head, known)
            if self._guard is not None:
                self._guard.admit_metrics(known.principal)

        return self._answer(head, check)

    def is_stranger(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request shows no key that is known here."""
        if self._guard is None:
            return False
        try:
            self._guard.identify(headers.items(), now_ns=self._plane.now_ns())
        except MulleError:
            return True
        return False

    def identify(self, head: Head, known: Pass) -> None:
        """Find out who asks, without counting a request.

        Raises:
            SpecError: `key-missing`, `key-unknown`, `key-expired`.
        """
        guard = self._guard
        if guard is not None and known.generation != guard.generation:
            known.principal = guard.identify(head.pairs, now_ns=self._plane.now_ns())
            known.generation = guard.generation

    def _answer(self, head: Head, check: Callable[[Pass], None]) -> Response | None:
        if self._guard is None:
            return None
        known = head.memo
        if not isinstance(known, Pass):
            known = head.memo = Pass()
        try:
            check(known)
        except MulleError as error:
            return problem_of(error)
        return None

    def _count(self, error: MulleError, known: Pass, deployment: str) -> None:
        registry = self._plane.registry
        if error.code == "rate-limited":
            name = deployment or self._plane.default
            # Only names of deployments there are: the label must not be the caller's to choose.
            if name in self._plane.deployments:
                registry.counter(names.RATE_LIMITED, deployment=name, key=known.principal.name).add()
        else:
            registry.counter(names.AUTH_FAILURES, reason=error.code.removeprefix("key-")).add()
