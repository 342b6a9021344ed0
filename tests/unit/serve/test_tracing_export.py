"""Spans as a real OTLP receiver gets them, and what happens while it is away."""

import contextlib
import http.server
import socket
import threading
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families

from mulle.core.errors import SpecError
from mulle.core.version import VERSION
from mulle.formats import telemetry as names
from mulle.serve.telemetry import tracing
from mulle.serve.telemetry.registry import MetricsRegistry
from mulle.serve.telemetry.tracing import RequestTrace, Tracer, encode_trace, parse_parent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """An OTLP/HTTP receiver that decodes with the official messages, and answers what it is told to."""

    def __init__(self):
        self.requests, self.headers, self.paths = [], [], []
        self.answers = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer, headers = collector.answers.pop(0) if collector.answers else (200, b"", {})
                if status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                collector.paths.append(self.path)
                collector.headers.append(dict(self.headers))
                self.send_response(status)
                for name, value in {"content-length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments):
                del arguments

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def spans(self):
        return [span for r in self.requests for resource in r.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector():
    """Return a receiver on a free port."""
    one = Collector()
    yield one
    one.close()


@contextlib.contextmanager
def _tracer(endpoint, **options):
    tracer = Tracer.make(endpoint, "shop", **{"sample": 1.0, **options})
    try:
        yield tracer
    finally:
        tracer.close()


def _trace(**fields):
    now = time.monotonic_ns()
    return RequestTrace(**{"route": "/predict", "method": "POST", "status": 200, "started_ns": now - 3_000_000, "ended_ns": now, **fields})


def _attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def test_without_an_endpoint_there_is_no_tracer():
    """Free when not configured: the caller asks `is None`, and no thread runs."""
    n_threads = threading.active_count()

    assert (None, None, n_threads) == (Tracer.make(None), Tracer.make(""), threading.active_count())


def test_a_request_continues_the_caller_s_trace(collector):
    """The server's span is a child of the caller's, and the wait and the run are children of the server's."""
    with _tracer(collector.url, attributes={"service.instance.id": "worker-1"}, headers={"x-key": "k"}) as tracer:
        trace = _trace(
            parent=parse_parent(TRACEPARENT),
            state="vendor=opaque",
            deployment="shop",
            revision=7,
            prediction_id="p-1",
            n_rows=3,
            batch_rows=30,
        )
        trace = trace._replace(run_ns=trace.started_ns + 1_000_000, ran_ns=trace.started_ns + 2_000_000)
        tracer.record(trace)
    (request,) = collector.requests
    resource = request.resource_spans[0]
    root, queue, inference = collector.spans()

    assert {bytes.fromhex(TRACE)} == {span.trace_id for span in (root, queue, inference)}
    assert (bytes.fromhex(PARENT), root.span_id, root.span_id) == (root.parent_span_id, queue.parent_span_id, inference.parent_span_id)
    assert 3 == len({root.span_id, queue.span_id, inference.span_id})
    assert (0x301, 0x101) == (root.flags, queue.flags)
    assert ("POST /predict", "queue", "inference") == (root.name, queue.name, inference.name)
    assert (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL) == (root.kind, queue.kind)
    assert "vendor=opaque" == root.trace_state
    assert {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "mulle.deployment": "shop",
        "mulle.revision": 7,
        "mulle.prediction_id": "p-1",
        "mulle.rows": 3,
    } == _attributes(root.attributes)
    assert {"mulle.batch_rows": 30} == _attributes(inference.attributes)
    assert {"service.name": "shop", "service.version": VERSION, "service.instance.id": "worker-1"} == _attributes(
        resource.resource.attributes
    )
    assert ("mulle.serve", VERSION) == (resource.scope_spans[0].scope.name, resource.scope_spans[0].scope.version)
    assert (3_000_000, 1_000_000, 1_000_000) == tuple(s.end_time_unix_nano - s.start_time_unix_nano for s in (root, queue, inference))
    assert queue.end_time_unix_nano == inference.start_time_unix_nano
    assert abs(root.end_time_unix_nano - time.time_ns()) < 10e9
    assert ("/v1/traces", "k", "application/x-protobuf") == (
        collector.paths[0],
        collector.headers[0]["x-key"],
        collector.headers[0]["content-type"],
    )


def test_a_request_without_a_caller_s_trace_begins_its_own(collector):
    """Every root has an identifier of its own and no parent; the encoding holds for every size of a field."""
    with _tracer(collector.url) as tracer:
        for n in (0, 1, 127, 128, 20_000):
            tracer.record(_trace(prediction_id="x" * n, n_rows=2**40 * n))
    spans = collector.spans()

    assert 5 == len({span.trace_id for span in spans})
    assert {b""} == {span.parent_span_id for span in spans}
    assert [None, 1, 127, 128, 20_000] == [len(_attributes(s.attributes).get("mulle.prediction_id", "")) or None for s in spans]
    assert [None, *(2**40 * n for n in (1, 127, 128, 20_000))] == [_attributes(s.attributes).get("mulle.rows") for s in spans]


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        pytest.param(422, "rows-invalid", Status.STATUS_CODE_UNSET, id="the caller's mistake is no failure of the server"),
        pytest.param(503, "overloaded", Status.STATUS_CODE_ERROR, id="the server's is"),
    ],
)
def test_errors_are_told(status, error, expected):
    """By their stable code, and as failed only where the server is to blame."""
    (encoded,) = encode_trace(_trace(status=status, error=error), 0, bytes)
    # A span travels as a field of its scope; two bytes of tag and a length are not its own.
    span = Span.FromString(encoded[2:] if encoded[1] < 128 else encoded[3:])

    assert (expected, error) == (span.status.code, _attributes(span.attributes)["error.type"])


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(TRACEPARENT + "-extra", id="version 00 with more"),
        pytest.param(TRACEPARENT[:-1], id="too short"),
        pytest.param(TRACEPARENT + "0", id="too long"),
        pytest.param("00-" + TRACE + "-" + PARENT, id="no flags"),
        pytest.param("ff" + TRACEPARENT[2:], id="version ff"),
        pytest.param("0g" + TRACEPARENT[2:], id="a version that is no hex"),
        pytest.param(TRACEPARENT.replace(TRACE, "0" * 32), id="an all-zero trace"),
        pytest.param(TRACEPARENT.replace(PARENT, "0" * 16), id="an all-zero parent"),
        pytest.param(TRACEPARENT.upper(), id="upper case"),
        pytest.param(TRACEPARENT.replace("-", "_"), id="other separators"),
        pytest.param(TRACEPARENT.replace("0af7", "0xf7"), id="wrong hex"),
        pytest.param(TRACEPARENT.replace("0af7", "০af7"), id="digits of another script"),
        pytest.param(TRACEPARENT + "\n", id="a newline"),
        pytest.param(" " + TRACEPARENT, id="a space"),
        pytest.param("01" + TRACEPARENT[2:] + "-" + "x" * 500, id="a later version without end"),
        pytest.param("00-" + "0" * 1_000_000, id="a megabyte"),
        pytest.param("", id="empty"),
        pytest.param(None, id="none"),
    ],
)
def test_a_hostile_traceparent_is_ignored(header):
    """The request then has no caller's trace, and is answered like any other."""
    assert None is parse_parent(header)


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        pytest.param(TRACEPARENT, True, id="sampled"),
        pytest.param(TRACEPARENT[:-2] + "00", False, id="not sampled"),
        pytest.param(TRACEPARENT[:-2] + "03", True, id="with the flag for random identifiers"),
        pytest.param("cc" + TRACEPARENT[2:] + "-what-the-future-adds", True, id="a later version is read as far as it is known"),
    ],
)
def test_the_caller_decides_what_is_sampled(header, sampled):
    """Whatever our own share is."""
    parent = parse_parent(header)

    assert (bytes.fromhex(TRACE), bytes.fromhex(PARENT)) == parent[:2]
    for share in (0.0, 1.0):
        assert sampled is Tracer(tracing.urlsplit("http://x/"), "s", share, {}, {}).wants(parent)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param("a=1,b@c=2", "a=1,b@c=2", id="members"),
        pytest.param("a=1, ,b=2", "a=1, ,b=2", id="an empty member is allowed"),
        pytest.param(",".join(f"k{n}=v" for n in range(33)), "", id="too many"),
        pytest.param("a=" + "x" * 600, "", id="too long"),
        pytest.param("a=1\r\nx: y", "", id="a header smuggled in"),
        pytest.param("a=물레", "", id="not ASCII"),
        pytest.param("novalue", "", id="no value"),
    ],
)
def test_tracestate_is_passed_on_only_when_it_is_one(state, expected):
    """Vendors' data goes to the collector as it came, or not at all."""
    assert expected == tracing.check_state(state)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.01, 700, 1300), (0.5, 49_000, 51_000), (1.0, 100_000, 100_000)])
def test_the_share_of_roots_is_kept(share, low, high):
    """Of 100,000 requests without a caller's trace; six standard deviations and more of room."""
    tracer = Tracer(tracing.urlsplit("http://x/"), "s", share, {}, {})

    assert low <= sum(tracer.wants(None) for _ in range(100_000)) <= high


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({"endpoint": "collector:4318"}, "trace-endpoint", id="no scheme"),
        pytest.param({"endpoint": "file:///etc/passwd"}, "trace-endpoint", id="another scheme"),
        pytest.param({"endpoint": "http://user:pass@host:4318"}, "trace-endpoint", id="a password in the URL"),
        pytest.param({"endpoint": "http://host:99999"}, "trace-endpoint", id="no such port"),
        pytest.param({"endpoint": "http://[::1"}, "trace-endpoint", id="half an address"),
        pytest.param({"endpoint": "http://host/a b"}, "trace-endpoint", id="a space"),
        pytest.param({"endpoint": "http://host", "sample": 1.5}, "trace-sample", id="more than all"),
        pytest.param({"endpoint": "http://host", "sample": float("nan")}, "trace-sample", id="no share at all"),
        pytest.param({"endpoint": "http://host", "headers": {"x": "a\r\nb: c"}}, "trace-header", id="a header smuggled in"),
    ],
)
def test_a_wrong_configuration_is_refused_at_start(options, code):
    """With a code, a fix and no password in the sentence."""
    with pytest.raises(SpecError) as caught:
        Tracer.make(options.pop("endpoint"), **options)

    assert (code, True, False) == (caught.value.code, bool(caught.value.fix), "pass@" in str(caught.value))


def test_a_collector_that_is_away_costs_spans_and_nothing_else(caplog):
    """Recording stays as quick as ever, the queue bounded, drops are counted, and one line says it."""
    with _tracer("http://127.0.0.1:9") as tracer:
        one = _trace()
        start = time.thread_time()
        for _ in range(tracing.QUEUE_SPANS * 2):
            tracer.record(one)
        taken_s = time.thread_time() - start
        start = time.monotonic()
        tracer.close(timeout_s=0.5)
        assert time.monotonic() - start < 2

    assert tracer.n_dropped["queue-full"] >= tracing.QUEUE_SPANS - tracing.BATCH
    assert 0 == tracer.n_exported
    assert taken_s < tracing.QUEUE_SPANS * 2 * 20e-6
    assert 1 == sum("does not take spans" in record.getMessage() for record in caplog.records)


def test_a_collector_that_never_answers_holds_nobody():
    """It takes the connection and stays silent: recording goes on, and closing takes no longer than it may."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tracer = Tracer.make(f"http://127.0.0.1:{listener.getsockname()[1]}", "shop", 1.0)
        tracer.record(_trace())
        time.sleep(tracing._EVERY_S + 0.2)
        for _ in range(1000):
            tracer.record(_trace())
        start = time.monotonic()
        tracer.close(timeout_s=0.3)
        closed_s = time.monotonic() - start
        connection, _ = listener.accept()
        connection.close()
    tracer._thread.join(20)

    assert closed_s < 2.0
    assert (0, False) == (tracer.n_exported, tracer._thread.is_alive())
    assert 1001 == tracer.n_dropped["unreachable"]


def test_what_the_collector_wants_again_is_sent_again(collector, caplog):
    """Busy is no refusal: the same spans arrive after `Retry-After`, once."""
    collector.answers = [(503, b"", {"retry-after": "0"}), (429, b"", {})]
    caplog.set_level("INFO")
    tracer = Tracer.make(collector.url, "shop", 1.0)
    tracer.record(_trace(prediction_id="only"))
    end = time.monotonic() + 30
    while not tracer.n_exported and time.monotonic() < end:
        time.sleep(0.05)
    tracer.close()

    assert ["only"] == [_attributes(span.attributes)["mulle.prediction_id"] for span in collector.spans()]
    assert {"queue-full": 0, "unreachable": 0, "refused": 0} == tracer.n_dropped
    assert ["does not take", "takes spans again"] == [
        part for record in caplog.records for part in ("does not take", "takes spans again") if part in record.getMessage()
    ]


def test_a_connection_the_collector_closed_is_no_failure(collector, caplog):
    """It is opened again at once, and nothing is logged."""
    with _tracer(collector.url) as tracer:
        exporter = tracer._exporter
        exporter.send(b"", 1, tracer._ending)
        exporter._connection.sock.shutdown(2)
        exporter.send(b"", 1, tracer._ending)

    assert (2, []) == (tracer.n_exported, caplog.records)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param((400, b"no", {}), (0, 4), id="refused whole: never sent again"),
        pytest.param(
            (200, ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=3)).SerializeToString(), {}),
            (1, 3),
            id="three of four refused",
        ),
        pytest.param((200, b"\xff\xff\xff", {}), (4, 0), id="an answer that is none"),
        pytest.param((200, b"x" * 200_000, {}), (4, 0), id="an answer without end"),
    ],
)
def test_refusals_are_counted(collector, answer, expected):
    """What the collector says is believed, and told as metrics."""
    collector.answers = [answer]
    registry = MetricsRegistry()
    with _tracer(collector.url) as tracer:
        tracer.tell(registry)
        for _ in range(4):
            tracer.record(_trace())
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(registry.render() and registry.render())
        for sample in family.samples
    }

    assert expected == (tracer.n_exported, tracer.n_dropped["refused"])
    assert expected == (values[names.SPANS_EXPORTED,], values[names.SPANS_DROPPED, "refused"])


def test_many_spans_arrive_in_batches(collector):
    """Each exactly once, at most a batch's requests in one body."""
    with _tracer(collector.url) as tracer:
        for n in range(2000):
            tracer.record(_trace(prediction_id=str(n), run_ns=1, ran_ns=2))
    found = [_attributes(s.attributes)["mulle.prediction_id"] for s in collector.spans() if s.name == "POST /predict"]

    assert [str(n) for n in range(2000)] == found
    assert 4 <= len(collector.requests) <= 8
