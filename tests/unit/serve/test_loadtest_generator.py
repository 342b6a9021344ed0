"""The load generator against servers that behave, and against servers that do not: nothing hangs, every request has one outcome."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from mulle.core.errors import SpecError, UnavailableError
from mulle.serve.loadtest.generator import run_load
from mulle.serve.loadtest.result import Load
from support.serving import running

ASK = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nretry-after: 1\r\n\r\nbusy"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nok\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\ntrailer: 1\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\nok"


class Misbehaving:
    """A server made by hand: `act(writer, n)` answers the n-th request of all; what it raises closes the connection."""

    def __init__(self, act):
        self.act = act
        self.n_requests = 0
        self.n_connections = 0
        self.asked = []
        self.tasks = set()

    async def serve(self, reader, writer):
        self.n_connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                self.asked.append(await reader.readexactly(len(ASK)))
                self.n_requests += 1
                await self.act(writer, self.n_requests)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, EOFError):
            pass
        finally:
            writer.close()


@contextmanager
def misbehaving(act):
    """Serve `act` on a free port in a thread; give the port and the server."""
    server = Misbehaving(act)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    found = {}

    async def main():
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        found["port"] = listening.sockets[0].getsockname()[1]
        found["stop"] = asyncio.Event()
        ready.set()
        await found["stop"].wait()
        # What was accepted a moment ago must be whole before the listener goes: asyncio leaves it open otherwise.
        await asyncio.sleep(0.05)
        listening.close()
        # A connection accepted a moment ago becomes a task only later, and then it too must close its socket.
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0.02)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            quiet = 0 if others else quiet + 1
            for task in others & server.tasks:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait(5)
    try:
        yield found["port"], server
    finally:
        loop.call_soon_threadsafe(found["stop"].set)
        thread.join(5)
        loop.close()


def ask(port, **changes):
    """Return the result of a short test."""
    facts = {"connections": 2, "duration_s": 0.4, "warmup_s": 0.0, "timeout_s": 2.0} | changes
    return run_load(Load(host="127.0.0.1", port=port, requests=(ASK,), **facts))


def writing(*parts, pause_s=0.0):
    """Return an act that writes `parts` one after the other."""

    async def act(writer, n):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return act


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        pytest.param((OK,), 200, id="an answer in one piece"),
        pytest.param((BUSY,), 503, id="another spelling of the length"),
        pytest.param((CHUNKED,), 200, id="chunks with an extension and a trailer"),
        pytest.param(tuple(bytes([b]) for b in OK), 200, id="an answer byte by byte"),
        pytest.param((CHUNKED[:70], CHUNKED[70:90], CHUNKED[90:]), 200, id="chunks cut anywhere"),
        pytest.param((b"HTTP/1.1 100 Continue\r\n\r\n" + OK,), 200, id="an interim answer first"),
        pytest.param((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, id="no body at all"),
        pytest.param((b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n", b"x" * 300_000), 200, id="a body larger than one read"),
        pytest.param((CLOSING,), 200, id="a server that closes after every answer"),
        pytest.param((b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",), 200, id="HTTP/1.0 closes without saying so"),
    ],
)
def test_whole_answers_are_counted_by_status(parts, status):
    """Every form of a whole answer counts as one, and as nothing else."""
    with misbehaving(writing(*parts)) as (port, server):
        found = ask(port)

    assert {status} == set(found.by_status)
    assert {} == found.errors
    assert found.n_answered == server.n_requests
    assert found.n_answered > 5


def test_a_body_until_the_end_is_an_answer():
    """An answer without a length ends with its connection."""

    async def act(writer, n):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        await writer.drain()
        raise EOFError

    with misbehaving(act) as (port, server):
        found = ask(port)

    assert ({}, {200}) == (found.errors, set(found.by_status))
    assert found.n_answered == server.n_requests > 5
    assert found.n_reconnects >= found.n_answered - 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(b"", "reset", id="closed without a word"),
        pytest.param(OK[:-1], "short", id="closed within the body"),
        pytest.param(OK[:20], "short", id="closed within the head"),
        pytest.param(CHUNKED[:60], "short", id="closed within a chunk"),
        pytest.param(b"220 mail.example.com ESMTP\r\n\r\n", "malformed", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "malformed", id="a length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\n", "malformed", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "malformed", id="a chunk without a size"),
        pytest.param(b"HTTP/1.1 2x0 OK\r\ncontent-length: 0\r\n\r\n", "malformed", id="a status that is no number"),
        pytest.param(b"x" * 70_000, "malformed", id="a head without an end"),
    ],
)
def test_broken_answers_are_counted_by_kind(answer, kind):
    """Whatever is no whole answer is an error of its kind, once per request; the generator goes on."""

    async def act(writer, n):
        writer.write(answer)
        await writer.drain()
        raise EOFError

    with misbehaving(act) as (port, server):
        found = ask(port)

    assert {kind} == set(found.errors)
    assert 0 == found.n_answered
    assert found.errors[kind] == server.n_requests > 5


def test_an_answer_too_many_is_not_believed():
    """Two answers to one request: the second belongs to nobody, and the connection is not used again."""
    with misbehaving(writing(OK + OK)) as (port, _):
        found = ask(port)

    assert found.n_ok > 0
    assert found.errors["malformed"] > 0


def test_refusals_have_latencies_of_their_own():
    """Every third request is turned away slowly; the good answers' percentiles know nothing of it."""

    async def act(writer, n):
        if n % 3 == 0:
            await asyncio.sleep(0.05)
        writer.write(BUSY if n % 3 == 0 else OK)

    with misbehaving(act) as (port, _):
        found = ask(port, connections=1, duration_s=1.0)

    assert pytest.approx(1 / 3, abs=0.05) == found.error_share
    assert found.n_refused == found.n_errors
    assert found.latency().quantile(0.9) < 40e6
    assert found.latency(503, 503).quantile(0.01) > 49e6


@pytest.mark.parametrize("rate", [pytest.param(None, id="closed loop"), pytest.param(20.0, id="open loop")])
def test_a_server_that_never_answers_holds_nobody(rate):
    """Every request is given up after its time-out, and the test ends soon after."""

    async def act(writer, n):
        await asyncio.sleep(60)

    began = time.monotonic()
    with misbehaving(act) as (port, _):
        found = ask(port, timeout_s=0.2, duration_s=1.0, rate=rate, connections=8)

    assert time.monotonic() - began < 3
    assert {"timeout"} == set(found.errors)
    assert (0, True) == (found.n_answered, found.errors["timeout"] > 15)
    assert rate is None or found.n_requests == 20


def test_requests_without_a_free_connection_are_unsent():
    """An open loop with one connection and a silent server says that it could not ask."""

    async def act(writer, n):
        await asyncio.sleep(60)

    with misbehaving(act) as (port, _):
        found = ask(port, timeout_s=0.3, duration_s=1.0, rate=400.0, connections=1)

    assert 400 == found.n_requests
    assert {"timeout", "unsent"} == set(found.errors)
    assert found.held
    assert not found.could_offer


def test_a_stall_is_charged_to_everybody_it_kept_waiting():
    """A server that stops for a second in the middle shows it in p99 of an open loop: nobody is left out for being polite."""
    began = time.monotonic()

    async def act(writer, n):
        if 0.5 < time.monotonic() - began < 1.5:
            await asyncio.sleep(max(0.0, 1.5 - (time.monotonic() - began)))
        writer.write(OK)

    with misbehaving(act) as (port, _):
        began = time.monotonic()
        found = ask(port, rate=200.0, duration_s=3.0, connections=4)
    latency = found.latency()

    assert 600 == found.n_ok
    assert latency.quantile(0.5) < 400e6
    assert 800e6 < latency.quantile(0.99) < 1300e6
    # A third of all requests was due within the stall.
    assert pytest.approx(2 / 3, abs=0.12) == latency.share_within(20_000_000)


def test_an_open_loop_offers_what_was_asked():
    """Exactly the requests of the window are sent, evenly or at random, and their lag is told."""
    with misbehaving(writing(OK)) as (port, _):
        even = ask(port, rate=400.0, duration_s=1.0, warmup_s=0.2)
        random = ask(port, rate=400.0, duration_s=1.0, arrivals="poisson", seed=7)

    assert 400 == even.n_ok == even.n_requests
    assert even.could_offer
    assert even.lags().n == 400
    assert 400 != random.n_ok
    assert pytest.approx(400, abs=100) == random.n_ok


def test_pipelined_answers_go_to_their_own_requests():
    """Many requests on one connection; each answer is one request's."""
    with misbehaving(writing(OK)) as (port, server):
        found = ask(port, rate=3000.0, duration_s=0.5, connections=1, pipeline=64)

    assert 1500 == found.n_ok == server.n_requests
    assert 1 == server.n_connections


def test_a_given_up_answer_on_a_shared_connection_is_thrown_away():
    """One slow answer among pipelined ones times out; it arrives late, counts as late, and its followers are not mistaken for it."""

    async def act(writer, n):
        if n == 10:
            await asyncio.sleep(0.5)
        writer.write(OK)

    with misbehaving(act) as (port, server):
        found = ask(port, rate=50.0, duration_s=1.0, connections=1, pipeline=200, timeout_s=0.3)

    assert 50 == found.n_requests == server.n_requests
    assert {"timeout"} == set(found.errors)
    assert found.errors["timeout"] == found.n_late
    assert 50 == found.n_ok + found.n_late


def test_a_server_that_dies_is_refused_connections():
    """When nobody listens any more every attempt counts as refused, and the test still ends."""
    results = []
    with misbehaving(writing(OK)) as (port, _):
        asking = threading.Thread(target=lambda: results.append(ask(port, duration_s=1.0)))
        asking.start()
        time.sleep(0.3)
    asking.join(10)
    (found,) = results

    assert found.n_ok > 5
    assert found.errors["refused"] > 2
    assert found.errors["refused"] + found.errors.get("reset", 0) == sum(found.errors.values())


def test_the_warm_up_counts_nothing():
    """What was asked before the window is thrown away, also when it was slow."""
    began = time.monotonic()

    async def act(writer, n):
        if time.monotonic() - began < 0.5:
            await asyncio.sleep(0.1)
        writer.write(OK)

    with misbehaving(act) as (port, _):
        began = time.monotonic()
        found = ask(port, warmup_s=0.8, duration_s=0.5)

    assert found.latency().largest() < 90e6
    assert [True, False] == sorted({second.warm for second in found.seconds}, reverse=True)


@pytest.mark.parametrize("rate", [pytest.param(None, id="closed loop"), pytest.param(200.0, id="open loop")])
def test_each_request_is_sent_in_turn(rate):
    """Several requests are sent one after the other, also over several connections."""
    other = ASK.replace(b"[]", b"{}")
    with misbehaving(writing(OK)) as (port, server):
        load = Load(host="127.0.0.1", port=port, requests=(ASK, other), connections=2, duration_s=0.3, warmup_s=0.0, rate=rate)
        run_load(load)

    assert {ASK, other} == set(server.asked)
    assert abs(server.asked.count(ASK) - server.asked.count(other)) <= 1


def test_nobody_there_is_said_at_once():
    """Without a server there is nothing to measure: the error names the address and what to start."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(UnavailableError) as caught:
        ask(port)

    assert "loadtest-unreachable" == caught.value.code
    assert str(port) in caught.value.what


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"connections": 0}, id="no connections"),
        pytest.param({"duration_s": 0.0}, id="no time"),
        pytest.param({"rate": 0.0}, id="no rate"),
        pytest.param({"rate": float("nan")}, id="a rate that is no number"),
        pytest.param({"pipeline": 4}, id="pipelining in a closed loop"),
        pytest.param({"timeout_s": 0.0}, id="no patience"),
        pytest.param({"connections": 1 << 40}, id="more connections than files"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(changes):
    """Nonsense is said before a connection is opened."""
    with pytest.raises(SpecError) as caught:
        ask(1, **changes)

    assert caught.value.code.startswith("loadtest-")


def test_our_own_server_answers_every_request(tmp_path):
    """The real server under a closed and an open loop: no error, and as many answers as it counted itself."""
    body = '[{"tenure": 1, "monthly": 70, "계약": "월별"}]'.encode()
    head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    with running(tmp_path) as (started, _):
        load = Load(host=started.host, port=started.port, requests=(request,), connections=4, duration_s=0.5, warmup_s=0.1)
        closed = run_load(load)
        opened = run_load(Load(host=started.host, port=started.port, requests=(request,), rate=200.0, duration_s=0.5, warmup_s=0.0))

    assert ({}, {200}) == (closed.errors, set(closed.by_status))
    assert closed.n_ok > 50
    assert (100, {}) == (opened.n_ok, opened.errors)
