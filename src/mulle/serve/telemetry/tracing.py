"""Traces of requests for an OpenTelemetry collector, by OTLP over HTTP; where none is configured there is no tracer, and no cost.

A span is made after its request was answered, from the times that were taken anyhow. The event loop only keeps a record (under a
microsecond); identifiers, encoding and sending belong to a thread, which encodes a few records at a time so that it never
holds the interpreter for long. The queue is bounded: a collector that is slow or away costs spans, counted, never an answer.

The caller's `traceparent` is honoured: its trace is continued, and its choice to sample or not is kept. It is not echoed: the
answer's prediction id is in the span, and leads to the trace.
"""

import http.client
import logging
import os
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import numpy as np

from mulle.core.errors import SpecError
from mulle.core.version import VERSION
from mulle.formats import telemetry as names
from mulle.serve.telemetry import otlp
from mulle.serve.telemetry.registry import MetricsRegistry

LOG = logging.getLogger("mulle.serve")
QUEUE_SPANS = 8_192
BATCH = 512
SLICE = 32
_EVERY_S = 0.5
_TIMEOUT_S = 10.0
_ATTEMPTS = 5
_MAX_PAUSE_S = 30.0
_MAX_ANSWER_BYTES = 65_536
_RETRIABLE = frozenset({429, 502, 503, 504})
_OK, _SERVER_ERROR = 200, 500
_MAX_HEADER = 512
_MAX_MEMBERS = 32
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_STATE_MEMBER = re.compile(r"[ \t]*(?:[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256})?[ \t]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,8192}")
_SAMPLED = 1


class Parent(NamedTuple):
    """What a caller said of its trace."""

    trace_id: bytes
    span_id: bytes
    sampled: bool


class RequestTrace(NamedTuple):
    """What is known of an answered request. Times are monotonic, in ns; 0 where a request never came so far.

    Attributes:
        route: The route's name, as in the metrics: `/predict`.
        method: `POST`, or `gRPC`.
        status: HTTP's, or the gRPC code's HTTP counterpart.
        started_ns: The request was complete.
        ended_ns: Its answer was handed to the connection.
        parent: From `parse_parent`.
        state: The header `tracestate`, as received.
        deployment: Empty when none was chosen.
        revision: 0 when none was chosen.
        prediction_id: Of the first row.
        n_rows: Of the request.
        batch_rows: Of the run it was part of.
        run_ns: The run began.
        ran_ns: The run ended.
        error: The error's code, or empty.
    """

    route: str
    method: str
    status: int
    started_ns: int
    ended_ns: int
    parent: Parent | None = None
    state: str = ""
    deployment: str = ""
    revision: int = 0
    prediction_id: str = ""
    n_rows: int = 0
    batch_rows: int = 0
    run_ns: int = 0
    ran_ns: int = 0
    error: str = ""


def parse_parent(traceparent: str | None) -> Parent | None:
    """Return what a `traceparent` header says, or None for one that is missing or not W3C's.

    Source: https://www.w3.org/TR/trace-context/ (versions after 00 are read as 00, and may be longer; ff is invalid).
    """
    if traceparent is None or len(traceparent) > _MAX_HEADER:
        return None
    found = _PARENT.fullmatch(traceparent)
    if found is None or (found[5] is not None and found[1] == "00"):
        return None
    return Parent(bytes.fromhex(found[2]), bytes.fromhex(found[3]), bool(int(found[4], 16) & _SAMPLED))


def check_state(tracestate: str) -> str:
    """Return a `tracestate` header as it may be passed on: empty when it is too long or not W3C's."""
    members = tracestate.split(",", _MAX_MEMBERS)
    if len(tracestate) > _MAX_HEADER or len(members) > _MAX_MEMBERS:
        return ""
    return tracestate if all(_STATE_MEMBER.fullmatch(member) for member in members) else ""


class Tracer:
    """Keeps records of answered requests, and sends them as spans. Use `Tracer.make`.

    `wants` and `record` belong to the event loop; sending has its own thread from `start` to `close`.

    Args:
        endpoint: The collector's URL with its path.
        service: Name of this service.
        sample: Share of the requests that get a trace when their caller has not decided, 0 to 1.
        headers: Sent with every export: a collector's key.
        attributes: More about who sends: `{"service.instance.id": …}`.
    """

    def __init__(
        self, endpoint: SplitResult, service: str, sample: float, headers: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> None:
        self._sample = sample
        self._rng = np.random.default_rng()
        self._skip = self._next_gap()
        self._queue: deque[RequestTrace] = deque()
        self._n_queue_full = 0
        self._exporter = _Exporter(endpoint, {**headers, "content-type": "application/x-protobuf", "user-agent": f"mulle/{VERSION}"})
        self._resource = otlp.encode_attributes({"service.name": service, "service.version": VERSION, **attributes}, field=1)
        self._scope = otlp.encode_scope("mulle.serve", VERSION)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mulle-traces", daemon=True)

    @classmethod
    def make(
        cls,
        endpoint: str | None,
        service: str = "mulle",
        sample: float = 0.01,
        *,
        headers: Mapping[str, str] | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> "Tracer | None":
        """Return a tracer whose thread runs, or None without an endpoint.

        Args:
            endpoint: `http://host:4318`, to which `/v1/traces` is added, or a URL with a path of its own.
            service: Name of this service.
            sample: Share of the requests that get a trace when their caller has not decided, 0 to 1.
            headers: Sent with every export.
            attributes: More about who sends.

        Raises:
            SpecError: `trace-endpoint`, `trace-sample`, `trace-header`.
        """
        if not endpoint:
            return None
        if not 0.0 <= sample <= 1.0:
            raise SpecError(
                "trace-sample", f"the share of traced requests is {sample!r}", fix="give a number from 0 to 1: 0.01 is 1 in 100"
            )
        headers = headers or {}
        for name, value in headers.items():
            if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
                raise SpecError(
                    "trace-header", f"the header {name[:40]!r} for the trace collector cannot be sent", fix="use letters, digits and dashes"
                )
        tracer = cls(_checked(endpoint), service, sample, headers, attributes or {})
        tracer._thread.start()
        return tracer

    @property
    def n_exported(self) -> int:
        """Spans the collector accepted."""
        return self._exporter.n_exported

    @property
    def n_dropped(self) -> dict[str, int]:
        """Requests that were not queued (`queue-full`) and spans not delivered (`unreachable`, `refused`), by reason."""
        return {"queue-full": self._n_queue_full, **self._exporter.n_dropped}

    def wants(self, parent: Parent | None) -> bool:
        """Return whether a request gets a trace: as its caller decided, else by chance."""
        if parent is not None:
            return parent.sampled
        if self._skip:
            self._skip -= 1
            return False
        self._skip = self._next_gap()
        return self._sample > 0.0

    def record(self, trace: RequestTrace) -> None:
        """Keep what is known of a request that was answered; dropped and counted when the queue is full."""
        if len(self._queue) < QUEUE_SPANS:
            self._queue.append(trace)
        else:
            self._n_queue_full += 1

    def tell(self, registry: MetricsRegistry) -> None:
        """Count exported and dropped spans in `registry` from now on."""
        exported = registry.total(names.SPANS_EXPORTED)
        dropped = {reason: registry.total(names.SPANS_DROPPED, reason=reason) for reason in self.n_dropped}

        def collect() -> None:
            exported.tell(self.n_exported)
            for reason, n in self.n_dropped.items():
                dropped[reason].tell(n)

        registry.collectors.append(collect)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is queued, for at most `timeout_s`, and stop."""
        self._exporter.give_up_after(time.monotonic() + timeout_s)
        self._ending.set()
        self._thread.join(timeout_s)

    def _next_gap(self) -> int:
        """Return how many requests go by before the next with a trace: one draw per trace, none per request."""
        return int(self._rng.geometric(self._sample)) - 1 if self._sample > 0.0 else 1 << 60

    def _work(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_EVERY_S)
            try:
                while self._queue:
                    self._send_batch()
            except Exception:
                # Telemetry must outlive its own defects.
                LOG.exception("spans could not be sent")
        self._exporter.hang_up()

    def _send_batch(self) -> None:
        spans: list[bytes] = []
        # One offset per batch: what the clocks drift apart within a batch does not show.
        offset_ns = time.time_ns() - time.monotonic_ns()
        for n in range(min(len(self._queue), BATCH)):
            spans += encode_trace(self._queue.popleft(), offset_ns, os.urandom)
            if n % SLICE == SLICE - 1:
                time.sleep(0)  # lets the event loop have the interpreter
        self._exporter.send(otlp.encode_request(self._resource, self._scope, spans), len(spans), self._ending)


def encode_trace(trace: RequestTrace, offset_ns: int, random_bytes: Callable[[int], bytes]) -> list[bytes]:
    """Return the encoded spans of a request: its own, and one each for the wait and the run where there was a run.

    Args:
        trace: The request.
        offset_ns: What to add to a monotonic time to get ns since 1970.
        random_bytes: For identifiers.
    """
    ids = random_bytes(40)
    parent = trace.parent
    trace_id = ids[:16] if parent is None else parent.trace_id
    own = ids[16:24]
    attributes = _usual(trace.method, trace.route, trace.status, trace.deployment, trace.revision, trace.error)
    if trace.prediction_id:
        attributes += otlp.encode_attributes({"mulle.prediction_id": trace.prediction_id})
    if trace.n_rows:
        attributes += _count("mulle.rows", trace.n_rows)
    request = otlp.Span(
        trace_id,
        own,
        b"" if parent is None else parent.span_id,
        parent is not None,
        "" if parent is None else check_state(trace.state),
        f"{trace.method} {trace.route}",
        otlp.KIND_SERVER,
        trace.started_ns + offset_ns,
        trace.ended_ns + offset_ns,
        attributes,
        trace.status >= _SERVER_ERROR,
    )
    spans = [otlp.encode_span(request)]
    if trace.run_ns:
        wait = request._replace(
            span_id=ids[24:32],
            parent=own,
            remote=False,
            name="queue",
            kind=otlp.KIND_INTERNAL,
            end_ns=trace.run_ns + offset_ns,
            attributes=b"",
            failed=False,
        )
        run = wait._replace(
            span_id=ids[32:40],
            name="inference",
            start_ns=wait.end_ns,
            end_ns=trace.ran_ns + offset_ns,
            attributes=_count("mulle.batch_rows", trace.batch_rows),
        )
        spans += (otlp.encode_span(wait), otlp.encode_span(run))
    return spans


@lru_cache(1024)
def _usual(method: str, route: str, status: int, deployment: str, revision: int, error: str) -> bytes:
    """Return the attributes in which most requests are alike."""
    told = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
    more = {"mulle.deployment": deployment, "mulle.revision": revision, "error.type": error}
    return otlp.encode_attributes({**told, **{name: value for name, value in more.items() if value}})


@lru_cache(1024)
def _count(name: str, n: int) -> bytes:
    return otlp.encode_attributes({name: n})


class _Exporter:
    """Sends requests to the collector, again where that may help; belongs to one thread."""

    def __init__(self, endpoint: SplitResult, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._headers = dict(headers)
        self._connection: http.client.HTTPConnection | None = None
        self._deadline_s = float("inf")
        self._down = False
        self.n_exported = 0
        self.n_dropped = {"unreachable": 0, "refused": 0}

    def give_up_after(self, deadline_s: float) -> None:
        """Try no longer than until the monotonic moment `deadline_s`."""
        self._deadline_s = deadline_s

    def send(self, body: bytes, n_spans: int, ending: threading.Event) -> None:
        """Deliver `body`, or drop its spans, counted."""
        pause_s = 1.0
        reason = ""
        for attempt in range(_ATTEMPTS):
            try:
                status, answer, retry_s = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                reason, retry_s = type(error).__name__, None
            else:
                if status == _OK:
                    n_refused = min(otlp.rejected_spans(answer), n_spans)
                    self.n_exported += n_spans - n_refused
                    self.n_dropped["refused"] += n_refused
                    self._say(down=False, reason="")
                    return
                if status not in _RETRIABLE:
                    self.n_dropped["refused"] += n_spans
                    self._say(down=True, reason=f"status {status}")
                    return
                reason = f"status {status}"
            self._say(down=True, reason=reason)
            pause = min(retry_s or pause_s, _MAX_PAUSE_S, self._deadline_s - time.monotonic())
            if attempt == _ATTEMPTS - 1 or pause <= 0:
                break
            # Once it ends nobody sets the event again: a short sleep keeps the last attempts apart.
            if ending.wait(pause):
                time.sleep(min(0.1, pause))
            pause_s *= 2
        self.n_dropped["unreachable"] += n_spans

    def hang_up(self) -> None:
        """Close the connection; the next export opens one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> tuple[int, bytes, float | None]:
        reused = self._connection is not None
        try:
            return self._exchange(body)
        except ConnectionError:
            if not reused:
                raise
            # The collector has closed a connection that was idle: no sign of anything wrong.
            return self._exchange(body)

    def _exchange(self, body: bytes) -> tuple[int, bytes, float | None]:
        try:
            connection = self._connection or self._connect()
            connection.request(
                "POST", self._endpoint.path + (f"?{self._endpoint.query}" if self._endpoint.query else ""), body, self._headers
            )
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES)
            after = response.getheader("retry-after", "")
            if response.read(1):
                self.hang_up()
        except BaseException:
            self.hang_up()
            raise
        return response.status, answer, float(after) if after.isascii() and after.isdigit() else None

    def _connect(self) -> http.client.HTTPConnection:
        host = self._endpoint.hostname or ""
        if self._endpoint.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, self._endpoint.port, timeout=_TIMEOUT_S, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, self._endpoint.port, timeout=_TIMEOUT_S)
        return self._connection

    def _say(self, *, down: bool, reason: str) -> None:
        """Log when the collector goes and comes, not with every batch."""
        if down != self._down:
            self._down = down
            where = f"{self._endpoint.hostname}:{self._endpoint.port or self._endpoint.scheme}"
            if down:
                LOG.warning("the trace collector at %s does not take spans (%s): serving goes on, spans are dropped", where, reason)
            else:
                LOG.info("the trace collector at %s takes spans again", where)


def _checked(endpoint: str) -> SplitResult:
    fix = "give http://HOST:4318 or https://HOST:4318, and a key as a header rather than within the URL"
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as error:
        raise SpecError("trace-endpoint", f"the trace collector's address is no URL: {error}", fix=fix) from error
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise SpecError("trace-endpoint", "the trace collector's address needs http:// or https:// and a host", fix=fix)
    if url.username is not None or url.password is not None:
        raise SpecError("trace-endpoint", "the trace collector's address holds a user or password", fix=fix)
    if any(not "!" <= character <= "~" for character in endpoint):
        raise SpecError("trace-endpoint", "the trace collector's address holds characters a URL has not", fix=fix)
    return url._replace(path="/v1/traces") if url.path in {"", "/"} else url
