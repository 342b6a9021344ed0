"""Reports of a load test: what is said, what is merged, what a page holds."""

import math
import os
import subprocess
import sys
import time

import msgspec
import pytest

from mulle.core.errors import SpecError
from mulle.serve.loadtest.histogram import Histogram
from mulle.serve.loadtest.page import render_html
from mulle.serve.loadtest.probe import listener_of, read_usage
from mulle.serve.loadtest.processes import Measured, split_load
from mulle.serve.loadtest.report import Asked, LoadReport, busy_remark, failures_text, percentile_text, remarks_on, table_of
from mulle.serve.loadtest.result import Load, Result, Second, merge_results, milliseconds
from mulle.serve.loadtest.target import is_loopback, parse_url

ASKED = Asked("http://127.0.0.1:1/predict", "3 golden rows", 3, 1, 200, ("<b>x</b>",), 10.0, 10.0, 1.0)


def result(latencies_ms=(1.0,) * 100, *, status=200, **changes):
    """Return a result whose answers took `latencies_ms`."""
    made = Histogram()
    for one in latencies_ms:
        made.record(int(one * 1e6))
    n = len(latencies_ms)
    second = Second(at_s=1.0, n_answered=n, n_ok=n, n_errors=0, p50_ns=1e6, p99_ns=2e6, waiting=0, warm=False)
    facts = {
        "connections": 4,
        "asked_rate": None,
        "arrivals": "constant",
        "pipeline": 1,
        "measured_s": 1.0,
        "by_status": {status: made.to_pairs()} if n else {},
        "errors": {},
        "n_sent": n,
        "n_held": 0,
        "n_completed": n,
        "n_late": 0,
        "n_reconnects": 0,
        "bytes_in": 10,
        "bytes_out": 20,
        "lag": {},
        "cpu_s": 0.2,
        "seconds": [second],
    }
    return Result(**(facts | changes))


def test_results_of_processes_add_up():
    """Counts, buckets, CPU and rates of all processes; percentiles of a second are the slowest's."""
    other = result((3.0,) * 50, errors={"timeout": 2}, cpu_s=0.4)
    other.seconds[0] = msgspec.structs.replace(other.seconds[0], p50_ns=math.nan, p99_ns=9e6)
    both = merge_results([result(errors={"timeout": 1, "reset": 1}), other])

    assert (150, 154, 4, 8) == (both.n_ok, both.n_requests, both.n_errors, both.connections)
    assert {"timeout": 3, "reset": 1} == both.errors
    assert (2, pytest.approx(0.3)) == (both.n_processes, both.cpu_share)
    assert (1e6, 9e6, 150) == (both.seconds[0].p50_ns, both.seconds[0].p99_ns, both.seconds[0].n_answered)
    assert pytest.approx(3.0, rel=0.01) == both.latency().quantile(0.99) / 1e6


def test_a_load_is_shared_out_whole():
    """Connections and rate add up to what was asked; each process begins with another request."""
    load = Load(host="h", port=1, requests=(b"a", b"b", b"c"), connections=7, rate=90.0)
    parts = split_load(load, 3)

    assert [3, 2, 2] == [part.connections for part in parts]
    assert pytest.approx(90.0) == sum(part.rate for part in parts)
    assert [b"a", b"b", b"c"] == [part.requests[0] for part in parts]
    assert 3 == len({part.seed for part in parts})


def test_a_result_crosses_a_process_border():
    """What a generator process writes is what its parent reads."""
    made = result(errors={"reset": 2}, lag={5: 1})

    assert made.to_dict() == msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Result).to_dict()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(0.04567, "0.0457", id="microseconds"),
        pytest.param(1.23456, "1.23", id="around one"),
        pytest.param(98.76, "98.8", id="tens"),
        pytest.param(12345.6, "12,346", id="many seconds"),
        pytest.param(0.0, "0", id="nothing"),
        pytest.param(math.nan, "–", id="no value"),
    ],
)
def test_milliseconds_have_three_figures(value, text):
    """Nobody reads more, and nobody reads exponents."""
    assert text == milliseconds(value)


def test_a_rough_percentile_is_marked():
    """A percentile of too few samples carries a tilde; one of none is a dash."""
    few, many = Histogram(), Histogram({})
    few.record(2_000_000)
    many = Histogram.from_pairs({bucket: 20_000 for bucket, _ in few.filled()})

    assert ("~2.00", "2.00", "–") == (percentile_text(few, 0.99), percentile_text(many, 0.99), percentile_text(Histogram(), 0.5))


def test_a_table_has_a_row_per_measurement():
    """Samples stand beside percentiles; the server's column only where it was read."""
    header, rows = table_of([Measured(result()), Measured(result(asked_rate=2500.0, arrivals="poisson"))])

    assert len(header) == len(rows[0]) == len(rows[1])
    assert ("4 connections", "2,500/s at random") == (rows[0][0], rows[1][0])
    assert "server CPU/req" not in header
    assert "100" == rows[0][header.index("samples")]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        pytest.param(
            result(errors={"timeout": 3, "short": 1}), "3 × no answer in time, 1 × closed within the answer", id="failures by kind"
        ),
        pytest.param(result(status=503), "refusals took p50", id="refusals with their own latency"),
        pytest.param(result(asked_rate=100.0, n_sent=50, n_held=40), "no connection was free", id="connections were the limit"),
        pytest.param(result(asked_rate=100.0, n_sent=50, cpu_s=0.99), "busy 99%", id="the generator was the limit"),
        pytest.param(result(cpu_s=0.95), "partly the generator's own", id="a closed loop at the generator's limit"),
        pytest.param(result(interrupted=True), "ended early", id="ended early"),
        pytest.param(result(), "fewer than 100 samples", id="too few samples"),
    ],
)
def test_what_must_be_known_is_said(one, said):
    """Nothing that spoils a figure is left unsaid."""
    assert any(said in remark for remark in remarks_on([Measured(one)]))


@pytest.mark.parametrize(
    ("machine", "busy"),
    [
        pytest.param({"cores": "2", "load before": "1.0"}, False, id="half a core each"),
        pytest.param({"cores": "2", "load before": "1.1"}, True, id="more than that"),
        pytest.param({"cores": "2"}, False, id="nothing is known"),
    ],
)
def test_a_busy_machine_is_said(machine, busy):
    """Other work before the test is in its figures."""
    assert busy == (busy_remark(machine) is not None)


def test_chance_is_not_taken_for_a_late_generator():
    """Random arrivals bring fewer requests than the rate promises now and then: all that were due were sent."""
    assert result(asked_rate=110.0, arrivals="poisson").could_offer
    assert not result(asked_rate=100.0, n_sent=90).could_offer


def test_failures_come_most_frequent_first():
    """Statuses and kinds in one list."""
    made = result(status=500, errors={"refused": 200})

    assert "200 × connection refused, 100 × status 500" == failures_text(made)


@pytest.mark.parametrize(
    ("one", "slo_ms", "kept"),
    [
        pytest.param(result(), None, True, id="nothing was promised"),
        pytest.param(result(), 2.0, True, id="quick enough"),
        pytest.param(result(), 0.5, False, id="too slow"),
        pytest.param(result(errors={"reset": 1}), 2.0, False, id="quick, but failing"),
        pytest.param(result(()), 2.0, False, id="nothing was answered"),
        pytest.param(result(asked_rate=1000.0, n_sent=50), 2.0, False, id="the rate was never offered"),
    ],
)
def test_an_objective_is_judged(one, slo_ms, kept):
    """An objective is kept by latency, failures and rate together."""
    report = LoadReport(ASKED, "2026-11-20", {}, [Measured(one)], slo_ms=slo_ms)

    assert kept == report.kept
    assert (None if slo_ms is None else kept) == report.to_dict()["kept"]


@pytest.mark.parametrize(
    "measured",
    [
        pytest.param([result(), result((5.0, 7.0), asked_rate=10.0)], id="two good measurements"),
        pytest.param([result((), errors={"refused": 3})], id="nothing was answered"),
        pytest.param([result(status=503)], id="only refusals"),
        pytest.param([result(seconds=[])], id="no whole second"),
    ],
)
def test_a_page_is_whole_whatever_came_back(measured):
    """One self-contained page; what a user typed is escaped."""
    page = render_html(LoadReport(ASKED, "2026-11-20", {"cores": "2"}, [Measured(one) for one in measured]))

    assert page.startswith("<!doctype html>")
    assert page.count("<section") == page.count("</section>") > 2
    assert "<b>x</b>" not in page
    assert "nan" not in page.lower().replace("finance", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("http://127.0.0.1:8080", ("127.0.0.1", 8080, "", "127.0.0.1:8080"), id="as printed by serve"),
        pytest.param("localhost:81/predict?a=1", ("localhost", 81, "/predict?a=1", "localhost:81"), id="without a scheme, with a path"),
        pytest.param("http://[::1]:9/", ("::1", 9, "", "[::1]:9"), id="IPv6"),
        pytest.param("http://example.com", ("example.com", 80, "", "example.com:80"), id="the usual port"),
    ],
)
def test_addresses_are_read(text, expected):
    """Host, port and path as people type them."""
    found = parse_url(text)

    assert expected == (found.host, found.port, found.path, found.authority)


@pytest.mark.parametrize("text", ["", "http://", "ftp://a", "http://a:0", "http://a:99999", "http://u@a", "http://[::1", "https://a"])
def test_what_is_no_address_is_refused(text):
    """Nothing is guessed."""
    with pytest.raises(SpecError) as caught:
        parse_url(text)

    assert "loadtest-url" == caught.value.code


def test_loopback_is_known():
    """Names and addresses of this machine's loopback, and one that is not."""
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("192.0.2.1")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_tree_is_measured():
    """CPU of a process and its child, and who listens on a port."""
    code = (
        "import socket, subprocess, sys\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "c = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "print(s.getsockname()[1], flush=True); sys.stdin.read(); c.kill(); c.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        port = int(process.stdout.readline())
        before = read_usage(process.pid)
        time.sleep(0.6)
        after = read_usage(process.pid)
        found = listener_of(port)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()

    assert process.pid == found
    assert 2 == after.n_processes
    assert 0.05 < after.cpu_s - before.cpu_s < 1.2
    assert after.memory_bytes > 1 << 20
    assert read_usage(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nobody_listens_on_a_closed_port():
    """A port without a listener has no process."""
    assert listener_of(1) is None or os.getuid() == 0
