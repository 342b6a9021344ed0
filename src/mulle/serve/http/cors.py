"""Which web pages of other origins may use this server: none, unless the operator names them.

A browser sends `Origin` with what a page of another origin asks, and keeps the answer from the page unless the answer allows
that origin. Naming an origin does two things here: its requests pass the Origin check (`is_allowed`), and its answers carry
the headers that let the page read them (`cors_headers`). What a page may ask for beyond plain reading is settled beforehand, by
an OPTIONS request (`preflight`).

An origin is compared whole and exactly: scheme, name and port. Patterns and suffixes have let `evil-example.com` and
`example.com.evil.net` through elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mulle.core.errors import SpecError
from mulle.formats import telemetry as names
from mulle.serve.http.messages import Request, Response, problem

ANY = "*"
_METHODS = ("GET", "HEAD", "POST")
_REQUEST_HEADERS = (
    "accept",
    "authorization",
    "content-type",
    "inference-header-content-length",
    names.PREDICTION_ID_HEADER,
    names.REVISION_HEADER,
    names.UNIT_HEADER,
    "mulle-timeout-ms",
    "traceparent",
    "tracestate",
    "x-api-key",
)
_EXPOSED = ("inference-header-content-length", names.PREDICTION_ID_HEADER, names.REVISION_HEADER, "retry-after")
_MAX_ORIGIN_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsPolicy:
    """Who may read answers from a web page. Make it with `cors_policy`, which checks.

    Attributes:
        origins: As browsers spell them, `https://app.example.com`; or `*` alone: any page at all.
        credentials: Whether cookies and the browser's stored passwords may come along; never with `*`.
        request_headers: What a page may send, lower-case.
        exposed: What a page may read of an answer's headers.
        max_age_s: How long a browser may remember a preflight.
    """

    origins: frozenset[str] = frozenset()
    credentials: bool = False
    request_headers: tuple[str, ...] = _REQUEST_HEADERS
    exposed: tuple[str, ...] = _EXPOSED
    max_age_s: int = 600
    _granted: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # What is granted is the same for every request of an origin: rendered once.
        object.__setattr__(self, "_granted", {origin: self._grant(origin) for origin in self.origins})

    def grant(self, origin: str) -> Mapping[str, str] | None:
        """Return the headers that let pages of `origin` read an answer, or None: it is not allowed."""
        return self._granted.get(ANY) or self._granted.get(origin)

    def _grant(self, origin: str) -> Mapping[str, str]:
        headers = {"access-control-allow-origin": origin}
        if origin != ANY:
            headers["vary"] = "Origin"
        if self.credentials:
            headers["access-control-allow-credentials"] = "true"
        if self.exposed:
            headers["access-control-expose-headers"] = ", ".join(self.exposed)
        return headers


NO_CORS = CorsPolicy()
"""The default: no page of another origin."""
_NOTHING: Mapping[str, str] = {}
_VARY: Mapping[str, str] = {"vary": "Origin"}


def cors_policy(origins: Iterable[str], *, credentials: bool = False) -> CorsPolicy:
    """Return the policy for the origins an operator names.

    Args:
        origins: Each `scheme://name[:port]`, or `*` alone.
        credentials: Allow cookies and stored passwords. API keys in a header need none of it.

    Raises:
        SpecError: `cors-origin` (not an origin as browsers spell it), `cors-wildcard` (`*` beside others, or with credentials).
    """
    found = frozenset(_require_origin(origin) for origin in origins)
    if ANY in found and (credentials or len(found) > 1):
        raise SpecError(
            "cors-wildcard",
            "'*' allows every page there is, "
            + ("and so cannot come with credentials" if credentials else "and so cannot stand beside others"),
            fix="name the origins one by one",
            where="cors",
        )
    return CorsPolicy(origins=found, credentials=credentials)


def is_allowed(policy: CorsPolicy, origin: str) -> bool:
    """Return whether pages of `origin` (the header, as it came) may use this server."""
    return policy.grant(origin) is not None


def cors_headers(policy: CorsPolicy, origin: str | None) -> Mapping[str, str]:
    """Return what to add to every answer, errors included: a page that cannot read a refusal cannot act on it.

    Nothing where no origin is configured; otherwise `Vary: Origin` on every answer that depends on it, so that no cache
    hands one origin's answer to another.

    Args:
        policy: Of the server.
        origin: The request's header; None: it has none, so no page asked.
    """
    if not policy.origins:
        return _NOTHING
    granted = None if origin is None else policy.grant(origin)
    if granted is not None:
        return granted
    return _NOTHING if ANY in policy.origins else _VARY


def cors_lines(policy: CorsPolicy) -> Callable[[str], str | None] | None:
    """Return what gives the header lines for an origin (each ended by CRLF; None: it is not allowed), or None where nobody is.

    For a connection, which checks an origin and renders its lines once per head.
    """
    if not policy.origins:
        return None

    def lines(origin: str) -> str | None:
        granted = policy.grant(origin)
        return None if granted is None else "".join(f"{name}: {value}\r\n" for name, value in granted.items())

    return lines


def preflight(policy: CorsPolicy, request: Request) -> Response | None:
    """Return the answer to a browser that asks beforehand, or None: this is no such question.

    It is answered without an API key (browsers send none here), says nothing about the path, and reaches no model.
    """
    origin = request.headers.get("origin")
    method = request.headers.get("access-control-request-method")
    if request.method != "OPTIONS" or origin is None or method is None or not policy.origins:
        return None
    granted = policy.grant(origin)
    if granted is None:
        return problem(
            403,
            "http-origin-refused",
            f"pages of {origin[:100]!r} may not use this server",
            fix="name the origin in the server's settings, or call it from a program",
            where="origin",
            headers=_VARY,
        )
    headers = {
        **granted,
        "access-control-allow-methods": ", ".join(_METHODS),
        "access-control-allow-headers": ", ".join(policy.request_headers),
        "access-control-max-age": str(policy.max_age_s),
        "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
    return Response(200, b"", "text/plain", headers)


def _require_origin(text: str) -> str:
    if text == ANY:
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _not_an_origin(text) from None
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    spelt = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if not name or ANY in name or not text.isascii() or spelt != text or default == port or len(text) > _MAX_ORIGIN_CHARACTERS:
        raise _not_an_origin(text)
    if not all(c.isalnum() or c in ".-:[]" for c in host):
        raise _not_an_origin(text)
    return text


def _not_an_origin(text: str) -> SpecError:
    return SpecError(
        "cors-origin",
        f"{text[:100]!r} is not an origin as browsers spell it",
        fix="write scheme, name in lower case and port if it is not the usual one, as https://app.example.com; no path, no pattern",
        where="cors",
    )
