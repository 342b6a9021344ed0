"""Requests, answers and errors: one error shape, `{"error": {"code", "what", "fix", "where"}}`, whoever says it."""

import http
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError

if TYPE_CHECKING:
    from mulle.serve.http.connection import Connection
    from mulle.serve.http.heads import Head

JSON = "application/json"
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}

# Spec errors are 422 unless their code says something HTTP has a word for.
_STATUS_OF_CODE: dict[str, int] = {
    "body-invalid": 400,
    "body-too-deep": 400,
    "body-media-type": 415,
    "rows-too-many": 413,
    "image-too-large": 413,
    "image-too-many-pixels": 413,
    "image-format": 415,
    "form-malformed": 400,
    "revision-unknown": 404,
    "deployment-unknown": 404,
    "header-invalid": 400,
    "key-missing": 401,
    "key-unknown": 401,
    "key-expired": 401,
    "key-scope": 403,
    "rate-limited": 429,
    "deadline-expired": 504,
    "request-cancelled": 499,
}
_RETRY = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, whole.

    Attributes:
        method: Upper-case.
        path: Percent-decoding is not applied: no route needs it, and double decoding has opened doors elsewhere.
        query: Without the question mark.
        headers: Lower-case name to value; the last of repeated ones.
        body: Decoded from chunks, not from a content encoding. A view of the connection's buffer where the target takes
            views.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Handler: TypeAlias = "Callable[[Request], Response | Awaitable[Response]]"


class Slot(Protocol):
    """The place of one answer in the order of a connection.

    Attributes:
        keep: Whether the client wants the connection to stay open after it.
        data: The answer's bytes once it is there and has to wait for earlier ones.
        cancelled: Set when the client has gone: nobody waits for this answer.
    """

    keep: bool
    data: bytes | None
    cancelled: bool

    def cancel(self) -> None:
        """Take note that the client has gone."""
        ...


class LastWord:
    """The slot of the last answer of a connection: a refusal that nobody works on."""

    __slots__ = ("cancelled", "data", "keep")

    def __init__(self) -> None:
        self.keep = False
        self.data: bytes | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Take note that the client has gone."""
        self.cancelled = True


class Target(Protocol):
    """What answers the requests of one method and path.

    Attributes:
        takes_views: Whether a large body may come as a view of the connection's buffer instead of bytes.
    """

    takes_views: bool

    def refuse_early(self, head: "Head") -> Response | None:
        """Return why a request with a large body is refused before that is read, or None; asked besides what `begin` asks."""
        ...

    def begin(self, connection: "Connection", head: "Head", body: bytes) -> None:
        """Put a slot in line (`Connection.slots`) and see that `Connection.complete` is called for it once; never raises."""
        ...


def problem(status: int, code: str, what: str, *, fix: str, where: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return an error answer."""
    body = msgspec.json.encode({"error": {"code": code, "what": what, "fix": fix, "where": where}})
    return Response(status, body, JSON, headers or {})


def status_of(error: MulleError) -> int:
    """Return the HTTP status of an error: 4xx for the caller's, 503 for what passes, 504 for what came too late, 500 for ours."""
    known = _STATUS_OF_CODE.get(error.code)
    if known is not None and not isinstance(error, CheckError):
        return known
    if isinstance(error, SpecError):
        return 422
    if isinstance(error, ConflictError):
        return 409
    return 503 if isinstance(error, UnavailableError) else 500


def problem_of(error: MulleError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer for an error; of the server's own faults only the code leaves the process."""
    status = status_of(error)
    if status == 500:  # noqa: PLR2004 - the status itself
        return problem(
            status,
            error.code,
            "the model could not answer this request",
            fix="ask the operator: the server's log has the reason",
            headers=headers,
        )
    extra = dict(headers or {})
    if status in _RETRY:
        extra["retry-after"] = error.facts.get("retry_after_s", "1")
    if status == 401:  # noqa: PLR2004 - the status itself
        extra["www-authenticate"] = "Bearer"
    return problem(status, error.code, error.what, fix=error.fix, where=error.where, headers=extra)


def render_response(response: Response, *, date: str, extra: str, keep: bool, head_only: bool) -> bytes:
    """Return an answer's bytes.

    Args:
        response: The answer.
        date: The Date header's value.
        extra: More header lines, each ended by CRLF.
        keep: Whether the connection stays open after it.
        head_only: Whether the request was HEAD.
    """
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        f"date: {date}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    if not keep:
        lines.append("connection: close")
    head = ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode("latin-1")
    return head if head_only else head + response.body
