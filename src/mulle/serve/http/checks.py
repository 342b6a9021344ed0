"""What must be true of a request's head before any of its body is taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httptools

from mulle.serve.http.messages import Response, problem

_LENGTH_DIGITS = 18
_DROPPED_ON_REPLAY = frozenset({"upgrade", "connection", "http2-settings"})
_UNUSUAL = frozenset({"origin", "transfer-encoding", "expect", "upgrade", "connection"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a connection may cost. Times in seconds."""

    head_bytes: int = 16 << 10
    body_bytes: int = 16 << 20
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    connections: int = 12_000
    pipelined: int = 64


@dataclass(frozen=True, slots=True)
class RawHead:
    """A request's head as it was parsed: header names in lower case, in their order, repeated ones kept."""

    method: str
    url: bytes
    version: str
    headers: Sequence[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key == name]

    def last(self, name: str, default: str) -> str:
        """Return the last value of a header, lower-case."""
        values = self.all(name)
        return values[-1].lower() if values else default


def is_plain(headers: Sequence[tuple[str, str]], version: str, hosts: frozenset[str] | set[str], limits: Limits) -> bool:
    """Return whether a head is like nearly all heads, so that `check_head` would find nothing: quick, and never the other way round.

    Args:
        headers: As parsed.
        version: Of HTTP.
        hosts: Host headers that were found to be allowed.
        limits: Of the connection.
    """
    unique = dict(headers)
    if len(unique) != len(headers) or version != "1.1" or unique.get("host") not in hosts or _UNUSUAL & unique.keys():
        return False
    length = unique.get("content-length", "0")
    return len(length) <= _LENGTH_DIGITS and length.isascii() and length.isdigit() and int(length) <= limits.body_bytes


def check_head(
    head: RawHead, limits: Limits, allowed_hosts: frozenset[str] | None, cors: Callable[[str], str | None] | None = None
) -> Response | None:
    """Return why the request is refused, or None."""
    return _check_line(head) or _check_host(head, allowed_hosts, cors) or _check_framing(head, limits)


def too_large_body(limits: Limits) -> Response:
    """Return the refusal of a body above the limit."""
    return problem(
        413,
        "body-too-large",
        f"the body is larger than {limits.body_bytes:,} bytes",
        fix="send fewer rows at a time, or score a table with `mulle predict`",
        where="body",
    )


def without_upgrade(method: str, url: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return the bytes of a head as if it had not asked for another protocol."""
    kept = [f"{name}: {value}" for name, value in headers if name not in _DROPPED_ON_REPLAY]
    if any(name == "connection" and "close" in value.lower() for name, value in headers):
        kept.append("connection: close")
    lines = [f"{method} {url.decode('latin-1')} HTTP/1.1", *kept, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _check_line(head: RawHead) -> Response | None:
    if head.version not in {"1.0", "1.1"}:
        return problem(505, "http-version", f"HTTP/{head.version} is not spoken here", fix="use HTTP/1.1")
    if head.method == "CONNECT":
        return problem(405, "method-not-allowed", "this is not a proxy", fix="use GET or POST", headers={"allow": "GET, HEAD, POST"})
    try:
        httptools.parse_url(head.url)
    except httptools.HttpParserInvalidURLError:
        return problem(400, "http-malformed", "the request's target is not a URL", fix="check the client")
    return None


def _check_host(head: RawHead, allowed: frozenset[str] | None, cors: Callable[[str], str | None] | None) -> Response | None:
    hosts = head.all("host")
    if len(hosts) != 1 and (head.version == "1.1" or hosts):
        return problem(400, "http-host-missing", f"the request has {len(hosts)} Host headers", fix="send exactly one", where="host")
    if allowed is None:
        return None
    if hosts and _host_name(hosts[0]) not in allowed:
        return problem(
            403,
            "http-host-refused",
            f"this server does not answer for the host {hosts[0][:100]!r}",
            fix="use http://127.0.0.1, or start it with --allow-remote",
            where="host",
        )
    for origin in head.all("origin"):
        if cors is not None and cors(origin) is not None:
            continue
        if _host_name(origin.partition("://")[2]) not in allowed:
            return problem(
                403,
                "http-origin-refused",
                f"pages of {origin[:100]!r} may not use this server",
                fix="call it from a program",
                where="origin",
            )
    return None


def _check_framing(head: RawHead, limits: Limits) -> Response | None:
    encodings = [value.lower() for value in head.all("transfer-encoding")]
    if encodings not in ([], ["chunked"]) or (encodings and head.version == "1.0"):
        return problem(400, "http-malformed", "the transfer encoding is not 'chunked' alone", fix="send the body as it is")
    if head.last("expect", "100-continue") != "100-continue":
        return problem(417, "http-expectation", "the expectation cannot be met", fix="leave the header Expect out", where="expect")
    length = head.last("content-length", "0")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS or int(length) > limits.body_bytes:
        return too_large_body(limits)
    return None


def _host_name(host: str) -> str:
    """Return the name of a Host header without its port, lower-case; IPv6 without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
