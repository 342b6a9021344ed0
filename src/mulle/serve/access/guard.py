"""What stands before every handler: who asks, and may they, and not too often. One error each, mapped to a status by the transport.

    guard = Guard(ring)
    principal = guard.identify(headers, now_ns=…)                 may be remembered while guard.generation stays the same
    guard.admit(principal, "churn", now_s=…)                      every request: scope and rate

Live and ready checks are not asked for a key; whether a route is one of them is the transport's to know.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.serve.access.keys import ANYBODY, KeyRing, Principal

STATUS_OF_CODE = {"key-missing": 401, "key-unknown": 401, "key-expired": 401, "key-scope": 403, "rate-limited": 429}
"""HTTP statuses of what is raised here."""
GRPC_STATUS_OF_CODE = {
    "key-missing": "UNAUTHENTICATED",
    "key-unknown": "UNAUTHENTICATED",
    "key-expired": "UNAUTHENTICATED",
    "key-scope": "PERMISSION_DENIED",
    "rate-limited": "RESOURCE_EXHAUSTED",
}
"""Names of gRPC statuses of what is raised here."""
CREDENTIAL_HEADERS = frozenset({"authorization", "x-api-key"})
"""What a cache of heads must compare whole: two heads that differ here are two callers."""
_CHALLENGE = 401
_BEARER = "bearer "
_HOW = "send the header 'authorization: Bearer mk_…', or 'x-api-key: mk_…'"


class Guard:
    """Decides for one worker.

    Args:
        ring: The keys.
    """

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring

    @property
    def generation(self) -> int:
        """Rises whenever `identify` may answer differently."""
        return self.ring.generation

    def identify(self, headers: Iterable[tuple[str, str]], *, now_ns: int) -> Principal:
        """Return who asks; `ANYBODY` where the server wants no keys.

        Args:
            headers: Name and value, names in lower case, repeated ones kept; gRPC metadata fits too. Never trailers.
            now_ns: Nanoseconds since 1970-01-01 UTC.

        Raises:
            SpecError: `key-missing`, `key-unknown` (one answer for an unknown id and a wrong secret), `key-expired`.
        """
        if not self.ring.wanted:
            return ANYBODY
        keys = set(_keys_in(headers))
        if not keys:
            raise SpecError("key-missing", "the request carries no API key", fix=f"{_HOW}; `mulle keys create` makes one")
        # Two different keys in one request: some proxy would have read the other one.
        principal = self.ring.check(keys.pop()) if len(keys) == 1 else None
        if principal is None:
            raise SpecError("key-unknown", "the API key is not known here", fix=f"{_HOW}, exactly one that is on `mulle keys list`")
        if 0 < principal.expires_ns <= now_ns:
            when = datetime.fromtimestamp(principal.expires_ns // 1_000_000_000, UTC)
            raise SpecError(
                "key-expired",
                f"the API key {principal.name!r} expired at {when:%Y-%m-%d %H:%M} UTC",
                fix="ask the operator for a new one: mulle keys create",
            )
        return principal

    def admit(self, principal: Principal, deployment: str, *, now_s: float) -> None:
        """Count a request and return, or refuse it.

        Args:
            principal: From `identify`.
            deployment: What is asked; nothing is told about whether it exists.
            now_s: Seconds of the machine's monotonic clock.

        Raises:
            SpecError: `key-scope`: the key is for other deployments.
            UnavailableError: `rate-limited`; the fact `retry_after_s` is a whole number of seconds.
        """
        if principal.deployments is not None and deployment not in principal.deployments:
            raise SpecError(
                "key-scope",
                f"the API key {principal.name!r} is not for the deployment {deployment[:80]!r}",
                fix="use a key that is: mulle keys create NAME --deployment …",
            )
        if principal.limiter is not None and (wait := principal.limiter.wait_s(now_s)) > 0:
            seconds = max(1, math.ceil(wait))
            raise UnavailableError(
                "rate-limited",
                f"the API key {principal.name!r} asks more often than it may",
                fix=f"wait {seconds} s, or ask the operator for a higher rate",
                facts={"retry_after_s": str(seconds)},
            )

    def admit_metrics(self, principal: Principal) -> None:
        """Return if the caller may read `/metrics`: a key for all deployments, or one made with `--metrics`.

        Raises:
            SpecError: `key-scope`.
        """
        if not principal.metrics:
            raise SpecError(
                "key-scope",
                f"the API key {principal.name!r} is not for the metrics",
                fix="use a key that is: mulle keys create NAME --metrics",
            )

    def authorize(self, headers: Iterable[tuple[str, str]], deployment: str, *, now_ns: int, now_s: float) -> Principal:
        """Return who asks, if they may ask `deployment` now: `identify` and `admit` in one, for transports without a cache.

        Raises:
            SpecError, UnavailableError: as these.
        """
        principal = self.identify(headers, now_ns=now_ns)
        self.admit(principal, deployment, now_s=now_s)
        return principal


def headers_of(error: MulleError) -> dict[str, str]:
    """Return what HTTP wants beside the status: `www-authenticate` with 401, `retry-after` with 429, else nothing."""
    if STATUS_OF_CODE.get(error.code) == _CHALLENGE:
        return {"www-authenticate": 'Bearer realm="mulle"'}
    after = error.facts.get("retry_after_s")
    return {} if after is None else {"retry-after": after}


def _keys_in(headers: Iterable[tuple[str, str]]) -> Iterable[str]:
    """Yield every key a request shows; other schemes than Bearer are somebody else's (a proxy's), and left alone."""
    for name, value in headers:
        if name == "x-api-key" and value.strip():
            yield value.strip()
        elif name == "authorization" and value[: len(_BEARER)].lower() == _BEARER and value[len(_BEARER) :].strip():
            yield value[len(_BEARER) :].strip()
