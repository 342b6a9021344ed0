"""Answers and errors as bytes: one shape, `{"error": {"code", "what", "fix", "where"}}`, whoever says it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from mulle.core.errors import ConflictError, MulleError, SpecError, UnavailableError

JSON = "application/json"

# Spec errors are 422 unless their code says something HTTP has a word for.
_STATUS_OF_CODE: dict[str, int] = {
    "body-invalid": 400,
    "body-too-deep": 400,
    "body-media-type": 415,
    "rows-too-many": 413,
    "revision-unknown": 404,
    "header-invalid": 400,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, whole.

    Attributes:
        method: Upper-case.
        path: Percent-decoding is not applied: no route needs it, and double decoding has opened doors elsewhere.
        query: Without the question mark.
        headers: Lower-case name to value; the last of repeated ones.
        body: Decoded from chunks, not from a content encoding.
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


def problem(status: int, code: str, what: str, *, fix: str, where: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return an error answer."""
    body = msgspec.json.encode({"error": {"code": code, "what": what, "fix": fix, "where": where}})
    return Response(status, body, JSON, headers or {})


def status_of(error: MulleError) -> int:
    """Return the HTTP status of an error: 4xx for the caller's, 503 for what passes, 500 for ours."""
    if isinstance(error, SpecError):
        return _STATUS_OF_CODE.get(error.code, 422)
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
    if status == 503:  # noqa: PLR2004 - the status itself
        extra["retry-after"] = "1"
    return problem(status, error.code, error.what, fix=error.fix, where=error.where, headers=extra)
