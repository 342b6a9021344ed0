"""Bytes on a socket, of every kind: one request gets one answer, however it is cut; what is not HTTP is refused and ended."""

import os
import re
import socket
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.formats.prediction_log import LogPolicy
from mulle.serve.http.checks import Limits
from support.http_client import RawClient
from support.serving import running

LIMITS = Limits(body_bytes=100_000, head_bytes=8_192, head_timeout_s=2, body_timeout_s=2, idle_timeout_s=5, connections=400)
ROW = b'[{"tenure": 1, "monthly": 70}]'
HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """One real server for all of it."""
    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    try:
        with running(tmp_path_factory.mktemp("project"), limits=LIMITS, max_rows=100) as (started, _):
            yield started.host, started.port
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


def talk(address, *pieces, pause_s=0.0, timeout_s=8.0):
    """Send pieces, each in a packet of its own, close our side, and return all that comes until the other side closes."""
    received = b""
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The server may have ended the connection by then.
        with suppress(OSError):
            for i, piece in enumerate(pieces):
                if i and pause_s:
                    time.sleep(pause_s)
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := connection.recv(65_536):
                received += piece
    return received


def replies(received):
    """Return (status, body) of every answer in a stream of them; whatever does not parse fails the test."""
    found = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        first = re.match(rb"HTTP/1\.1 (\d{3}) [^\r\n]+\r\n", head + b"\r\n")
        assert separator, f"an answer without an end: {received[:200]!r}"
        assert first, f"not an answer: {received[:200]!r}"
        status = int(first[1])
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        n = 0 if status == 100 or length is None else int(length[1])
        assert len(rest) >= n
        if status != 100:
            found.append((status, rest[:n]))
        received = rest[n:]
    return found


def told(received):
    """Return what the answers say, without ids: statuses, and error codes or probabilities."""
    found = []
    for status, body in replies(received):
        code = re.search(rb'"code":"([^"]+)"', body)
        numbers = re.search(rb'"probabilities":\{[^}]*\}', body)
        found.append((status, code[1] if code else numbers[0] if numbers else body[:40]))
    return found


def require_beginning(received, expected):
    """Fail unless answers are the expected ones, in their order; a server may end a connection early, and then its last answer says so."""
    found = told(received)

    assert expected[: len(found)] == found
    assert found
    if len(found) < len(expected):
        assert b"\r\nconnection: close\r\n" in received[received.rindex(b"HTTP/1.1 ") :]


def post(body=ROW, path=b"/predict", extra=b""):
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + JSON + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(pieces, *, extension=b"", trailers=b"", extra=b""):
    body = b"".join(b"%x" % len(piece) + extension + b"\r\n" + piece + b"\r\n" for piece in pieces if piece)
    head = b"POST /predict HTTP/1.1\r\n" + HOST + JSON + extra + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n" + trailers + b"\r\n"


# ---- one request, one answer, however it is cut

VALID = [
    pytest.param(post(), id="a length"),
    pytest.param(chunked([ROW[:5], ROW[5:]], extension=b";a=b", trailers=b"X-Late: 1\r\n"), id="chunks with extension and trailer"),
    pytest.param(b"\r\n\r\n" + post() + LIVE, id="empty lines before, another request behind"),
    pytest.param(post(extra=b"Connection: close\r\n") + LIVE, id="the last one says close"),
    pytest.param(post(b"{") + post(b"[]") + post(), id="refusals between"),
    pytest.param(b"GET http://127.0.0.1/v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n" + LIVE, id="an absolute target"),
    pytest.param(post(extra=b"Expect: 100-continue\r\n"), id="expect"),
    pytest.param(
        post(extra=b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAM\r\n"), id="an upgrade nobody follows"
    ),
    pytest.param(b"GET /v2/health/live HTTP/1.1\nHost: 127.0.0.1\n\n", id="bare line feeds"),
]


@pytest.mark.parametrize("data", VALID)
def test_a_stream_cut_in_two_anywhere_means_the_same(address, data):
    """Every position, each in packets of its own."""
    whole = told(talk(address, data))
    # Every position near the heads' ends, every third elsewhere: the parser's states are all met.
    places = [i for i in range(1, len(data)) if i % 3 == 0 or b"\r\n" in data[i - 2 : i + 2]]
    found = {i: told(talk(address, data[:i], data[i:], pause_s=0.001)) for i in places}

    assert whole
    assert {} == {i: answers for i, answers in found.items() if answers != whole}


@pytest.mark.parametrize("data", VALID)
def test_a_stream_byte_by_byte_means_the_same(address, data):
    """The slowest cut there is."""
    assert told(talk(address, data)) == told(talk(address, *(data[i : i + 1] for i in range(len(data)))))


BODIES = st.sampled_from([ROW, b"[]", b"{", b'{"features": [[1, 2, "x"]]}', b"", b"x" * 3_000, b'{"tenure": 1, "monthly": 2}'])
PATHS = st.sampled_from([b"/predict", b"/predict?x=1", b"/feedback", b"/nowhere", b"/predict/", b"//predict", b"/%70redict", b"/", b"/a#b"])
EXTRAS = st.sampled_from([b"", b"X-A: b\r\n", b"mulle-revision: 9\r\n", b"Connection: keep-alive\r\n", b"x: " + b"y" * 500 + b"\r\n"])
CHUNKS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@st.composite
def requests(draw):
    """Return a request our server understands, right or wrong in what it says."""
    body, path, extra = draw(BODIES), draw(PATHS), draw(EXTRAS)
    if draw(st.booleans()):
        pieces, at = [], 0
        for size in draw(CHUNKS):
            pieces.append(body[at : at + size])
            at += size
        return chunked([*pieces, body[at:]], extension=draw(st.sampled_from([b"", b";x", b' ;q="a b"'])), extra=extra)
    method = draw(st.sampled_from([b"POST", b"PUT", b"DELETE", b"PATCH"]))
    return method + post(body, path, extra)[4:]


@given(st.lists(requests(), min_size=1, max_size=5), st.lists(st.integers(1, 5_000), max_size=6))
@settings(max_examples=120)
def test_pipelines_cut_anywhere_get_the_answers_of_the_whole(address, messages, places):
    """The oracle is the server itself, given each request alone."""
    data = b"".join(messages)
    cuts = [0, *sorted({place for place in places if place < len(data)}), len(data)]
    cut = [data[a:b] for a, b in pairwise(cuts)]
    alone = [told(talk(address, one))[0] for one in messages]

    require_beginning(talk(address, data), alone)
    require_beginning(talk(address, *cut, pause_s=0.001), alone)


# ---- what is not HTTP, or would be read twice

NOW = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"
HIDDEN = b"0\r\n\r\n" + NOW


def smuggled(*lines, body=HIDDEN):
    return b"POST /predict HTTP/1.1\r\n" + HOST + JSON + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


REFUSED = [
    pytest.param(smuggled(b"Content-Length: 5", b"Transfer-Encoding: chunked"), id="length and chunks"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", b"Content-Length: 5"), id="chunks and length"),
    pytest.param(smuggled(b"Content-Length: 5", b"Content-Length: 48"), id="two lengths"),
    pytest.param(smuggled(b"Content-Length: 5, 48"), id="two lengths in one"),
    pytest.param(smuggled(b"Content-Length: +5"), id="a length with a sign"),
    pytest.param(smuggled(b"Content-Length: -1"), id="a negative length"),
    pytest.param(smuggled(b"Content-Length: 0x5"), id="a hexadecimal length"),
    pytest.param(smuggled(b"Content-Length: 5 5"), id="a length with a space within"),
    pytest.param(smuggled(b"Content-Length: "), id="no length at all"),
    pytest.param(smuggled(b"Content-Length: 99999999999999999999999"), id="a length beyond 64 bits"),
    pytest.param(smuggled(b"Content-Length : 5"), id="a space before the colon of the length"),
    pytest.param(smuggled(b"Transfer-Encoding : chunked"), id="a space before the colon"),
    pytest.param(smuggled(b"Transfer-Encoding: xchunked"), id="xchunked"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked, identity"), id="chunked is not the last"),
    pytest.param(smuggled(b"Transfer-Encoding: identity"), id="identity"),
    pytest.param(smuggled(b"Transfer-Encoding: gzip, chunked"), id="compressed chunks"),
    pytest.param(smuggled(b"Transfer-Encoding: \x0bchunked"), id="a vertical tab before chunked"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), id="two encodings"),
    pytest.param(smuggled(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"), id="two encodings, chunked last"),
    pytest.param(smuggled(b"Transfer-Encoding:\r\n chunked"), id="a folded encoding"),
    pytest.param(smuggled(b"X: a\r\n Content-Length: 5"), id="a folded header"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0", 1), id="chunks in HTTP/1.0"),
    pytest.param(smuggled(b"X: a\x00b", b"Content-Length: 5"), id="NUL in a value"),
    pytest.param(smuggled(b"X\x00: a", b"Content-Length: 5"), id="NUL in a name"),
    pytest.param(smuggled(b"X: a\rContent-Length: 5"), id="a lone CR in a value"),
    pytest.param(smuggled(b"no colon here", b"Content-Length: 5"), id="a header without a colon"),
    pytest.param(smuggled(b": empty", b"Content-Length: 5"), id="a header without a name"),
    pytest.param(smuggled(b"X(Y): a", b"Content-Length: 5"), id="a name that is no token"),
    pytest.param(b"POST /predict HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n", id="white space before the first header"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n" + NOW), id="a negative chunk"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"0x5\r\nabcde\r\n" + HIDDEN), id="a chunk with 0x"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n" + HIDDEN), id="a chunk beyond 64 bits"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"5\nabcde\r\n" + HIDDEN), id="a chunk size ended by a line feed"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"5\r\nabcdeXX0\r\n\r\n" + NOW), id="a chunk without its end"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"5;a\nb\r\nabcde\r\n" + HIDDEN), id="a line feed in an extension"),
    pytest.param(smuggled(b"Transfer-Encoding: chunked", body=b"\r\n" + HIDDEN), id="a chunk without a size"),
    pytest.param(b"GET /v2/health/live HTTP/1.1\r\n\r\n", id="no host"),
    pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + HOST + b"\r\n", id="two hosts"),
    pytest.param(b"GET /v2/health/live HTTP/1.1\r\nHost: evil.net\r\n\r\n", id="another host"),
    pytest.param(b"GET /v2/health/live HTTP/2.0\r\n" + HOST + b"\r\n", id="HTTP/2 in words"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="the preface of HTTP/2"),
    pytest.param(b"GET /v2/health/live HTTP/1.2\r\n" + HOST + b"\r\n", id="HTTP/1.2"),
    pytest.param(b"GET /v2/health/live\r\n\r\n", id="HTTP/0.9"),
    pytest.param(b"get /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n", id="a method in lower case"),
    pytest.param(b"G\x00T / HTTP/1.1\r\n" + HOST + b"\r\n", id="NUL in the method"),
    pytest.param(b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", id="a space in the target"),
    pytest.param(b"GET /a\x00 HTTP/1.1\r\n" + HOST + b"\r\n", id="NUL in the target"),
    pytest.param(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + b"\r\n", id="CONNECT"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS"),
    pytest.param(b"\x00" * 300, id="zeros"),
]


@pytest.mark.parametrize("data", REFUSED)
def test_what_could_be_read_in_two_ways_is_read_in_none(address, data):
    """Exactly one refusal in our own shape, and what was hidden behind it is never answered."""
    found = replies(talk(address, data))

    assert 1 == len(found)
    assert 400 <= found[0][0] < 500 or found[0][0] == 505
    assert b'{"error":{"code":"' in found[0][1]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(post() + b"GARBAGE", [200, 400], id="garbage behind a good request"),
        pytest.param(post(b"x" * 5)[:-5] + b"12345" + NOW, [422, 404], id="a length that fits"),
        pytest.param(chunked([ROW], trailers=b"Content-Length: 500\r\n") + NOW, [400], id="a length in a trailer"),
        pytest.param(chunked([ROW], trailers=b"Transfer-Encoding: chunked\r\n") + NOW, [400], id="an encoding in a trailer"),
        pytest.param(chunked([ROW], trailers=b"mulle-revision: 9\r\n"), [200], id="a header we obey in a trailer"),
        pytest.param(chunked([ROW], extra=b"Connection: close\r\n") + NOW, [200], id="nothing behind close"),
        pytest.param(b"GET /v2/health/live HTTP/1.0\r\n\r\n" + NOW, [200], id="HTTP/1.0 ends"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404], id="an asterisk"),
        pytest.param(b"GET http://evil.net/v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n", [200], id="an absolute target: the Host counts"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + NOW, [200, 404], id="GET with a body"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 7_000 + b"\r\n\r\n", [200], id="a long header"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 9_000 + b"\r\n\r\n", [431], id="a header too long"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 2_000_000, [431], id="an endless header"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 400 + b"\r\n", [431], id="400 headers"),
        pytest.param(b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [431], id="a target too long"),
        pytest.param(b"A" * 20_000, [400], id="an endless method"),
        pytest.param(post(b"x" * 100_001), [413], id="a body too large"),
        pytest.param(chunked([b"x" * 30_000] * 4), [413], id="chunks too large together"),
        pytest.param(chunked([b"x"] * 90_000), [400], id="ninety thousand chunks of one byte"),
        pytest.param(chunked([ROW], extension=b";" + b"e" * 2_000_000), [413], id="an endless extension"),
        pytest.param(chunked([ROW], trailers=b"t: " + b"e" * 2_000_000 + b"\r\n"), [413], id="an endless trailer"),
        pytest.param(b"GET  /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n", [200], id="two spaces"),
        pytest.param(post(extra=b"Expect: 200-maybe\r\n"), [417], id="another expectation"),
    ],
)
def test_limits_and_oddities_have_their_answers(address, data, expected):
    """Told by status; nothing is answered twice, nothing is left out."""
    assert expected == [status for status, _ in replies(talk(address, data))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(post() + b"GARBAGE\r\n\r\n", [200, 400], id="garbage behind it"),
        pytest.param(post() + post(b"x" * 100_001), [200, 413], id="a body too large behind it"),
        pytest.param(post() + post(extra=b"Connection: close\r\n") + LIVE, [200, 200], id="close behind it"),
        pytest.param(post() * 3, [200, 200, 200], id="a client that has said all it had to say"),
    ],
)
def test_an_answer_on_its_way_is_not_lost_to_what_follows(tmp_path, data, expected):
    """Answers that take milliseconds (every row is synced to the disk first) arrive after the client has closed its side."""
    with running(tmp_path, limits=LIMITS, log=LogPolicy(durability="sync")) as (started, _):
        found = replies(talk((started.host, started.port), data))

    assert expected == [status for status, _ in found]


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b"0", b"\xff", b"Transfer-Encoding: chunked\r\n"]),
    ),
    min_size=1,
    max_size=4,
)


@given(st.sampled_from([param.values[0] for param in VALID]), MUTATIONS, st.booleans())
@settings(max_examples=300)
def test_damaged_requests_never_break_the_server(address, data, mutations, replace):
    """Inserted or replaced bytes anywhere: every answer is whole, none says 5xx, and the next client is served."""
    for place, piece in mutations:
        at = place % len(data)
        data = data[:at] + piece + data[at + (1 if replace else 0) :]
    found = replies(talk(address, data))

    assert [] == [status for status, _ in found if status >= 500 and status != 505]
    assert [(200, b'{"live":true}')] == replies(talk(address, LIVE))


@given(st.binary(max_size=600))
@settings(max_examples=150)
def test_noise_is_refused_or_waited_out(address, data):
    """Whatever comes, it ends; and nothing of it is a success."""
    found = replies(talk(address, data))

    assert [] == [status for status, _ in found if status < 400 or (status >= 500 and status != 505)]


@pytest.mark.parametrize("n_slow", [60])
def test_slow_clients_hold_nobody_up(address, n_slow):
    """Sixty connections that send a byte now and then are ended in time, while others are answered at once."""
    slow = [socket.create_connection(address, timeout=10) for _ in range(n_slow)]
    waits, ended = [], 0
    try:
        started = time.monotonic()
        for i in range(40):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"POST /predict HTTP/1.1\r\n"[i % 24 : i % 24 + 1] if i < 24 else b"x")
            before = time.monotonic()
            with RawClient(*address) as client:
                assert 200 == client.request("GET", "/v2/health/live").status
            waits.append(time.monotonic() - before)
            if time.monotonic() - started > LIMITS.head_timeout_s + 1.5:
                break
            time.sleep(0.1)
        for connection in slow:
            with suppress(OSError):
                received = b""
                while piece := connection.recv(4_096):
                    received += piece
                ended += b" 408 " in received
    finally:
        for connection in slow:
            connection.close()

    assert ended >= n_slow * 0.9
    assert max(waits) < 1.0
